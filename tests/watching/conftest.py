"""Whatever a watch hangs up, nothing of it stays in torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .loops import require_nothing_global


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    torch.set_num_threads(1)
    require_nothing_global()
    yield
    require_nothing_global()
