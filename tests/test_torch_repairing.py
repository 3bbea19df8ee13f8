"""A plan on a real model: one forward pass, nothing but the parameters it names, and code that says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.adapters.torch import TorchAdapter
from fanin.adapters.torch.pasting import expression
from fanin.change import Plan, Treatment
from fanin.errors import BatchError, UsageError
from fanin.trial import ModelSpec
from faults import WIDTH, Net, batches, built, loss_fn, tokens
from no_trace import Untouched, bits

ADAPTER = TorchAdapter()
INPUTS = batches(1)[0][0]


def spec_of(model: nn.Module, batch: Any = INPUTS) -> ModelSpec:
    return ADAPTER.trace(model, batch, None).spec


def treated(model: nn.Module, treatments: dict[str, Treatment], batch: Any = INPUTS, **options: Any) -> Any:
    plan = Plan(treatments, named=options.pop("named", False))
    return ADAPTER.treat(model, batch, None, spec_of(model, batch), plan, options.pop("seed", 0))


def changed_names(model: nn.Module, act: Callable[[], object]) -> set[str]:
    before = {name: bits(p) for name, p in model.named_parameters()}
    act()
    return {name for name, p in model.named_parameters() if bits(p) != before[name]}


def test_only_what_is_named_changes() -> None:
    model = Net()
    assert changed_names(model, lambda: treated(model, {"blocks.1.weight": Treatment.REDRAW})) == {
        "blocks.1.weight"
    }


def test_a_plan_takes_one_forward_pass() -> None:
    model, calls = Net(), []
    spec = spec_of(model)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    plan = Plan({f"blocks.{i}.weight": Treatment.REDRAW for i in range(6)})
    ADAPTER.treat(model, INPUTS, None, spec, plan, 0)
    handle.remove()
    assert len(calls) == 1


class Shifting(nn.Module):
    """Dropout, running statistics, and something of everything that a pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.drop(torch.relu(self.norm(self.inner(x)))))


def test_buffers_modes_attributes_and_random_state_stay() -> None:
    model = Shifting()
    state = torch.get_rng_state()
    before = {name: bits(b) for name, b in model.named_buffers()}
    treated(model, {"head.weight": Treatment.REDRAW})
    assert {name: bits(b) for name, b in model.named_buffers()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.calls, model.drop.training, model.training) == (0, True, True)


def test_dropout_has_no_part_in_the_scale() -> None:
    model = Shifting()
    nn.init.zeros_(model.head.bias)
    made = treated(model, {"head.weight": Treatment.REDRAW})
    model.drop.p = 0.0
    assert float(model(INPUTS).detach().std()) == pytest.approx(0.3, rel=0.02)
    assert made.changes[0].scheme == "he_normal"


def test_equal_seeds_draw_equal_bits_and_others_do_not() -> None:
    drawn = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(noise)
        model = built("a layer of zeros")
        treated(model, {"blocks.2.weight": Treatment.REDRAW}, seed=seed)
        drawn.append(bits(model.blocks[2].weight))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_drawn_in_float32(dtype: torch.dtype) -> None:
    """Equal to the float32 draw as far as the format goes: one more rounding when the pass scales it."""
    whole, short = built("a layer of zeros"), built("a layer of zeros").to(dtype)
    treated(whole, {"blocks.2.weight": Treatment.REDRAW})
    treated(short, {"blocks.2.weight": Treatment.REDRAW}, batch=INPUTS.to(dtype))
    assert short.blocks[2].weight.dtype is dtype
    tolerance = 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert torch.allclose(short.blocks[2].weight.float(), whole.blocks[2].weight, rtol=tolerance, atol=1e-3)


class Shared(nn.Module):
    """One layer, run four times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.relu(self.layer(x))
        return self.head(x)


def test_of_a_shared_module_the_first_call_sets_the_scale() -> None:
    model = Shared()
    treated(model, {"layer.weight": Treatment.REDRAW, "layer.bias": Treatment.RESET})
    assert float((INPUTS @ model.layer.weight.detach().T).square().mean().sqrt()) == pytest.approx(
        1.0, rel=0.01
    )


class Tied(nn.Module):
    """An embedding that is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(x)[:, 0]))


def test_a_tie_is_kept_and_said() -> None:
    model = Tied()
    made = fanin.repair(
        model,
        [(x, x[:, 0]) for x, _ in tokens()],
        loss_fn,
        layers=["embedding"],
        apply=True,
        prove=False,
        force=True,
    )
    assert model.head.weight is model.embedding.weight
    assert made.repair is not None
    (change,) = made.repair.changes
    assert (change.parameter, change.tied_to) == ("embedding.weight", ("head.weight",))
    assert change.after.rms == pytest.approx(WIDTH**-0.5, rel=0.1)


def test_what_is_frozen_stays_unless_it_is_named_or_broken() -> None:
    model = Net()
    model.blocks[1].weight.requires_grad_(False)
    names = {f"blocks.{i}.weight": Treatment.REDRAW for i in (0, 1)}
    assert changed_names(model, lambda: treated(model, names)) == {"blocks.0.weight"}
    assert "blocks.1.weight" in changed_names(model, lambda: treated(model, names, named=True, seed=1))
    assert not model.blocks[1].weight.requires_grad


def test_a_forget_gate_starts_open_and_a_kernel_orthogonal() -> None:
    model = built("recurrent kernel x 20")
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    made = treated(model, {f"lstm.{name}": Treatment.REDRAW for name in names}, batch=tokens(1)[0][0])
    for gate in model.lstm.weight_hh_l0.split(WIDTH):
        assert torch.allclose(gate @ gate.T, torch.eye(WIDTH), atol=1e-4)
    both = model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0
    assert torch.equal(both.view(4, WIDTH).mean(dim=1), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    pasted = built("recurrent kernel x 20")
    exec(made.code, {"model": pasted, "torch": torch, "nn": nn})
    assert torch.equal(pasted.lstm.bias_hh_l0, model.lstm.bias_hh_l0)
    first = pasted.lstm.weight_hh_l0[:WIDTH]
    assert torch.allclose(first @ first.T, torch.eye(WIDTH), atol=1e-4)


def test_what_fails_leaves_the_parameters() -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            if bool(self.blocks[0].weight.abs().sum() > 0):
                raise RuntimeError("not these weights")
            return super().forward(x)

    model = Picky()
    nn.init.zeros_(model.blocks[0].weight)
    with Untouched(model), pytest.raises(BatchError, match="newly drawn weights"):
        treated(model, {"blocks.0.weight": Treatment.REDRAW})


def test_lazy_and_meta_parameters_are_refused() -> None:
    with pytest.raises(UsageError, match="a parameter is lazy"):
        ADAPTER.copy(nn.LazyLinear(3))
    with pytest.raises(UsageError, match="on the meta device"):
        ADAPTER.copy(nn.Linear(3, 3, device="meta"))


class Packed(Tensor):
    """A tensor of another class, as quantized weights are."""

    def new_empty(self, *given: Any, **named: Any) -> Packed:
        return super().new_empty(*given, **named).as_subclass(Packed)


def test_tensors_of_other_classes_stay_as_they_are() -> None:
    model = Net()
    model.blocks[0].weight = nn.Parameter(model.blocks[0].weight.detach().as_subclass(Packed))
    assert type(model.blocks[0].weight.data) is Packed
    before = model.blocks[0].weight.detach().clone()
    made = fanin.initialize(model, INPUTS)
    assert "blocks.0.weight" not in made.parameters
    assert "blocks.1.weight" in made.parameters
    assert torch.equal(model.blocks[0].weight, before)


def test_weights_kept_as_length_and_direction_are_drawn_together() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.ReLU(), nn.Linear(WIDTH, 5)
    )
    with torch.no_grad():
        model[0].parametrizations.weight.original1.fill_(0.05)
    made = fanin.initialize(model, INPUTS)
    direction = model[0].parametrizations.weight.original1
    length = model[0].parametrizations.weight.original0
    assert torch.allclose(direction.norm(dim=1, keepdim=True), length)
    exec(made.code, {"model": model, "torch": torch, "nn": nn})
    assert torch.allclose(model[0].parametrizations.weight.original1.norm(dim=1, keepdim=True), length)


def test_sigmoids_are_centred_and_the_code_centres_them() -> None:
    model = nn.Sequential(
        *(m for _ in range(6) for m in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())), nn.Linear(WIDTH, 5)
    )
    made = fanin.initialize(model, INPUTS)
    assert ".flatten(1).sum(1)" in made.code
    with torch.no_grad():
        before = model[:11](INPUTS).mean(dim=0).abs().mean()
        exec(made.code, {"model": model, "torch": torch, "nn": nn})
        after = model[:11](INPUTS).mean(dim=0).abs().mean()
    assert float(before) < 0.05
    assert float(after) < 0.5


class Odd(nn.Module):
    """Names that are no attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"left-hand": nn.ModuleList([nn.Linear(2, 2)])})
        self.add_module("class", nn.Linear(2, 2))
        self.free = nn.ParameterList([torch.zeros(2)])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("towers.left-hand.0.weight", "model.towers['left-hand'][0].weight"),
        ("class.bias", "model.get_submodule('class').bias"),
        ("free.0", "model.free[0]"),
    ],
)
def test_every_name_has_an_expression(path: str, said: str) -> None:
    model = Odd()
    assert expression(model, path) == said
    assert eval(said, {"model": model}) is model.get_parameter(path)
