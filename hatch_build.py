"""Builds the library in C; where that fails, the package comes without it and is only slower."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCE, LIBRARY = Path("src/fanin/onepass.c"), Path("src/fanin/_onepass.so")

FLAGS = ("-O3", "-shared", "-fPIC", "-std=gnu11", "-ffp-contract=fast", "-fvisibility=default")
"""-O3 for loops by vectors; contraction, because a fused multiply-add rounds once where two steps round twice."""


class Build(BuildHookInterface[Any]):
    """Called by hatchling before it gathers the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, and name the system that the wheel is for."""
        root = Path(self.root)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        made = (root / LIBRARY).with_suffix(".new")
        command = [*compiler, *FLAGS, "-o", str(made), str(root / SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(root / LIBRARY)  # at once: another process may have it open
        except (OSError, subprocess.CalledProcessError) as error:
            (root / LIBRARY).unlink(missing_ok=True)  # of older source
            print(f"fanin: built without its C library ({error}); capture is slower", file=sys.stderr)  # noqa: T201
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"
