"""The table of stores. A store, and the library that it stands on, is imported only once it is opened."""

from __future__ import annotations

import os
import re
from importlib import import_module

from fanin.errors import UsageError
from fanin.stores.base import Store

STORES = {
    "": "fanin.stores.parquet:ParquetStore",
    "file": "fanin.stores.parquet:ParquetStore",
}
"""Scheme of an address (none: a path) -> module and class, which is called with the whole address."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""Two letters at least, so that the drive of a Windows path is none."""


def open_store(uri: str | os.PathLike[str]) -> Store:
    """The store at an address, whether or not there is a trial yet.

    Args:
        uri: A directory, as a path or as `file://...`.

    Raises:
        UsageError: This cannot be the address of a trial.
    """
    address = _address(uri)
    scheme = SCHEME.match(address)
    entry = STORES.get(scheme[1] if scheme else "")
    if entry is None:
        raise UsageError(
            "trials are not kept at this kind of address",
            got=address,
            expected="a directory, as a path or as file://...",
            next_step="write to a local directory and copy it from there",
        )
    module, name = entry.split(":")
    store: Store = getattr(import_module(module), name)(address)
    return store


def _address(uri: str | os.PathLike[str]) -> str:
    if not isinstance(uri, str | os.PathLike):
        got = f"{type(uri).__name__} {uri!r}"
    elif os.fspath(uri) in ("", "memory"):
        got = repr(os.fspath(uri))
    else:
        return os.fsdecode(uri)
    raise UsageError(
        "this is not the address of a trial",
        got=got,
        expected="a directory, as a path or as file://...",
        next_step="name a directory, e.g. runs/exp1; "
        "a trial in memory is reached through the object that watch() returned",
    )
