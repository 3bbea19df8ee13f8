"""Where an address leads: a file system of pyarrow's, and a path on it; and what to do where it leads nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import pyarrow as pa
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileInfo,
    FileSystem,
    FileType,
    LocalFileSystem,
    S3FileSystem,
)

from fanin.errors import StoreError, UsageError

CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 5.0
"""Seconds for which an object store may be silent: until it accepts a connection, and amid a request, whatever the size
of that. Arrow's own 1 and 3 are short for a busy one; without any limit a dead endpoint would hang us. As long as a
request hangs (measured: 12 s each time that it is tried), Arrow lets nobody in this process open another store, nor the
process end."""

ATTEMPTS = 3
"""How often Arrow tries a request: its own default."""

OPTIONS = ("endpoint_override", "region", "scheme")
"""What an `s3://` address may say after its question mark, by pyarrow's names."""

AN_ADDRESS = "file:///absolute/path, with %20 for a space, or s3://bucket/path"

REFUSED = re.compile(
    "ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE|MISSING_AUTHENTICATION"
    "|InvalidToken|ExpiredToken|INVALID_CLIENT_TOKEN|HTTP status 40[13]|No credentials"
)
"""In what Arrow says: the store answers, and does not let us in. Names of S3's error codes, as Arrow and as S3 spell
them; a HEAD request has no body, and so a status alone."""

NO_BUCKET = re.compile("NO_SUCH_BUCKET|NoSuchBucket")


def filesystem_at(uri: str, attempts: int = ATTEMPTS) -> tuple[FileSystem, str]:
    """The file system and the path at an address: a path, or SCHEME://....

    An `s3://` address may carry options, as in `s3://bucket/path?endpoint_override=localhost:5000&scheme=http`;
    AWS_ENDPOINT_URL, AWS_PROFILE and so on count as they do elsewhere.

    Args:
        uri: The address.
        attempts: How often a request to an object store is tried before it counts as failed.

    Raises:
        UsageError: The address cannot be read.
    """
    if "://" not in uri:
        return LocalFileSystem(), os.path.abspath(uri)
    try:
        return _s3(uri, attempts) if uri.lower().startswith("s3://") else FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise UsageError(
            "this address cannot be read",
            got=f"{shown(uri)}: {error}".replace(uri, shown(uri)),
            expected=AN_ADDRESS,
            next_step="give the directory as a plain path",
        ) from error


def shown(uri: str) -> str:
    """An address for messages: without a secret that it may hold.

    >>> shown("s3://key:secret@bucket/job?scheme=http")
    's3://bucket/job'
    """
    if "://" not in uri:
        return uri
    # A secret may hold a slash that nobody has escaped.
    return re.sub(r"(?<=://)(?:[^/@]*|[^/?]*:[^?]*)@", "", uri).split("?")[0]


def below(uri: str, name: str) -> str:
    """The address of something in the directory at an address.

    >>> below("s3://bucket/runs/?scheme=http", "exp1")
    's3://bucket/runs/exp1?scheme=http'

    Raises:
        UsageError: No address leads to such a name.
    """
    if "://" not in uri:
        return os.path.join(uri, name)
    path, mark, options = uri.partition("?")
    if not uri.lower().startswith("s3://"):
        name = quote(os.fsencode(name))
    elif "?" in name or "/" in name or not name:
        raise UsageError(
            "this name cannot stand in an address",
            where=shown(uri),
            got=repr(name),
            expected=AN_ADDRESS,
            next_step="rename it: what follows a question mark are options",
        )
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def named(found: Iterable[FileInfo]) -> list[FileInfo]:
    """What a listing has found, by name, but for names of bytes that are no text: nobody can ask for those."""
    return sorted((info for info in found if _is_text(info)), key=lambda info: info.path)


def _is_text(info: FileInfo) -> bool:
    try:
        return bool(info.path)
    except UnicodeDecodeError:
        return False


def is_object_store(filesystem: FileSystem) -> bool:
    """Whether there are no directories and no renaming there, and a file appears whole once it is put."""
    return filesystem.type_name in ("s3", "gcs", "abfs")


@contextmanager
def reaching(uri: str, done: str, otherwise: str) -> Iterator[None]:
    """Turns a fault of the file system into an error that says what to do.

    Args:
        uri: The address.
        done: What is done there: `read`, `written`.
        otherwise: What to do where the fault does not say.

    Raises:
        StoreError: It cannot be reached.
    """
    try:
        yield
    # Arrow says of a path that it cannot take (a name of no text, a NUL) that it is invalid, and not that it failed.
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise StoreError(
            f"the trial cannot be {done}",
            where=shown(uri),
            got=in_a_line(error),
            next_step=advice(error, uri) or otherwise,
        ) from error


def in_a_line(error: BaseException) -> str:
    """What an error says, which may hold an address and several lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def advice(error: BaseException, uri: str) -> str:
    """What to do about a fault of an object store; empty for other places."""
    if not uri.lower().startswith("s3:"):
        return ""
    if REFUSED.search(str(error)):
        return (
            "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SESSION_TOKEN "
            "where they are temporary) and the rights on this bucket"
        )
    if NO_BUCKET.search(str(error)):
        return "create the bucket, or check its name, the region (AWS_REGION) and the endpoint (AWS_ENDPOINT_URL)"
    return "check the address, the region (AWS_REGION) and the endpoint (AWS_ENDPOINT_URL)"


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: not where we are not let in, or there is no such bucket."""
    return not (REFUSED.search(str(error)) or NO_BUCKET.search(str(error)))


def lacks_bucket(filesystem: FileSystem, path: str) -> bool:
    """Whether an object store has not even the bucket of a path.

    Raises:
        OSError: It cannot be reached.
    """
    return (
        is_object_store(filesystem) and filesystem.get_file_info(path.split("/")[0]).type is FileType.NotFound
    )


def _s3(uri: str, attempts: int) -> tuple[FileSystem, str]:
    """Read here and not by Arrow, which knows no limit of time in an address, and asks Amazon for the bucket's region
    where the address has options and none of that name. Names of objects are taken as they stand."""
    address, _, query = uri[len("s3://") :].partition("?")
    host, slash, rest = address.partition("/")
    if ":" in host and "@" not in host:
        raise ValueError("a slash in a secret is written %2F")
    keys, _, bucket = host.rpartition("@")
    path = bucket + slash + rest
    options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"the option {unknown[0]!r} is none of {', '.join(OPTIONS)}")
    path = path.strip("/")
    if not path:
        raise ValueError("it names no bucket")
    if "" in path.split("/"):
        raise ValueError("there is no name between two of its slashes")
    if keys:
        key, _, secret = keys.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    return s3_filesystem(retry_strategy=AwsStandardS3RetryStrategy(attempts), **options), path


def s3_filesystem(**options: Any) -> S3FileSystem:
    """Amazon S3, or whatever speaks like it at AWS_ENDPOINT_URL, which Arrow by itself does not look at."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    known: dict[str, Any] = {"region": region} if region else {}
    if endpoint and "endpoint_override" not in options:
        scheme, _, host = endpoint.rpartition("://")
        known |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    known |= {"connect_timeout": CONNECT_TIMEOUT, "request_timeout": REQUEST_TIMEOUT}
    known |= {
        "background_writes": False
    } | options  # a thread of ours waits for a file to be written, and may
    try:
        # A file of some megabytes is then one request and not three, and who is killed amid them leaves nothing there.
        return S3FileSystem(allow_delayed_open=True, **known)
    except TypeError:  # pyarrow 20 does not know the option
        return S3FileSystem(**known)
