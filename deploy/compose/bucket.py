"""Make the bucket ATTACHMENT_BUCKET on the S3 server at AWS_ENDPOINT_URL_S3, unless it is there. Any S3 server will do.

The request is signed by hand (AWS Signature Version 4), so that nothing has to be installed for this one call.
"""

import hashlib
import hmac
import http.client
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

PATIENCE_SECONDS = 60
FIRST_REGION = "us-east-1"  # the one that AWS doesn't want to be named
LOCATION = (
    '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
)


def signed_headers(
    method: str, host: str, path: str, body: bytes, region: str, access_key: str, secret_key: str
) -> dict[str, str]:
    """The headers of a request without query."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = hashlib.sha256(f"{method}\n{path}\n\n{lines}\n{names}\n{digest}".encode()).hexdigest()
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}".encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return headers | {"Authorization": authorization}


def ask(method: str, bucket: str) -> tuple[int, str]:
    """Send one request about the bucket: status and body of the answer."""
    place = urlsplit(os.environ["AWS_ENDPOINT_URL_S3"])
    access_key, secret_key = (
        Path(os.environ[f"{name}_FILE"]).read_text(encoding="utf-8").strip()
        for name in ("S3_ACCESS_KEY", "S3_SECRET_KEY")
    )
    path = f"{place.path.rstrip('/')}/{quote(bucket)}"
    region = os.environ.get("AWS_REGION") or FIRST_REGION
    body = LOCATION.format(region=region).encode() if method == "PUT" and region != FIRST_REGION else b""
    connect = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = connect(place.netloc, timeout=10)
    try:
        headers = signed_headers(method, place.netloc, path, body, region, access_key, secret_key)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def made(bucket: str) -> str:
    """Make it if it is missing, and tell what was done. Raises OSError while the server can't be reached."""
    status, _ = ask("HEAD", bucket)
    if status == 200:
        return "is there"
    status, answer = ask("PUT", bucket)
    if status == 200:
        return "made"
    if status == 409 and ask("HEAD", bucket)[0] == 200:  # somebody else has made it meanwhile
        return "is there"
    if status >= 500 or "OperationAborted" in answer:  # the second: somebody else is making it
        raise OSError(f"the S3 server answers {status}")
    sys.exit(f"the bucket {bucket} can't be made: {status} {answer[:500]}")


def main() -> None:
    """Try until the server is up."""
    place = os.environ["ATTACHMENT_BUCKET"]
    if place.startswith(("/", "~", ".")) or ("://" in place and not place.startswith("s3://")):
        sys.stdout.write(f"{place} is no bucket of an S3 server: nothing to make\n")
        return
    bucket = place.removeprefix("s3://").partition("/")[0]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            sys.stdout.write(f"bucket {bucket}: {made(bucket)}\n")
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                sys.exit(f"the S3 server can't be reached: {error}")
            time.sleep(0.5)
        else:
            return


main()
