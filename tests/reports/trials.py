"""Trials and diagnoses made by hand, as a session of training would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import numpy as np

from fanin.cause import Cause
from fanin.finding import Diagnosis, Finding, Missing, Origin, Scope, Verdict
from fanin.summary import Interval, TensorSummary, summarize
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, SourceLine, Step, Trial

Judged = tuple[Trial, Diagnosis]

WITHOUT_THRESHOLD = Interval(-inf, 10.0)
"""What the documented rule expects of a ratio: 10 at most."""


def values_of(variance: float) -> TensorSummary:
    """An output with this variance; nan and inf are outputs that hold such a value."""
    if not np.isfinite(variance):
        return summarize([1.0, variance], histogram=True, unit_axis=0)
    spread = np.linspace(-1.0, 1.0, 256)
    return summarize(
        np.stack([spread, -spread]) * np.sqrt(variance / spread.var()), histogram=True, unit_axis=0
    )


def layer(
    path: str, line: int = 41, *, type_name: str = "Linear", activation: str | None = "relu"
) -> LayerSpec:
    source = SourceLine("/home/me/model.py", line)
    weight = ParameterSpec(
        "weight", Role.WEIGHT, (256, 256), fan_in=256, fan_out=256, unit_axis=0, source=source
    )
    return LayerSpec(path, Kind.LINEAR, type_name, (weight,), activation=activation, calls=1)


def trial_of(
    variances: Sequence[float],
    spreads: Sequence[float] | None = None,
    *,
    paths: Sequence[str] = (),
    workers: Sequence[int] = (0,),
    losses: Sequence[float] = (2.30, 2.29),
    notes: tuple[str, ...] = (),
) -> Trial:
    """A chain of layers with these variances of output and spreads of gradient at step 0."""
    paths = paths or [f"blocks.{i}.fc1" for i in range(len(variances))]
    spreads = spreads or [2.4e-4] * len(variances)
    seen = [
        Observation(path, role, f"{path}.{role}", values_of(value), worker=worker)
        for worker in workers
        for path, out, grad in zip(paths, variances, spreads, strict=True)
        for role, value in ((Role.OUTPUT, out), (Role.WEIGHT_GRAD, (grad / 1.8) ** 2 / 3))
    ]
    steps = [Step(i, losses=dict.fromkeys(workers, loss)) for i, loss in enumerate(losses)]
    steps[:1] = [Step(0, observations=tuple(seen), losses=steps[0].losses)]
    spec = ModelSpec("MLP", "torch 2.13.0", tuple(layer(path) for path in paths), notes=notes)
    return Trial(spec, tuple(steps), about={"python": "3.11.7"})


def finding(
    layer: str, *, measured: float = 0.0021, code: str = "FAN101", name: str = "shrinking-signal"
) -> Finding:
    return Finding(
        code,
        name,
        layer,
        0,
        Interval(measured, measured),
        Interval(0.4, 2.5),
        "Var[out]/Var[in]",
        "Weight std is 0.0044, he_normal draws 0.088.",
        Cause.GAIN_TOO_SMALL,
        layers=(layer,),
        source=SourceLine("/home/me/model.py", 41),
    )


def documented(*measured: float) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            "FAN001",
            "poor-weight-initialization",
            "",
            0,
            Interval(ratio, ratio),
            WITHOUT_THRESHOLD,
            "activation input variance ratio",
            "The ratio of the largest to the smallest.",
        )
        for ratio in measured
    )


def cliff() -> Judged:
    """One layer of 17 drawn too small: all that follow are small, and none but it is at fault."""
    trial = trial_of([1.5] * 7 + [3.0e-3] + [2.9e-3] * 9, [2.4e-4] * 7 + [4.6e-3] + [2.4e-4] * 9)
    below = tuple(layer.path for layer in trial.spec.layers[8:])
    return trial, Diagnosis(
        Verdict.POOR,
        (
            Origin(
                finding("blocks.7.fc1"),
                (finding("blocks.9.fc1", code="FAN201", name="pinched-gradient"),),
                below,
            ),
        ),
        why="The signal shrinks 480-fold at blocks.7.fc1 and stays small in the nine layers after it.",
        next_step="Draw blocks.7.fc1.weight with he_normal: torch.nn.init.kaiming_normal_(w, nonlinearity='relu').",
        documented=Verdict.POOR,
        documented_findings=documented(820.0),
        confidence=0.953,
        decided_by="one batch",
        not_looked_at=("five steps of training (give check the optimizer)", "a race (--race)"),
    )


def slope() -> Judged:
    """Every layer loses a little more than half: torch's default for Linear, before ReLU."""
    trial = trial_of([0.34 * 0.17**i for i in range(12)], losses=[2.3026, 2.3021, 2.3015])
    paths = tuple(layer.path for layer in trial.spec.layers)
    found = finding("blocks.1.fc1", measured=0.17)
    everywhere = Finding(
        **{f: getattr(found, f) for f in found.__slots__} | {"scope": Scope.EVERYWHERE, "layers": paths[1:]}
    )
    return trial, Diagnosis(
        Verdict.POOR,
        (Origin(everywhere),),
        why="Every layer keeps 17 % of the variance; after 12 layers 1e-9 of it is left.",
        next_step="Draw all weights with he_normal.",
        documented=Verdict.POOR,
        documented_findings=documented(2.8e8),
    )


def healthy() -> Judged:
    trial = trial_of([1.9, 2.0, 2.1, 1.7, 2.2, 1.8, 2.4, 2.0], losses=[2.41, 1.9, 1.4], notes=())
    return trial, Diagnosis(
        Verdict.HEALTHY,
        why="Signal and gradient keep their size through all 8 layers.",
        next_step="Train.",
        missing=(
            Missing("FAN301", "the number of classes", "pass targets that are class indices", blocks=False),
        ),
        documented=Verdict.POOR,
        documented_findings=documented(12.0),
        confidence=0.95,
        decided_by="race",
        not_looked_at=("five steps of training",),
        disagreement="its ratio compares layers that have no reason to be alike: the head is drawn small on purpose.",
    )


def undecided() -> Judged:
    """Watched from step 5 on, without a loss, and broken off."""
    whole = trial_of([1.0, 1.1, 0.9], workers=(1, 3))
    trial = Trial(whole.spec, (Step(5, observations=whole.steps[0].observations),), complete=False)
    return trial, Diagnosis(
        Verdict.UNDECIDED,
        missing=(
            Missing("FAN101", "training step 0 was not watched", "start fanin.watch before the first step"),
            Missing("FAN301", "no loss was seen", "pass loss_fn", blocks=False),
        ),
        why="The initialization itself was not seen.",
        next_step="Watch the run from its first step.",
        documented=Verdict.UNDECIDED,
    )


def deep() -> Judged:
    """500 layers, four faults, and one layer that never ran."""
    variances = [1.0] * 100 + [1e-8] * 200 + [1e4] * 200
    trial = trial_of(variances, notes=("torch.compile hid 3 layers from hooks.",))
    spec = trial.spec
    idle = LayerSpec("auxiliary.head", Kind.LINEAR, "Linear", layer("x").parameters)
    trial = Trial(ModelSpec(spec.name, spec.framework, (*spec.layers, idle), notes=spec.notes), trial.steps)
    faults = [finding(f"blocks.{i}.fc1") for i in (100, 300, 400, 450, 460, 470, 480)]
    below = tuple(f"blocks.{i}.fc1" for i in range(101, 300))
    return trial, Diagnosis(
        Verdict.POOR,
        tuple(Origin(fault, downstream=below) for fault in faults),
        why="Seven layers change the size of the signal.",
        next_step="Draw them with he_normal.",
        documented=Verdict.HEALTHY,
        disagreement="only ten of its layers matched the regular expression.",
    )


HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07",
    "[bold red]markup[/bold red] :smile:",
    "right\u202eto\u202cleft\nnew line",
    "層" * 60 + ".注意",
    "a" * 300 + ".query",
    "very." * 80 + "l" * 200,
)


def hostile() -> Judged:
    """Names that hold control characters, markup, wide characters, and far too many of them."""
    trial = trial_of([1.0, 2.0, 3.0, 1e-3, 1e-3, 1e-3], paths=HOSTILE)
    spec = ModelSpec(
        "\x1b[31mMLP" * 40, "torch\r2", trial.spec.layers, notes=("a note\x07 [link=x]y[/link]",)
    )
    return Trial(spec, trial.steps), Diagnosis(
        Verdict.POOR,
        (Origin(finding(HOSTILE[3])), Origin(finding(HOSTILE[0])), Origin(finding(HOSTILE[5]))),
        why=f"The signal shrinks at {HOSTILE[5]} [red]and[/red] {HOSTILE[0]}.",
        next_step=f"Draw {HOSTILE[3]}.weight with he_normal.",
    )


def single() -> Judged:
    return trial_of([0.5], losses=[0.7]), Diagnosis(
        Verdict.HEALTHY, why="One layer, in step.", next_step="Train.", documented=Verdict.HEALTHY
    )


def broken() -> Judged:
    """NaN, infinite and zero outputs; a cause that is not the initialization."""
    trial = trial_of([1.0, 0.0, inf, nan, nan], [1e-3, 0.0, inf, nan, nan], losses=[nan, nan])
    found = Finding(
        "FAN901",
        "non-finite-input",
        "blocks.1.fc1",
        0,
        Interval(nan, nan),
        Interval(0.0, 0.0),
        "NaN in the batch",
        "12 of 4096 values are NaN.",
        Cause.NON_FINITE_INPUT,
    )
    below = tuple(f"blocks.{i}.fc1" for i in (2, 3, 4))
    return trial, Diagnosis(Verdict.POOR, (Origin(found, downstream=below),), why="The batch holds NaN.")


def foreign() -> Judged:
    """A trial of another tool: activation inputs, and no layers at all."""
    seen = tuple(
        Observation(f"relu{i}", Role.ACTIVATION_INPUT, f"relu{i}_relu_input_0", values_of(4.0**-i))
        for i in range(5)
    )
    trial = Trial(ModelSpec("trial", "smdebug 1.0.34"), (Step(0, observations=seen),))
    return trial, Diagnosis(
        Verdict.UNDECIDED,
        missing=(Missing("FAN101", "outputs of layers", "capture the run with fanin run"),),
        why="The trial holds activation inputs only.",
        next_step="Capture the run with fanin run.",
        documented=Verdict.POOR,
        documented_findings=documented(256.0),
    )


def empty() -> Judged:
    return Trial(ModelSpec("MLP", "torch 2.13.0")), Diagnosis(Verdict.UNDECIDED, why="Nothing was watched.")


CASES = {
    case.__name__: case
    for case in (cliff, slope, healthy, undecided, deep, hostile, single, broken, foreign, empty)
}
