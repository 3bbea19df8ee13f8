"""Whole trials of which a file is spoiled, loaded, verified and judged: only errors that say what is wrong may come.

PYTHONPATH=tests python -m stores.fuzzing ours 5000 1     so many times, from this seed; or smdebug
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fanin.errors import FaninError
from fanin.examine import judge, load_trial
from fanin.shelf import verify
from fanin.stores.parquet import ParquetStore
from fanin.synthetic import mlp

from .smdebug_trial import pytorch
from .smdebug_writer import TrialWriter

LONGEST_S = 60
"""Seconds after which one hangs, on a machine that is busy with other things."""

ODD = [
    0,
    -1,
    1,
    2**31,
    2**63,
    1e308,
    float("nan"),
    "",
    "../../../../etc/passwd",
    "/dev/zero",
    "\x00",
    None,
    True,
    [],
    {},
]
"""What may stand in a JSON where something else belongs."""


def spoil(path: Path, chance: random.Random) -> None:
    """Change a file, or what its name leads to."""
    ways = [_stretch, _stretch, _stretch, _bits, _bits]
    if path.suffix in (".json", ".ts"):
        ways += [_json, _json, _json, _deep]
    chance.choice([*ways, _link, _swap])(path, chance)


def _stretch(path: Path, chance: random.Random) -> None:
    whole = path.read_bytes() or b"\0"
    start = chance.randrange(len(whole))
    end = min(len(whole), start + chance.choice([1, 1, 4, 16, 200, len(whole)]))
    stretch = whole[start:end]
    others = [b"", 2 * stretch, bytes(len(stretch)), b"\xff" * len(stretch), chance.randbytes(len(stretch))]
    path.write_bytes(whole[:start] + chance.choice(others) + whole[end:])


def _bits(path: Path, chance: random.Random) -> None:
    found = bytearray(path.read_bytes() or b"\0")
    for _ in range(chance.choice([1, 2, 8])):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    path.write_bytes(found)


def _json(path: Path, chance: random.Random) -> None:
    try:
        said = json.loads(path.read_bytes())
    except ValueError:
        return
    path.write_text(json.dumps(_odd(said, chance)))


def _odd(said: Any, chance: random.Random) -> Any:
    """The same with one value in the place of another."""
    if not isinstance(said, dict | list) or not said or chance.random() < 0.1:
        near = [said * 2, said[:-1]] if isinstance(said, str | list) else []
        return chance.choice([*ODD, *near])
    key = chance.choice(list(said) if isinstance(said, dict) else list(range(len(said))))
    changed = said.copy()
    changed[key] = _odd(said[key], chance)
    return changed


def _deep(path: Path, chance: random.Random) -> None:
    path.write_text(chance.choice(["[", '{"a":']) * 100_000)


def _link(path: Path, chance: random.Random) -> None:
    target = chance.choice(["/etc/passwd", "/dev/zero", "..", path.name, "nowhere"])
    path.unlink()
    path.symlink_to(target)


def _swap(path: Path, chance: random.Random) -> None:
    """Another of its files under this name, or none."""
    others = [each for each in path.parent.parent.rglob("*") if each.is_file() and each != path]
    if others and chance.random() < 0.7:
        shutil.copyfile(chance.choice(others), path)
    else:
        path.unlink()


def fuzz(sound: Path, rounds: int, seed: int) -> Counter[str]:
    """Spoil copies of a trial; how many of them were refused, or read, and what else came."""
    chance, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            copy = Path(folder) / "copy"
            shutil.copytree(sound, copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file())
            for path in chance.sample(files, chance.choice([1, 1, 1, 2])):
                if path.exists():
                    spoil(path, chance)
            outcome = _outcome(lambda copy=copy: _use(copy))  # type: ignore[misc]
            if outcome not in ("refused", "read"):
                kept = Path(tempfile.gettempdir()) / f"fanin-fuzz-{seed}-{number}"
                shutil.copytree(copy, kept, symlinks=True)
                print(f"{kept}: {outcome}", file=sys.stderr)
            found[outcome.splitlines()[-1] if outcome else outcome] += 1
            shutil.rmtree(copy)
    return found


def _use(place: Path) -> None:
    trial = load_trial(place)
    verify(place)
    judge(trial)


def _outcome(act: Callable[[], None]) -> str:
    signal.alarm(LONGEST_S)
    try:
        act()
    except FaninError as error:
        return "refused" if error.next_step else f"no way out: {error}"
    except BaseException:  # noqa: BLE001  # that is what is looked for
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return "read"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"{LONGEST_S} s")


def ours(place: Path) -> Path:
    """Two steps of a small network by two workers, a part each."""
    trial = mlp((8, 16, 4), steps=2)
    for worker in range(2):
        writer = ParquetStore(place).begin(worker, {"run_id": "a"})
        writer.describe(trial.spec)
        for step in trial.steps:
            writer.append(step)
            writer.flush()
        writer.close()
    return place


def smdebug(place: Path) -> Path:
    """Two steps as SageMaker Debugger keeps them."""
    return TrialWriter(place).collections().step(0, pytorch(0)).step(1, pytorch(1)).end().folder


MAKERS = {"ours": ours, "smdebug": smdebug}


def main(which: str, rounds: str, seed: str) -> None:
    """Do as the command line says."""
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        sound = MAKERS[which](Path(folder) / "trial")
        began = time.monotonic()
        found = fuzz(sound, int(rounds), int(seed))
    print(json.dumps({"seconds": round(time.monotonic() - began), **found}))
    sys.exit(any(outcome not in ("refused", "read") for outcome in found))


if __name__ == "__main__":
    main(*sys.argv[1:])
