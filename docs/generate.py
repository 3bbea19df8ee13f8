"""Write what the documentation reads from elsewhere: `./dev docs`; with --check, fail where something is stale.

A page for each rule, from its docstring: docs/codes/<CODE>.md, listed by index.md; pages of rules that are gone are
removed. And in pages that people write the figures between their marks, from committed results (`figures.py`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import figures
from fanin import explain
from fanin.judgement import rule_types
from fanin.rule import Rule
from fanin.trust import DOUBTS, Doubt

HERE = Path(__file__).parent
CODES = HERE / "codes"
REGION = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def banner(source: str) -> str:
    """A comment that keeps people from editing the page."""
    return f"<!-- Written by `./dev docs` from {source}; edit that instead. -->\n"


def page(rule: type[Rule]) -> str:
    """The page of one rule, as Markdown."""
    source = f"src/{rule.__module__.replace('.', '/')}.py"
    return f"{banner(source)}\n# {rule.code} {rule.name}\n\n{rule.page().rstrip()}\n"


def doubt_page(doubt: Doubt) -> str:
    """The page of one doubt, as Markdown."""
    return f"{banner('src/fanin/trust.py')}\n# {doubt.code} {doubt.name}\n\n{doubt.page}\n"


def index() -> str:
    """The table of all codes, as Markdown."""
    rows = [
        f"| [{code}]({code}.md) | {name} | {headline.replace('|', chr(92) + '|')} |"
        for code, name, headline in explain.rows()
    ]
    head = [
        banner("the rules in src/fanin/rules and src/fanin/trust.py"),
        "# Codes",
        "",
        "| code | name | what it says |",
    ]
    listed = ["", "```{toctree}", ":hidden:", ":glob:", "", "FAN*", "```", ""]
    return "\n".join([*head, "|---|---|---|", *rows, *listed])


def filled(text: str) -> str:
    """A page with its figures as they are now."""
    return REGION.sub(lambda mark: f"{mark[1]}\n{figures.REGIONS[mark[2]]()}\n\n{mark[3]}", text)


def wanted() -> dict[Path, str]:
    """Text by file."""
    pages = {f"{rule.code}.md": page(rule) for rule in rule_types()}
    codes = {"index.md": index()} | pages | {f"{doubt.code}.md": doubt_page(doubt) for doubt in DOUBTS}
    written_by_people = {path: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.md"))}
    marked = {path: filled(text) for path, text in written_by_people.items() if REGION.search(text)}
    return {CODES / name: text for name, text in codes.items()} | marked


def present(pages: dict[Path, str]) -> dict[Path, str]:
    """The same files as they are now, and pages of codes that are gone."""
    files = {path for path in pages if path.exists()} | set(CODES.glob("*.md"))
    return {path: path.read_text(encoding="utf-8") for path in files}


def write(pages: dict[Path, str]) -> None:
    """Make the files hold this, and the folder of codes no other."""
    CODES.mkdir(parents=True, exist_ok=True)
    for path in set(CODES.glob("*.md")) - pages.keys():
        path.unlink()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


def main(args: list[str]) -> int:
    """Write, or compare; 1 where something is stale."""
    pages = wanted()
    now = present(pages)
    stale = sorted(
        str(path.relative_to(HERE)) for path in pages.keys() | now.keys() if pages.get(path) != now.get(path)
    )
    if "--check" not in args:
        write(pages)
        sys.stdout.write(f"{len(pages)} pages in docs, {len(stale)} of them new, changed or removed\n")
        return 0
    if stale:
        sys.stderr.write(f"stale in docs: {', '.join(stale)}; run ./dev docs and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
