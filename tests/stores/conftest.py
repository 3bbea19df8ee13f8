"""What every test of a store stands on."""

from __future__ import annotations

import pytest

LAUNCHER = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests decide themselves which run they belong to."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
