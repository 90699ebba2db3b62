"""Certificates made for one test."""

import os
from pathlib import Path

import trustme

from chat_bridge.storage.server_account import ServerAccount


class Certificates:
    """A CA of our own in a folder, and what it has signed: files that hold both certificate and key."""

    def __init__(self, folder: Path, account: ServerAccount | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._account = account
        self._authority = trustme.CA()
        self.authority = self._write("ca", self._authority.cert_pem)

    def server(self, *names: str) -> Path:
        """For a server with these names and addresses."""
        return self._write(names[0], self._authority.issue_cert(*names).private_key_and_cert_chain_pem)

    def client(self, name: str) -> Path:
        """For a client whose account has this name."""
        issued = self._authority.issue_cert(f"{name}@clients.example", common_name=name)
        return self._write(f"client-{name}", issued.private_key_and_cert_chain_pem)

    def _write(self, name: str, content: trustme.Blob) -> Path:
        file = self._folder / f"{name}.pem"
        content.write_to_path(file)
        file.chmod(0o600)  # PostgreSQL takes no key that others may read
        if self._account is not None:
            os.chown(file, self._account.uid, self._account.gid)
        return file
