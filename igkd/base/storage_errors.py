"""Explains errors of files and of S3 in plain words that say what to do."""

from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)

_REMOTE_ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError)
STORAGE_ERRORS = (OSError, *_REMOTE_ERRORS)
"""The exceptions that reading and writing may raise. s3fs turns most errors of S3 into OSErrors, but passes on botocore's own (no
credentials, no connection) and aiohttp's (a response that breaks off)."""

S3_TRIES = 3
"""How often s3fs tries a request; in each of these, botocore has itself tried five times."""

_AGAIN = "run the same command again, finished parts are kept"
_WORDS = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct its name",
    "InvalidBucketName": "this is no valid name of a bucket; correct it",
    "InvalidAccessKeyId": "the server does not know the access key; correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token is not valid; get new credentials, or unset AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set it by NTP",
    "403": "the server refused without a reason (403): the credentials are wrong or do not permit this, or this machine's clock is wrong",
    "400": "the server refused without a reason (400): the credentials are wrong or have expired, or the region is another",
}
"""S3's error codes in plain words. The answer to a HEAD request has no code; its HTTP status ("403") stands for it."""


def explain(error: BaseException) -> str:
    """What went wrong with a file or object, in plain words that say what to do.

    Args:
        error: one of STORAGE_ERRORS; where s3fs raised an OSError, the original error of S3 is its `__cause__`.

    Returns:
        part of a sentence, without a full stop.
    """
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError):
        return _explain_answer(answer)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return f"no server answers at {_endpoint(error)}; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, SSLError):
        return f"no secure connection to {_endpoint(error)} ({_first_line(error)}); check AWS_ENDPOINT_URL, http or https"
    if isinstance(error, ReadTimeoutError):
        return f"the server at {_endpoint(error)} took the request but did not answer; check AWS_ENDPOINT_URL, or {_AGAIN}"
    if isinstance(error, HTTPClientError):
        return f"the connection to {_endpoint(error)} broke each time it was tried; {_AGAIN}"
    if isinstance(error, aiohttp.ClientError):
        return f"the connection broke each time it was tried; {_AGAIN}"
    if isinstance(error, FileNotFoundError):
        return error.strerror or "it does not exist"
    return (error.strerror if isinstance(error, OSError) else None) or _first_line(error)


def _explain_answer(answer: ClientError) -> str:
    """Like `explain`, for an error that the S3 server returned."""
    given = answer.response.get("Error", {})
    code, status = str(given.get("Code", "")), answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _WORDS:
        return _WORDS[code]
    if code in ("AccessDenied", "AllAccessDisabled", "MethodNotAllowed"):
        write = answer.operation_name.startswith(("Put", "Delete", "Create", "Upload", "Complete"))
        needed = "write here (s3:PutObject, s3:DeleteObject)" if write else "read here (s3:GetObject, s3:ListBucket)"
        return f"access denied: these credentials may not {needed}; have it permitted, or choose another place"
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return f"the server was busy or failing each time it was tried ({code or status}); {_AGAIN}"
    return f"the server refused: {given.get('Message') or 'without a reason'} ({code or status})"


def _endpoint(error: BaseException) -> str:
    """Scheme and host of the server that a botocore error is about."""
    parts = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "the server"


def _first_line(error: BaseException) -> str:
    """First line of the error's message; its type's name if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_damage(error: BaseException) -> bool:
    """Whether an error from reading a Parquet file means that the file is damaged, as opposed to disk or S3 failing.

    pyarrow's own OSErrors have neither an errno nor a cause, while those of a disk have an errno and those of S3 a cause.
    """
    if isinstance(error, OSError):
        return error.errno is None and error.__cause__ is None
    return not isinstance(error, _REMOTE_ERRORS)
