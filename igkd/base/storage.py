"""Reading, listing and atomic writing of files, local or on S3."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import (
    BotoCoreError,
)

from igkd.base.errors import CREDENTIALS, UserError
from igkd.base.storage_errors import S3_TRIES, STORAGE_ERRORS, explain


def write_bytes(path: Path, data: bytes) -> None:
    """Write a local file atomically, creating its directory.

    Raises:
        UserError: no permission, no space, or a file where a directory should be.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {explain(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that a local file could be written, so that a user learns otherwise before minutes of work; writes nothing.

    Raises:
        UserError: the path is a directory, or its directory cannot be created or written to.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file in it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"cannot write {path}: {above} is no directory that may be written to")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it was damaged or is not ours") from None


def parse_json(data: bytes) -> Any:
    """Parse JSON from an unknown author; raises ValueError if it is not JSON or is nested too deeply to parse."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URI (local, s3://, ...) and the path in it.

    S3 takes endpoint, region and credentials from the usual AWS environment variables or profile. Directory listings are not cached,
    because other processes write here too.

    Raises:
        UserError: the URI's scheme is not supported, it contains a secret, or the S3 settings in the environment are invalid.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    scheme, separator, rest = uri.partition("://")
    s3 = scheme in ("s3", "s3a") and bool(separator)
    # URIs also come from stores and runs that others made. They must not choose fsspec's other schemes (http, zip, ...) or chains of them.
    if "::" in uri or (separator and not s3 and scheme != "file"):
        raise UserError(f"'{uri}' cannot be opened: Protocol not known: {scheme}; use a local path or s3://BUCKET/PATH")
    bucket, endpoint = rest.partition("/")[0], os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if s3 and ("@" in bucket or (":" in bucket and not bucket.startswith("arn:"))):
        raise UserError(f"an s3:// URI holds more than a bucket's name before the path; {CREDENTIALS}")
    if s3 and not bucket:
        raise UserError(f"'{uri}' names no bucket; use s3://BUCKET/PATH")
    if s3 and "@" in endpoint:
        raise UserError(f"AWS_ENDPOINT_URL holds more than scheme, host and port; {CREDENTIALS}")
    if s3:
        # Fetch each object by one GET. With more, s3fs first asks for the size by a HEAD request, whose errors carry no error code.
        options["max_concurrency"] = 1
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
        if s3:
            fs.retries = S3_TRIES
            fs.connect()  # sends no request, but raises if the profile or endpoint is invalid
    except (ValueError, ImportError, RuntimeError) as error:
        hint = "check AWS_ENDPOINT_URL" if "endpoint" in str(error) else "use a local path or s3://BUCKET/PATH"
        raise UserError(f"'{uri}' cannot be opened: {error}; {hint}") from None
    except BotoCoreError as error:
        raise UserError(f"'{uri}' cannot be opened: {explain(error)}; check AWS_PROFILE and the files in ~/.aws") from None
    return fs, str(path).rstrip("/")


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is this machine's disk."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def absolute(uri: str) -> str:
    """A local path made absolute, since workers have other working directories; a URI is returned unchanged.

    Raises:
        UserError: the path begins with the home directory of a user who does not exist.
    """
    if "://" in uri:
        return uri
    try:
        return str(Path(uri).expanduser().resolve())
    except RuntimeError as error:
        raise UserError(f"'{uri}' is no path: {error}") from None


def read_file(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or its bucket does not exist.
    """
    try:
        return bytes(fs.cat_file(path))
    except STORAGE_ERRORS as error:
        if _is_missing(error):
            raise
        raise UserError(f"{path} cannot be read: {explain(error)}") from None


def open_ranges(fs: fsspec.AbstractFileSystem, path: str) -> Any:
    """Open a file for pyarrow to read parts of it: a context manager.

    A local file is pyarrow's own, whose threads touch nothing of Python's (see `parquet_limits`). On S3 it is without fsspec's read-ahead
    (50 MB), which would fetch everything after the first part.
    """
    if is_local(fs):
        import pyarrow  # here, since `igkd --help` needs none

        return pyarrow.OSFile(path, "rb")
    return fs.open(path, "rb", cache_type="none")


def list_paths(fs: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """Sorted paths of a directory's entries; of a file only its own path; None if the path does not exist.

    Raises:
        UserError: it cannot be listed, or its bucket does not exist.
    """
    try:
        return sorted(str(found).rstrip("/") for found in fs.ls(path, detail=False))
    except STORAGE_ERRORS as error:
        if _is_missing(error):
            return None
        raise UserError(f"{path} cannot be read: {explain(error)}") from None


def list_names(fs: fsspec.AbstractFileSystem, path: str) -> set[str]:
    """Names of a directory's entries; empty if there is no such directory.

    Raises:
        UserError: it cannot be listed, or its bucket does not exist.
    """
    return {found.rsplit("/", 1)[-1] for found in list_paths(fs, path) or ()}


def _is_missing(error: BaseException) -> bool:
    """Whether the file does not exist, as opposed to its bucket."""
    return isinstance(error, FileNotFoundError) and "NoSuchBucket" not in repr(error.__cause__)


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file atomically: a local file is renamed into place; a put to an object store is atomic by itself.

    Raises:
        UserError: no permission, no space, no connection.
    """
    if is_local(fs):
        write_bytes(Path(path), data)
        return
    try:
        fs.pipe_file(path, data)
    except STORAGE_ERRORS as error:
        raise UserError(f"cannot write {path}: {explain(error)}") from None


def remove_file(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a file if it exists.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return
    except STORAGE_ERRORS as error:
        raise UserError(f"cannot remove {path}: {explain(error)}") from None
