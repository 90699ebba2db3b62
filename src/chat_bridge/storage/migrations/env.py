"""Alembic's entry: runs the migrations on the connection that `migrate.py` hands over, or prints them as SQL."""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
else:
    context.configure(connection=context.config.attributes["connection"])

with context.begin_transaction():
    context.run_migrations()
