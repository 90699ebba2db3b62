"""What went wrong with TLS, in words; the libraries' own tell of the source lines of OpenSSL."""

import os
import ssl
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from chat_bridge.errors import SettingsError

# What OpenSSL says of a certificate (X509_V_ERR_...).
_EXPIRED, _HOST, _ADDRESS = 10, 62, 64
_UNKNOWN_CA = (2, 18, 19, 20, 21)

_REASONS = {
    "KEY_VALUES_MISMATCH": "our client certificate and its key do not belong together",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file of the CA holds no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate, and has got none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the CA of our client certificate",
}


def tls_trouble(error: BaseException | None) -> str | None:
    """A sentence for an error of TLS, or one that came from it; None for all others."""
    if "rejected SSL upgrade" in str(error):  # asyncpg's words
        return "it does not talk TLS, and sslmode demands that"
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error)
    reason = error.reason or ""
    if "PEM" in str(error):
        return "the file of our client certificate or its key is not one, or the key needs a password"
    return _REASONS.get(reason, f"TLS failed ({reason.replace('_', ' ').lower() or 'no reason given'})")


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _UNKNOWN_CA:
        return "its certificate comes from a CA that we do not trust: name its own CA's file"
    if error.verify_code in (_HOST, _ADDRESS):
        return "its certificate is good for other hosts only: connect by a name that is in it"
    if error.verify_code == _EXPIRED:
        return "its certificate has expired"
    return f"its certificate is not good ({error.verify_message})"


def system_trust(dsn: str) -> ssl.SSLContext | None:
    """The TLS of `sslrootcert=system`, which libpq knows and the driver does not: the system's CAs are trusted. They
    vouch for everybody, so the host's name has to be right too. None: it is not asked for. Raises SettingsError."""
    options = dict(parse_qsl(urlsplit(dsn).query))

    def said(option: str) -> str | None:
        return options.get(option) or os.environ.get(f"PG{option.upper().replace('_', '')}")

    if said("sslrootcert") != "system":
        return None
    if said("sslmode") not in (None, "verify-full"):
        raise SettingsError("DATABASE_URL: sslrootcert=system goes with sslmode=verify-full only")
    for option in ("sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version"):
        if said(option):
            raise SettingsError(f"DATABASE_URL: {option} does not go with sslrootcert=system: name the file of the CA")
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    if certificate := said("sslcert"):
        context.load_cert_chain(certificate, said("sslkey"), options.get("sslpassword", ""))
    return context


def require_files(setting: str, url: str, options: tuple[str, ...]) -> None:
    """Raise SettingsError unless the files that these options of a URL name can be read."""
    for name, path in parse_qsl(urlsplit(url).query):
        if name in options and (name, path) != ("sslrootcert", "system"):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise SettingsError(
                    f"{setting}: {name} names a file that can't be read ({error.strerror}): {path}"
                ) from None
