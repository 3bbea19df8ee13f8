"""Where an address leads: a file system of pyarrow's, and a path on it."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem

from fanin.errors import UsageError

CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5.0, 30.0
"""Seconds that an object store may take to answer. Arrow's own 1 and 3 are short for a request of many megabytes
over a slow line; without any limit a dead endpoint would hang us."""


def filesystem_at(uri: str) -> tuple[FileSystem, str]:
    """The file system and the path at an address: a path, or SCHEME://....

    An `s3://` address may carry options, as in `s3://bucket/path?endpoint_override=localhost:5000&scheme=http`;
    AWS_ENDPOINT_URL, AWS_PROFILE and so on count as they do elsewhere.

    Raises:
        UsageError: The address cannot be read.
    """
    if "://" not in uri:
        return LocalFileSystem(), os.path.abspath(uri)
    try:
        # Options of its own: those Arrow must parse. It looks up the bucket's region otherwise, which asks Amazon.
        if uri.startswith("s3://") and not urlsplit(uri).query and "@" not in urlsplit(uri).netloc:
            return _s3(uri)
        filesystem, path = FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise UsageError(
            "this address cannot be read",
            got=f"{shown(uri)}: {error}".replace(uri, shown(uri)),
            expected="file:///absolute/path, with %20 for a space, or s3://bucket/path",
            next_step="give the directory as a plain path",
        ) from error
    return filesystem, path


def shown(uri: str) -> str:
    """An address for messages: without a secret that it may hold.

    >>> shown("s3://key:secret@bucket/job?scheme=http")
    's3://bucket/job'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri).split("?")[0] if "://" in uri else uri


def _s3(uri: str) -> tuple[FileSystem, str]:
    return s3_filesystem(), uri.removeprefix("s3://").rstrip("/")


def s3_filesystem(**options: Any) -> S3FileSystem:
    """Amazon S3, or whatever speaks like it at AWS_ENDPOINT_URL, which Arrow by itself does not look at."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    known: dict[str, Any] = {"region": region} if region else {}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        known |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    return S3FileSystem(connect_timeout=CONNECT_TIMEOUT, request_timeout=REQUEST_TIMEOUT, **known, **options)
