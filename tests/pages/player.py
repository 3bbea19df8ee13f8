"""Play one page in a folder: `python player.py PAGE` prints, as JSON, what went wrong with each of its blocks.

A process of its own, which loads the framework once and computes nothing itself: each command is a child of it that is
there at once, and the Python of a page, whose blocks share their names as a reader's would, is another.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pages.blocks import Block, blocks
from pages.likeness import unlike

SHELL = set("|&;<>$`(){}*?\n")
"""Characters that only a shell understands."""


def forked(work: Callable[[], int], output: Path) -> int:
    """Do something in a child; its exit code. What it prints, to either stream, is in a file."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(target, stream)
            code = work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:  # noqa: BLE001  # the parent must hear of it
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(line: str) -> Callable[[], int]:
    """What runs a line: fanin in the child itself, which is there at once, and all else by a shell."""

    def ours() -> int:
        from fanin.cli import main

        sys.argv = ["fanin", *words[1:]]
        main(words[1:])
        return 0

    words = [] if SHELL & set(line) else shlex.split(line, comments=True)
    if words[:1] == ["fanin"] and "run" not in words[:2]:
        return ours
    return lambda: subprocess.run(["bash", "-e", "-c", line], check=False).returncode


class Session:
    """A Python that keeps its names from block to block."""

    def __init__(self, before: str) -> None:
        self.hand, theirs = Pipe()
        self.output = Path("python.out").absolute()
        self.child = os.fork()
        if self.child == 0:
            _obey(theirs, self.output, before)
            os._exit(0)

    def run(self, text: str, line: int) -> tuple[str, str]:
        """What went wrong, and what was printed."""
        self.hand.send((text, line))
        wrong: str = self.hand.recv()
        return wrong, self.output.read_text(encoding="utf-8")

    def close(self) -> None:
        """The end."""
        self.hand.send(None)
        os.waitpid(self.child, 0)


def _obey(hand: Connection, output: Path, before: str) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    sys.path.insert(0, os.getcwd())
    target = os.open(output, os.O_RDWR | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(target, stream)
    exec(compile(before, "<before the page>", "exec"), names)
    while (asked := hand.recv()) is not None:
        text, line = asked
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        wrong = ""
        try:
            exec(compile("\n" * line + text, "<page>", "exec"), names)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the page is wrong
            wrong = f"{type(error).__name__}: {error}"
        sys.stdout.flush()
        hand.send(wrong)


def played(page: str, before: str) -> list[str]:
    """What went wrong, a line each."""
    found: list[str] = []
    session, printed = Session(before), ""
    for block in blocks(page):
        where = f"line {block.line}: "
        if block.said("not run:"):
            continue
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            wrong, printed = session.run(block.text, block.line)
            found += [where + wrong] if wrong else []
        elif block.is_output:
            wrong = unlike(block.text.splitlines(), printed.splitlines())
            found += [f"{where}shown {wrong!r}, printed:\n{printed}"] if wrong else []
        elif block.language == "console":
            found += [where + wrong for wrong in _commanded(block)]
    session.close()
    return found


def _commanded(block: Block) -> list[str]:
    allowed = int(block.said("exits") or 0)
    wrong, codes = [], []
    for line, shown in block.commands:
        output = Path("command.out").absolute()
        codes.append(forked(command(line), output))
        printed = output.read_text(encoding="utf-8", errors="replace")
        if codes[-1] not in (0, allowed):
            wrong.append(f"`{line}` exits with {codes[-1]}:\n{printed}")
        elif shown and (missing := unlike(shown, printed.splitlines())):
            wrong.append(f"`{line}`: shown {missing!r}, printed:\n{printed}")
    if allowed and allowed not in codes:
        wrong.append(f"no command exits with {allowed}: {codes}")
    return wrong


def warm() -> Mapping[str, Any]:
    """Load what every block needs, and start no thread."""
    import torch

    import fanin.cli
    import fanin.repairs

    torch.set_num_threads(1)
    return vars(fanin.cli)


if __name__ == "__main__":
    warm()
    text, first = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]).read_text(encoding="utf-8")
    json.dump(played(text, first), sys.stdout)
