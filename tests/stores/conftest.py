"""What every test of a store stands on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fanin.stores.parquet import ParquetStore

from .samples import SPEC, step

LAUNCHER = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests decide themselves which run they belong to."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def shared_trials() -> Path | None:
    """Real trials of SageMaker Debugger with what its own reader read, where this machine has them."""
    named = os.environ.get("FANIN_SMDEBUG_TRIALS")
    found = Path(named) if named else Path(__file__).parents[3] / "shared" / "trials"
    return found if (found / "expected").is_dir() else None


@pytest.fixture
def smdebug_trials() -> Path:
    """The folder of those trials."""
    found = shared_trials()
    if found is None:
        pytest.skip("no trials of SageMaker Debugger here; FANIN_SMDEBUG_TRIALS says where they are")
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where there is no trial yet."""
    return tmp_path / "exp1"


@pytest.fixture
def written(place: Path) -> Path:
    """A closed trial of two steps, and so of the parts 0, 1, 2 and the end."""
    writer = ParquetStore(place).begin()
    writer.describe(SPEC)
    for index in range(2):
        writer.append(step(index))
        writer.flush()
    writer.close()
    return place
