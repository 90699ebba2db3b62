"""What can go wrong with files, in words that say what to do."""

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from chat_bridge.errors import ChatBridgeError

_ADVICE = {
    errno.EACCES: "give yourself the right to it, or name another",
    errno.EPERM: "give yourself the right to it, or name another",
    errno.EROFS: "name a folder that can be written with --report",
    errno.EEXIST: "it is no folder: name another with --report",
    errno.ENOTDIR: "name another folder with --report",
    errno.ENOSPC: "make room for the report, and for temporary files (TMPDIR)",
}


@contextmanager
def explained(file: Path) -> Generator[None]:
    """While a file is imported: raises ChatBridgeError for whatever the system, SQLite or Python says of files."""
    try:
        yield
    except sqlite3.Error as error:
        raise ChatBridgeError(f"{file} can't be read: {error}; what was read before is stored") from error
    except UnicodeError as error:
        raise ChatBridgeError(
            f"{file} is not UTF-8 text; convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    except RecursionError as error:
        raise ChatBridgeError(f"{file} holds JSON that is nested too deeply; take it out") from error
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "mend that, and run this again")
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ChatBridgeError(f"{error.filename or 'a file of this import'}: {reason}; {advice}") from error
