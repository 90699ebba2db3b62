"""The one error base. A message says what was wrong and what to do; it never holds a secret or a user's text."""


class ChatBridgeError(Exception):
    """Base of every error this package raises on purpose."""


class SettingsError(ChatBridgeError):
    """The environment holds wrong values; the message lists all of them."""


class StorageError(ChatBridgeError):
    """PostgreSQL could not be reached or refused; nothing was acknowledged, so the caller may try again."""


class UnresponsiveError(StorageError):
    """PostgreSQL did not answer in time; what else waits for it has little hope."""


class StatementRefusedError(StorageError):
    """PostgreSQL is well, but this one statement was too much for it; without one of its rows it may not be."""


class SlowStatementError(StorageError):
    """PostgreSQL ended a statement that took too long."""


class OverloadedError(StorageError):
    """Too much waits to be stored already; nothing was tried."""


class PlaceError(ChatBridgeError):
    """A folder or a bucket could not be used, or a file is not there."""


class SchemaError(StorageError):
    """The database's schema and this program do not fit each other."""


class EmbeddedPostgresError(StorageError):
    """The embedded PostgreSQL could not be started."""
