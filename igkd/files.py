"""Files that appear whole or not at all, local or on S3."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError

from igkd.errors import UserError

STORAGE_ERRORS = (OSError, BotoCoreError, ClientError)
"""What reading or writing raises, on disk and on S3: s3fs lets botocore's own errors through (no credentials, no connection)."""


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
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it was damaged or is not ours") from None


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URI (local, s3://, ...) and the path in it.

    S3 takes endpoint, region and credentials from the usual AWS environment variables or profile. Directory listings are not cached:
    other processes write here too.

    Raises:
        UserError: the URI's scheme is not known.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"'{uri}' cannot be opened: {error}; use a local path or s3://BUCKET/PATH") from None
    return fs, str(path).rstrip("/")


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is this machine's disk."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def absolute(uri: str) -> str:
    """A local path made absolute, since workers have other working directories; a URI as it is.

    Raises:
        UserError: the path begins with the home directory of nobody.
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
        FileNotFoundError: it is not there.
        UserError: it cannot be read.
    """
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        raise
    except STORAGE_ERRORS as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all: a local file is renamed into place, an object store's put is atomic by itself.

    Raises:
        UserError: no permission, no space, no connection.
    """
    if is_local(fs):
        write_bytes(Path(path), data)
        return
    try:
        fs.pipe_file(path, data)
    except STORAGE_ERRORS as error:
        raise UserError(f"cannot write {path}: {error}") from None
