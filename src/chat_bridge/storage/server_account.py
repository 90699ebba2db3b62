"""Whom the embedded PostgreSQL runs as. It refuses to run as root, so root gets a system user made for it."""

import errno
import os
import pwd
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from chat_bridge.errors import EmbeddedPostgresError

SERVER_USER = "chat-bridge-db"
INSTEAD = "run as another user than root, or set DATABASE_URL to a PostgreSQL server"


class ServerAccount(NamedTuple):
    """The user whom the server runs as, and what `subprocess` needs to become that user."""

    uid: int
    gid: int
    options: dict[str, Any]


def server_account() -> ServerAccount:
    """Ourselves; for root the system user `chat-bridge-db`, made when absent."""
    if os.getuid() != 0:
        return ServerAccount(os.getuid(), os.getgid(), {})
    try:
        user = pwd.getpwnam(SERVER_USER)
    except KeyError:
        _make_server_user()
        user = pwd.getpwnam(SERVER_USER)
    return ServerAccount(user.pw_uid, user.pw_gid, {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()})


def let_pass(uid: int, path: Path) -> None:
    """Let the user go through the folders above `path`, by an ACL entry where they are closed to others."""
    for folder in reversed(path.parents):
        status = folder.stat()
        if status.st_uid == uid or status.st_mode & stat.S_IXOTH:
            continue
        try:
            _allow_search(uid, folder, status.st_mode)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"PostgreSQL runs as the user {SERVER_USER}, who may not enter {folder}, and no ACL can be set there "
                f"({error.strerror}): use a folder that others may enter (chmod o+x), {INSTEAD}"
            ) from error


def _make_server_user() -> None:
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    reason = "there is no useradd"
    if useradd is not None:
        no_login = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
        command = (useradd, "--system", "--user-group", *no_login, SERVER_USER)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reason = done.stderr.strip()
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and its system user {SERVER_USER} could not be made ({reason}): "
        f"make that user, {INSTEAD}"
    )


# A POSIX ACL as the kernel keeps it: a version, then entries of tag, rights and user or group, sorted.
ACL = "system.posix_acl_access"
VERSION = struct.pack("<I", 2)
ENTRY = struct.Struct("<HHI")
OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF  # in entries that name no user or group
SEARCH = 0o1


def _allow_search(uid: int, folder: Path, mode: int) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        packed = os.getxattr(folder, ACL)
        rights = {(tag, who): bits for tag, bits, who in ENTRY.iter_unpack(packed[len(VERSION) :])}
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        rights = {(OWNER, NOBODY): mode >> 6 & 7, (GROUP, NOBODY): mode >> 3 & 7, (OTHERS, NOBODY): mode & 7}

    old_mask = rights.pop((MASK, NOBODY), 0o7)
    masked = {key: bits & old_mask for key, bits in rights.items() if key[0] in (USER, GROUP, NAMED_GROUP)}
    masked[USER, uid] = masked.get((USER, uid), 0) | SEARCH
    new_mask = 0
    for bits in masked.values():  # what the old mask took away does not come back with the new one
        new_mask |= bits
    rights |= masked | {(MASK, NOBODY): new_mask}
    os.setxattr(
        folder, ACL, VERSION + b"".join(ENTRY.pack(tag, bits, who) for (tag, who), bits in sorted(rights.items()))
    )
