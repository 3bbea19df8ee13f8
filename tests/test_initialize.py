"""A sound start from scratch, and the assertion for test suites."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fanin
from fanin.errors import BatchError
from fanin.finding import Verdict
from fanin.testing import assert_well_initialized
from faults import CLASSES, WIDTH, Net, batches, built, loss_fn
from no_trace import Untouched, bits
from proofs import paste, values


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ── from scratch, and in tests ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault", ["tiny everywhere", "constant everywhere", "PyTorch's default, deep and narrow"]
)
def test_initialize_gives_a_sound_start(fault: str) -> None:
    model = built(fault)
    made = fanin.initialize(model, batches())
    assert fanin.check(model, batches(), loss_fn).verdict is Verdict.HEALTHY
    assert made.passes == 2
    assert fanin.check(paste(made.code, built(fault)), batches(), loss_fn).verdict is Verdict.HEALTHY


def test_initialize_is_reproducible_whatever_the_global_state() -> None:
    made = []
    for noise in (1, 2):
        model = built("tiny everywhere")
        torch.manual_seed(noise)
        fanin.initialize(model, batches()[0][0], seed=7)
        made.append(values(model))
    assert made[0] == made[1]
    other = built("tiny everywhere")
    fanin.initialize(other, batches()[0][0], seed=8)
    assert values(other) != made[0]


def test_initialize_needs_no_loss_and_leaves_everything_else() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    buffers = {name: bits(b) for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    fanin.initialize(model, batches()[0][0])
    assert {name: bits(b) for name, b in model.named_buffers()} == buffers
    assert torch.equal(torch.get_rng_state(), state)


def test_initialize_keeps_zero_heads_and_priors() -> None:
    model = Net()
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, -4.6)
    fanin.initialize(model, batches())
    assert not model.head.weight.any()
    assert torch.all(model.head.bias == -4.6)


def test_the_assertion_passes_and_fails_with_the_report() -> None:
    assert assert_well_initialized(Net(), batches(), loss_fn).verdict is Verdict.HEALTHY
    with pytest.raises(AssertionError, match=r"not well initialized[\s\S]*POOR  FAN402"):
        assert_well_initialized(built("a layer of zeros"), batches(), loss_fn)


def test_initialize_refuses_what_no_scale_can_be_measured_with() -> None:
    model, (x, _) = Net(), batches(1)[0]
    x = x.clone()
    x[0, 0] = float("nan")
    with Untouched(model), pytest.raises(BatchError, match="the batch holds NaN"):
        fanin.initialize(model, x)


class Energy(nn.Module):
    """Forces as the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        x = x.requires_grad_()
        (force,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return force


def test_initialize_takes_networks_that_differentiate_in_their_forward_pass() -> None:
    made = fanin.initialize(Energy(), batches(1)[0][0])
    assert {change.parameter for change in made.changes} >= {"net.blocks.0.weight", "net.head.weight"}


def test_initialize_leaves_the_random_state_though_the_loader_shuffles() -> None:
    x, y = batches(1)[0]
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    model, before = Net(), torch.get_rng_state()
    fanin.initialize(model, loader, loss_fn)
    assert torch.equal(torch.get_rng_state(), before)
