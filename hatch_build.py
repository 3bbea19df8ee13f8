"""Builds the library in C; where that fails, the package comes without it and is only slower."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCE, LIBRARY = Path("src/fanin/onepass.c"), Path("src/fanin/_onepass.so")

FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11", "-ffp-contract=fast", "-fvisibility=default")
"""-O3 for loops by vectors; contraction, because a fused multiply-add rounds once where two steps round twice."""

PLAIN = "-DPLAIN"
"""Without a version of each loop for newer processors, which older compilers (GCC before 12) cannot make."""


class Build(BuildHookInterface[Any]):
    """Called by hatchling before it gathers the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, and name the system that the wheel is for."""
        root = Path(self.root)
        try:
            build(root / SOURCE, root / LIBRARY)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or error
            print(f"fanin: built without its C library, capture is slower: {why}", file=sys.stderr)  # noqa: T201
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"


def build(source: Path, library: Path) -> None:
    """Compile, try, and put in place at once: another build may be under way, another process may have it open.

    Raises:
        OSError: There is no compiler, or what it makes cannot be loaded.
        CalledProcessError: It refuses.
    """
    handle, name = tempfile.mkstemp(".so", "_onepass.", library.parent)
    os.close(handle)
    made = Path(name)
    try:
        try:
            compiled(source, made)
        except subprocess.CalledProcessError:
            compiled(source, made, PLAIN)
        ctypes.CDLL(str(made)).fanin_bins()
        made.chmod(0o755)
        made.replace(library)
    finally:
        with suppress(FileNotFoundError):
            made.unlink()


def compiled(source: Path, library: Path, *more: str) -> None:
    """One run of the compiler, without flags that let NaN be anything."""
    compiler = [word for word in shlex.split(os.environ.get("CC", "cc")) if "fast" not in word]
    which = f"-DSOURCE={crc32(source.read_bytes())}u"
    command = [*compiler, *FLAGS, *more, which, "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
