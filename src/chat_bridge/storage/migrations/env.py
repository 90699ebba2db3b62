"""Alembic's entry: prints the migrations as SQL, which `migrate.py` runs or hands over."""

from alembic import context

context.configure(
    dialect_name="postgresql",
    literal_binds=True,
    transactional_ddl=context.config.attributes["transactional_ddl"],
)

with context.begin_transaction():
    context.run_migrations()
