"""Write a page for each rule, from its docstring: `./dev docs`; with --check, fail where one is stale.

The pages are docs/codes/<CODE>.md, and index.md lists them. Pages of rules that are gone are removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fanin import explain
from fanin.judgement import rule_types
from fanin.rule import Rule
from fanin.trust import DOUBTS, Doubt

CODES = Path(__file__).parent / "codes"


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
    return "\n".join([*head, "|---|---|---|", *rows, ""])


def wanted() -> dict[str, str]:
    """Text by file name."""
    pages = {f"{rule.code}.md": page(rule) for rule in rule_types()}
    return {"index.md": index()} | pages | {f"{doubt.code}.md": doubt_page(doubt) for doubt in DOUBTS}


def written(folder: Path) -> dict[str, str]:
    """Text by file name, as it is now."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}


def write(folder: Path, pages: dict[str, str]) -> None:
    """Make the folder hold these pages and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in written(folder).keys() - pages.keys():
        (folder / name).unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(args: list[str]) -> int:
    """Write the pages, or compare them; 1 where one is stale."""
    pages, present = wanted(), written(CODES)
    stale = sorted(name for name in pages.keys() | present.keys() if pages.get(name) != present.get(name))
    if "--check" not in args:
        write(CODES, pages)
        sys.stdout.write(f"{len(pages)} pages in docs/codes, {len(stale)} of them new, changed or removed\n")
        return 0
    if stale:
        sys.stderr.write(f"stale in docs/codes: {', '.join(stale)}; run ./dev docs and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
