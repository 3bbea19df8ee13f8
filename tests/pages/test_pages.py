"""Every block of Python and of commands in the README and the documentation runs, and prints what its page shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as fs
import pytest

from fanin.stores.place import s3_filesystem
from pages.blocks import ROOT, blocks, pages
from pages.likeness import unlike
from pages.scenes import IN_BUCKETS, SCENES, debugger_trial

SECONDS = 300
"""Of a page on a busy machine; the longest proves a repair, and runs two trainings."""

NOT_RUN = 8
"""Blocks that no test runs, each with its reason beside it; more than these would be a habit."""

RUNS = {"python", "console"}

PLAYED = [page for page in pages() if any(b.language in RUNS for b in blocks(page.read_text("utf-8")))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader tries it, with `fanin` and `python` on the path."""
    binaries, home = tmp_path / "bin", tmp_path / "home"
    for made in (binaries, home):
        made.mkdir()
    for name, start in (("fanin", f"{sys.executable} -m fanin"), ("python", sys.executable)):
        (binaries / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (binaries / name).chmod(0o755)
    return home


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user whose bucket holds a job; empty for pages without one."""
    if request.getfixturevalue("page").relative_to(ROOT).as_posix() not in IN_BUCKETS:
        yield {}
        return
    endpoint = f"127.0.0.1:{request.getfixturevalue('s3_port')}"
    keys = {"access_key": "testing", "secret_key": "testing"}
    there = s3_filesystem(
        **keys, endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    there.create_dir("bucket")
    job = debugger_trial(tmp_path / "job")
    fs.copy_files(str(job), "bucket/job/debug-output", fs.LocalFileSystem(), there)
    yield {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{endpoint}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("page", PLAYED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, folder: Path, bucket: dict[str, str]) -> None:
    scene = SCENES.get(page.relative_to(ROOT).as_posix())
    before = folder.parent / "before.py"
    before.write_text(scene(folder) if scene else "", encoding="utf-8")
    here = [str(ROOT / "src"), str(ROOT / "tests")]
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PYTEST"))}
    environment = {
        **known,
        **bucket,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(here),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    played = subprocess.run(
        [sys.executable, "-m", "pages.player", str(page), str(before)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout) == [], "\n\n".join(json.loads(played.stdout))


def test_there_are_pages_to_play() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PLAYED}
    assert {"README.md", "docs/start.md", "docs/guides/debugger.md"} <= names


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    silent = [b.said("not run:") for page in pages() for b in blocks(page.read_text("utf-8"))]
    reasons = [reason for reason in silent if reason]
    assert all(len(reason.split()) >= 3 for reason in reasons)
    assert len(reasons) <= NOT_RUN


PAGE = """\
```python
# name.py
WORD = "right"
```
```python
from name import WORD
print(WORD)
```
```text
{shown}
```
<!-- exits {code} -->
```console
$ python -c 'print("a\\nb\\nc"); raise SystemExit(3)'
a
...
{last}
```
"""


@pytest.mark.parametrize(
    ("shown", "code", "last", "wrong"),
    [("right", 3, "c", 0), ("wrong", 3, "b", 2)],
)
def test_a_page_that_is_wrong_is_found(folder: Path, shown: str, code: int, last: str, wrong: int) -> None:
    page, before = folder.parent / "page.md", folder.parent / "before.py"
    page.write_text(PAGE.format(shown=shown, code=code, last=last), encoding="utf-8")
    before.write_text("")
    path = f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "pages.player", str(page), str(before)]
    played = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert len(json.loads(played.stdout)) == wrong


def test_output_may_differ_in_the_last_digit_and_nowhere_else() -> None:
    assert unlike(["loss 2.303 at step 0"], ["loss 2.304 at step 0"]) == ""
    assert unlike(["loss 2.303 at step 0"], ["loss 2.304 at step 5"]) != ""
    assert unlike(["a"], ["a", "b"]) != ""
    assert unlike(["a", "..."], ["a", "b"]) == ""
