"""The table of stores. A store, and the library that it stands on, is imported only once it is opened."""

from __future__ import annotations

import os
import re
from importlib import import_module

from fanin.errors import StoreError, UsageError
from fanin.stores.base import Store

STORES = {
    "": "fanin.stores.parquet:ParquetStore",
    "file": "fanin.stores.parquet:ParquetStore",
    "s3": "fanin.stores.parquet:ParquetStore",
}
"""Scheme of an address (none: a path) -> module and class, which is called with the whole address."""

FOREIGN = {
    "": "fanin.stores.smdebug:SmdebugStore",
    "file": "fanin.stores.smdebug:SmdebugStore",
    "s3": "fanin.stores.smdebug:SmdebugStore",
}
"""The same for trials that others wrote, which are only read."""

ADDRESSES = "a directory, as a path, as file://... or as s3://bucket/..."

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""Two letters at least, so that the drive of a Windows path is none."""


def open_store(uri: str | os.PathLike[str]) -> Store:
    """The store at an address, whether or not there is a trial yet.

    Args:
        uri: A directory, as a path, as `file://...` or as `s3://bucket/...`; ours, or a trial of SageMaker Debugger.

    Raises:
        UsageError: This cannot be the address of a trial.
        StoreError: It cannot be told what is there.
    """
    address = _address(uri)
    found = SCHEME.match(address)
    scheme = found[1].lower() if found else ""
    if scheme not in STORES:
        from fanin.stores.place import shown

        raise UsageError(
            "trials are not kept at this kind of address",
            got=shown(address),
            expected=ADDRESSES,
            next_step="write to a local directory and copy it from there",
        )
    return _opened((FOREIGN if _is_foreign(address) else STORES)[scheme], address)


def _is_foreign(address: str) -> bool:
    """Whether others wrote what is there; where nobody may look, our own store says so when it is asked."""
    from fanin.stores.smdebug import is_smdebug

    try:
        return is_smdebug(address)
    except StoreError:
        return False


def _opened(entry: str, address: str) -> Store:
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
        expected=ADDRESSES,
        next_step="name a directory, e.g. runs/exp1; "
        "a trial in memory is reached through the object that watch() returned",
    )
