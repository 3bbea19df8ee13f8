"""What check looks at besides the model as it is: five steps, a sound re-draw, a race; none of them leaves a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fanin
from fanin.adapters.torch import looks, restore
from fanin.errors import LossError, UsageError
from fanin.finding import Verdict
from fanin.measures import uninformed_loss
from fanin.race import RaceOptions
from fanin.trial import NETWORK_INPUT, RECHECK, Mode, Role, Step
from no_trace import Untouched, bits

INPUTS, WIDTH, CLASSES, SIZE = 6, 8, 3, 24
STEPS = [(Mode.TRAIN, i) for i in range(RECHECK + 1)]

cross_entropy = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Net(nn.Module):
    """Norm and dropout, so that state and random numbers change; it notes the mean of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc2(self.drop(torch.relu(self.norm(self.fc1(x)))))
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(mean: float = 0.0, seed: int = 1) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return mean + torch.randn(SIZE, INPUTS, generator=made), torch.randint(CLASSES, (SIZE,), generator=made)


def plain(depth: int, std: Callable[[int], float]) -> nn.Sequential:
    """ReLU layers without biases' help."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 10)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std(layer.in_features))
            nn.init.zeros_(layer.bias)
    return model


def he(fan_in: int) -> float:
    return float((2 / fan_in) ** 0.5)


def seen(report: fanin.Report) -> list[tuple[Mode, int]]:
    return [(step.mode, step.index) for step in report.trial.steps]


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "two groups": lambda model: torch.optim.AdamW(
        [{"params": model.fc1.parameters(), "lr": 0.1}, {"params": model.fc2.parameters()}], lr=1e-3
    ),
    "a class": lambda model: torch.optim.Adam,
    "a function": lambda model: lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


# ── no trace ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("training", [True, False])
def test_five_steps_and_a_redraw_leave_no_trace(name: str, training: bool) -> None:
    model, (x, y) = net().train(training), batch()
    optimizer = OPTIMIZERS[name](model)
    for p in model.fc1.parameters():
        p.grad = torch.full_like(p, 3.0)
    with Untouched(model, x, y):
        report = fanin.check(model, (x, y), cross_entropy, optimizer=optimizer)
    assert seen(report) == [*STEPS, (Mode.REFERENCE, 0)]


def test_the_state_and_the_settings_of_an_optimizer_that_has_trained_stay() -> None:
    model, (x, y) = net(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert kept
    with Untouched(model, x, y, kept, optimizer.param_groups, list(optimizer.state.values())):
        fanin.check(model, (x, y), cross_entropy, optimizer=optimizer)


def test_training_after_such_a_check_is_training_without_one() -> None:
    def trained(checked: bool) -> list[Any]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            if checked:
                fanin.check(model, batch(), cross_entropy, optimizer=optimizer)
            optimizer.zero_grad()
            cross_entropy(model(batch()[0]), batch()[1]).backward()
            optimizer.step()
        return [bits(t) for t in model.state_dict().values()]

    assert trained(checked=True) == trained(checked=False)


def test_a_graph_that_waits_for_its_backward_pass_does_not_notice() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)), batch()
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    loss = cross_entropy(model(x), y)
    fanin.check(model, (x, y), cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    loss.backward()
    assert [bits(p.grad) for p in model.parameters()] == [bits(g) for g in expected]


class Stop(BaseException):
    """Raised by nobody but these tests."""


class RaisingAt:
    """A loss that raises at its n-th call: 0 to 5 are the steps, then comes the re-draw or the constant output."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.left, self.error = call, error

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy."""
        self.left -= 1
        if self.left < 0:
            raise self.error
        return cross_entropy(output, target)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), Stop()], ids=repr)
@pytest.mark.parametrize("call", [0, 1, 3, RECHECK])
def test_after_an_exception_in_any_step_there_is_no_trace_either(call: int, error: BaseException) -> None:
    model, (x, y) = net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = LossError if isinstance(error, Exception) else type(error)
    with Untouched(model, x, y, optimizer.state, optimizer.param_groups):
        if call and isinstance(error, Exception):  # a later step that fails takes nothing away from step 0
            trial = fanin.check(model, (x, y), RaisingAt(call, error), optimizer=optimizer).trial
            assert [step.index for step in trial.train_steps] == list(range(call))
            assert f"after {call} steps of SGD" in " ".join(trial.spec.notes)
        else:
            with pytest.raises(expected):
                fanin.check(model, (x, y), RaisingAt(call, error), optimizer=optimizer)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_a_redraw_that_fails_is_left_out_and_one_that_is_interrupted_leaves_no_trace(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def redraw(model: nn.Module, *args: Any) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(7.0)
        raise error

    monkeypatch.setattr(looks, "redraw", redraw)
    model, (x, y) = net(), batch()
    with Untouched(model, x, y):
        if isinstance(error, Exception):
            assert fanin.check(model, (x, y), cross_entropy).trial.reference is None
        else:
            with pytest.raises(KeyboardInterrupt):
                fanin.check(model, (x, y), cross_entropy)


def test_a_race_leaves_no_trace() -> None:
    model, given = net(), [batch(seed=i) for i in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Untouched(model, given, optimizer.state, optimizer.param_groups):
        report = fanin.check(
            model, given, cross_entropy, optimizer=optimizer, race=RaceOptions(steps=2, most=2)
        )
    assert report.trial.race is not None
    assert report.trial.race.steps == 2
    assert "race" not in " ".join(report.diagnosis.not_looked_at)


def test_a_race_may_be_asked_for_by_a_word() -> None:
    model, given = nn.Linear(INPUTS, CLASSES), [batch(seed=i) for i in range(4)]
    with Untouched(model, given):
        assert fanin.check(model, given, cross_entropy, race=True).trial.race is not None


# ── the optimizer ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "adapts"), [("SGD", False), ("Adam", True), ("a function", False)])
def test_the_trial_knows_the_optimizer(name: str, adapts: bool) -> None:
    model = net()
    trial = fanin.check(model, batch(), cross_entropy, optimizer=OPTIMIZERS[name](model)).trial
    assert trial.adapts is adapts
    assert fanin.check(model, batch(), cross_entropy).trial.adapts


def test_each_group_keeps_its_settings_and_the_steps_are_the_optimizers() -> None:
    """With a learning rate of 0 in one group its weights stay; the others move as five of the user's steps would."""
    model = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    trial = fanin.check(model, batch(), cross_entropy, optimizer=torch.optim.SGD(groups, lr=0.1)).trial
    updates = trial.steps[RECHECK].of(Role.UPDATE)
    assert updates["0.weight"].summary.is_zero
    x, y = batch()
    before, optimizer = model[2].weight.detach().clone(), torch.optim.SGD(model[2].parameters(), lr=0.1)
    losses = []
    for _ in range(RECHECK + 1):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        if len(losses) <= RECHECK:
            optimizer.step()
    assert [step.loss for step in trial.train_steps] == pytest.approx(losses)
    change = (model[2].weight - before).detach()
    assert updates["2.weight"].summary.rms == pytest.approx(float(change.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Adam", "this is no optimizer"),
        (lambda parameters: 3, "the function given as optimizer does not make one"),
        (torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), "holds none of this model's parameters"),
    ],
    ids=["text", "a function of something else", "of another model"],
)
def test_what_is_no_optimizer_of_this_model_is_refused(given: Any, says: str) -> None:
    model = net()
    with Untouched(model), pytest.raises(UsageError, match=says):
        fanin.check(model, batch(), cross_entropy, optimizer=given)


# ── several batches ─────────────────────────────────────────────────────────────────────────────────────────


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [batch(mean=10.0 * i, seed=i) for i in range(4)]


def loader() -> DataLoader[Any]:
    x, y = (torch.cat(parts) for parts in zip(*pairs(), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=SIZE)


def endless() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from pairs()


FORMS: dict[str, Callable[[], Any]] = {
    "a list of pairs": pairs,
    "a list of lists": lambda: [[x, y] for x, y in pairs()],
    "a list of mappings": lambda: [{"input": x, "labels": y} for x, y in pairs()],
    "DataLoader": loader,
    "a generator": endless,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_step_gets_a_batch_of_its_own_and_the_redraw_the_first(form: str) -> None:
    given: list[float] = []
    model = nn.Linear(INPUTS, CLASSES)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(float((args or tuple(kwargs.values()))[0].mean())),
        with_kwargs=True,
    )
    fanin.check(model, FORMS[form](), cross_entropy, optimizer=torch.optim.SGD)
    assert [round(mean, -1) for mean in given] == [0.0, 10.0, 20.0, 30.0, 0.0, 10.0, 0.0]


@pytest.mark.parametrize("form", FORMS)
def test_without_an_optimizer_the_first_batch_counts(form: str) -> None:
    model = nn.Linear(INPUTS, CLASSES)
    report = fanin.check(model, FORMS[form](), cross_entropy)
    assert seen(report) == [(Mode.TRAIN, 0), (Mode.REFERENCE, 0)]
    first = fanin.check(model, pairs()[0], cross_entropy)
    assert report.trial.steps[0].loss == first.trial.steps[0].loss


# ── what is seen ────────────────────────────────────────────────────────────────────────────────────────────


def roles(step: Step) -> set[Role]:
    return {o.role for o in step.observations}


def test_each_look_sees_what_the_rules_need_of_it() -> None:
    model = net()
    trial = fanin.check(
        model, batch(), cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    ).trial
    start, *between, last = trial.train_steps
    assert {Role.WEIGHT, Role.INPUT, Role.OUTPUT, Role.UNINFORMED_LOSS} <= roles(start)
    assert Role.UPDATE not in roles(start)
    assert {Role.OUTPUT_GRAD, Role.INPUT, Role.UPDATE} <= roles(last)
    assert not any({Role.INPUT, Role.OUTPUT} & roles(step) for step in between)
    assert trial.reference is not None
    assert {Role.INPUT, Role.OUTPUT_GRAD} <= roles(trial.reference)
    assert trial.looks(Role.OUTPUT_GRAD) == (start, last)


def test_the_redraw_is_another_draw_of_the_same_network() -> None:
    trial = fanin.check(plain(8, lambda fan_in: 1e-3), _data(), cross_entropy).trial
    assert trial.start is not None
    assert trial.reference is not None
    inputs = [step.first(Role.INPUT) for step in (trial.start, trial.reference)]
    assert inputs[0]["16"].summary.unit_variance < 1e-20
    assert inputs[1]["16"].summary.unit_variance > 1e-2
    part = _data()[0][: inputs[1]["0"].shape[0]]
    assert inputs[1]["0"].summary.mean == pytest.approx(part.mean().item(), rel=1e-5)  # of the same batch


@pytest.mark.parametrize("shares", [(12, 12, 0), (20, 2, 2), (8, 8, 8)])
def test_the_uninformed_loss_is_the_entropy_of_the_labels(shares: tuple[int, ...]) -> None:
    x, y = batch()[0], torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(shares))
    start = fanin.check(net(), (x, y), cross_entropy).trial.start
    assert start is not None
    entropy = -sum(n / SIZE * log(n / SIZE) for n in shares if n)
    assert uninformed_loss(start) == pytest.approx(entropy, abs=1e-4)
    (observation,) = start.of(Role.UNINFORMED_LOSS).values()
    assert (observation.layer, observation.shape) == (NETWORK_INPUT, (1,))
    assert Role.TARGET not in roles(start)


def test_that_of_numbers_is_their_variance_and_they_are_seen_by_units() -> None:
    x, target = batch()[0], torch.randn(SIZE, CLASSES) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    start = fanin.check(net(), (x, target), nn.functional.mse_loss).trial.start
    assert start is not None
    assert uninformed_loss(start) == pytest.approx(float(target.var(dim=0, correction=0).mean()), rel=1e-3)
    summary = start.of(Role.TARGET)["target"].summary
    assert summary.units is not None
    assert summary.units.mean == pytest.approx(target.mean(dim=0).double().numpy(), rel=1e-5)


def test_a_loss_that_takes_no_other_output_is_not_known_and_does_no_harm() -> None:
    def picky(output: Tensor, target: Tensor) -> Tensor:
        if not output.grad_fn or output.dtype is not torch.float32 or output.stride()[0] == 0:
            raise TypeError("only the model's own")
        return cross_entropy(output, target)

    start = fanin.check(net(), batch(), picky).trial.start
    assert start is not None
    assert uninformed_loss(start) != uninformed_loss(start)


# ── models that are too large to be copied ──────────────────────────────────────────────────────────────────


def _data() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    return torch.randn(64, 64, generator=made), torch.randint(10, (64,), generator=made)


@pytest.mark.parametrize(
    ("depth", "std", "verdict"), [(8, he, Verdict.HEALTHY), (20, lambda fan_in: 1e-3, Verdict.POOR)]
)
@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
def test_a_model_too_large_to_be_copied_is_judged_by_one_pass(
    depth: int,
    std: Callable[[int], float],
    verdict: Verdict,
    optimizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "COPY_LIMIT", 0)
    model = plain(depth, std)
    with Untouched(model):
        report = fanin.check(model, _data(), cross_entropy, optimizer=optimizer)
    assert report.verdict is verdict, str(report)
    assert seen(report) == [(Mode.TRAIN, 0)]
    assert report.trial.reference is None
    assert "re-draw" in " ".join(report.diagnosis.not_looked_at)
    assert "five steps" in " ".join(report.diagnosis.not_looked_at)
    assert report.trial.adapts is (optimizer is None)


@pytest.mark.parametrize("options", [{}, {"race": RaceOptions(steps=12, most=12)}], ids=["check", "race"])
def test_a_critic_in_the_loss_and_a_loader_s_own_order_stay_as_they_were(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 1))
    order = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(128, 8), torch.randn(128, 8))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, generator=order)
    before, kept = order.get_state(), {k: v.clone() for k, v in critic.state_dict().items()}
    fanin.check(model, loader, lambda o, t: (critic(o).squeeze() - t.mean(1)).square().mean(), **options)
    assert torch.equal(order.get_state(), before)
    assert all(torch.equal(v, kept[k]) for k, v in critic.state_dict().items())
    assert all(p.grad is None for p in critic.parameters())
