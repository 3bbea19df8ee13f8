"""What a page of the documentation holds that can be run.

A block of Python is run, or is a file where its first line is a comment with nothing but a name; one of text right
after it is what it prints. A block of commands has a prompt before each, and what they print below it, `...` standing
for any lines. Comments before a block say what a reader sees anyway: `<!-- exits 1 -->`, `<!-- file: rule.json -->`,
and, with its reason, `<!-- not run: why -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"```(\w*)$")
REMARK = re.compile(r"<!-- (exits|file:|not run:) (.+) -->$")
FILE = re.compile(r"# ([\w./-]+\.\w+)$")
PROMPT = "$ "


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines of a page between fences.

    Attributes:
        line: Where it begins.
        language: What the fence says.
        text: The lines.
        remark: What the comment before it is about, and what it says.
        follows: The language of the block right before it.
    """

    line: int
    language: str
    text: str
    remark: tuple[str, str]
    follows: str

    def said(self, about: str) -> str:
        """What the comment before it says of this."""
        return self.remark[1] if self.remark[0] == about else ""

    @property
    def file(self) -> str:
        """The name of the file that it is; empty where it is none."""
        first = FILE.match(self.text.partition("\n")[0]) if self.language == "python" else None
        return first[1] if first else self.said("file:")

    @property
    def is_output(self) -> bool:
        """Whether it is what the Python before it prints."""
        return self.language == "text" and self.follows == "python"

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command and the lines below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith(PROMPT):
                found.append((line.removeprefix(PROMPT), []))
            elif found and found[-1][0].endswith("\\"):
                found[-1] = (f"{found[-1][0]}\n{line}", [])
            elif found:
                found[-1][1].append(line)
        return found


def pages() -> list[Path]:
    """The README and every page of the documentation but those of the codes, which hold no blocks."""
    docs = ROOT / "docs"
    written = sorted(path for path in docs.rglob("*.md") if not {"_build", "codes"} & set(path.parts))
    return [ROOT / "README.md", *written]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    opened, lines, remark, last = 0, [""], ("", ""), ("", 0)
    language = ""
    for number, line in enumerate(page.splitlines(), 1):
        if opened and line.strip() == "```":
            text = "\n".join(lines)
            follows = last[0] if opened - last[1] <= 2 else ""
            yield Block(opened, language, text, remark, follows)
            opened, remark, last = 0, ("", ""), (language, number)
        elif opened:
            lines.append(line)
        elif fence := FENCE.match(line):
            opened, language, lines = number, fence[1], []
        elif said := REMARK.match(line):
            remark = (said[1], said[2])
        elif line.strip():
            remark = ("", "")
