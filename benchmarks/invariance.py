"""Whether a verdict of `fanin.check` depends on what says nothing about the initialization.

InitBench's tune networks from several initializations are checked as they are, and once more under each
transformation: the loss times a constant, its sum instead of its mean, a smaller and a larger batch, twice as many
classes, four times the width. None of them makes a start better or worse, so no verdict should change. Two controls
tell how often one changes by chance: another draw of the same weights, and another batch of the same size.

    ./dev bench invariance [--only ARCHITECTURE ...] [--adam] [--threads N]

--adam lets each check take five steps of Adam too. The width changes only where the initialization follows it: a fixed
standard deviation is another initialization at another width. A graph is one batch, whose size is given; labels stay
what they are when there are more classes, so that the new ones never occur. The documented rule
(PoorWeightInitialization) is asked the same questions at step 0, for contrast: whether any of its checks fires.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _record import circumstances, keep, table
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.finding import Verdict

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.initbench import architectures_conv as conv
from benchmarks.initbench import architectures_dense as dense
from benchmarks.initbench import architectures_sequence as sequence
from benchmarks.initbench import tasks
from benchmarks.initbench.architectures import ARCHITECTURES, Architecture
from benchmarks.initbench.initializations import INITIALIZATIONS, Initialization
from benchmarks.initbench.labels import initialized, seed_of

BATCH = 64
WIDER = 4
CHOSEN = (
    "default",
    "he_normal",
    "zero_head",
    "normal_0.001",
    "normal_1",
    "constant_0.05",
    "all_x3",
    "head_x300",
)
SCALE_AWARE = ("default", "he_normal", "zero_head", "all_x3")
FIXED_DEFAULT = ("gpt2-preln",)
"""Architectures whose own default is a fixed standard deviation."""

Build = Callable[[int, int], nn.Module]

BUILDERS: dict[str, Build] = {
    "mlp8-relu": lambda c, w: dense.MLP(64, 64 * w, 10 * c, 8),
    "mlp20-tanh": lambda c, w: dense.FunctionalMLP(64, 48 * w, 10 * c, 20, torch.tanh),
    "mlp5-sigmoid": lambda c, w: dense.MLP(64, 64 * w, 10 * c, 5, nn.Sigmoid),
    "mlp6-gelu-bn": lambda c, w: dense.MLP(64, 64 * w, 10 * c, 6, nn.GELU, nn.BatchNorm1d),
    "cnn6-relu": lambda c, w: conv.PlainCNN(8 * w, 6, 1, 10 * c),
    "cnn6-bn-relu": lambda c, w: conv.NormCNN(8 * w, 6, nn.BatchNorm2d, nn.ReLU, 10 * c),
    "resmlp8-nonorm": lambda c, w: dense.ResidualMLP(64, 48 * w, 10 * c, 8),
    "resnet6-bn": lambda c, w: conv.ResNet(8 * w, (8 * w, 8 * w, 16 * w), nn.BatchNorm2d, 10 * c),
    "densenet-bn": lambda c, w: conv.DenseNet(8 * w, 6 * w, 10 * c),
    "gpt2-preln": lambda c, w: sequence.GPT(tasks.VOCABULARY * c, tasks.LENGTH, 24 * w, 2, 2),
    "vit2-preln": lambda c, w: sequence.ViT(24 * w, 2, 2, 10 * c),
    "lstm2": lambda c, w: sequence.Recurrent(nn.LSTM(8, 40 * w, num_layers=2, batch_first=True), 10 * c),
    "autoencoder-relu": lambda _c, w: dense.Autoencoder((64, 48 * w, 32 * w, 8 * w), nn.ReLU),
    "tabular-embedding": lambda c, w: dense.TabularNet(tasks.NUMERIC, tasks.CATEGORICAL, 64 * w, 2 * c),
    "gcn4": lambda c, w: dense.GCN(tasks.graph_adjacency(), 64, 48 * w, 10 * c, 4),
    "gated-mlp4": lambda c, w: dense.GatedMLP(64, 48 * w, 10 * c, 4),
}
"""The tune architectures, with so many times the classes and the width."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that may change about a check and says nothing about the initialization."""

    scale: float = 1.0
    reduction: str = "mean"
    batch: int = BATCH
    classes: int = 1
    width: int = 1
    draw: int = 0
    order: int = 0


PLAIN = Situation()

TRANSFORMATIONS: dict[str, Situation] = {
    "loss x 1e-3": Situation(scale=1e-3),
    "loss x 1e4": Situation(scale=1e4),
    "sum, not mean": Situation(reduction="sum"),
    "batch 256": Situation(batch=256),
    "batch 16": Situation(batch=16),
    "classes x 2": Situation(classes=2),
    f"width x {WIDER}": Situation(width=WIDER),
    "control: another draw": Situation(draw=1),
    "control: another batch": Situation(order=1),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a check said: the verdict, the origin's cause and layer, and whether the documented rule fires."""

    verdict: str
    cause: str
    layer: str
    code: str
    documented: bool

    def __str__(self) -> str:
        return f"{self.verdict} ({self.code} {self.cause} at {self.layer})" if self.code else self.verdict


def answer(report: fanin.Report) -> Answer:
    """A report in short; of an undecided one the first thing missing stands for the cause."""
    diagnosis = report.diagnosis
    documented = diagnosis.documented is Verdict.POOR
    if diagnosis.origins:
        first = diagnosis.origins[0].finding
        cause = first.cause.value if first.cause else ""
        return Answer(str(diagnosis.verdict), cause, first.layer, first.code, documented)
    lacks = next((m for m in diagnosis.missing if m.blocks), None)
    if lacks:
        return Answer(str(diagnosis.verdict), lacks.what, "-", lacks.code, documented)
    return Answer(str(diagnosis.verdict), "", "", "", documented)


def loss_of(task: tasks.Task, situation: Situation) -> Callable[[Tensor, Tensor], Tensor]:
    """The task's loss, summed or averaged, times the scale."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            value = functional.mse_loss(output, target, reduction=situation.reduction)
        else:
            logits = output.flatten(0, -2)
            value = functional.cross_entropy(logits, target.flatten(), reduction=situation.reduction)
        return situation.scale * value

    return loss


def checked(
    architecture: Architecture, initialization: Initialization, situation: Situation, *, adam: bool
) -> Answer:
    """The answer for one network in one situation."""
    build = partial(BUILDERS[architecture.name], situation.classes, situation.width)
    network, _ = initialized(replace(architecture, build=build), initialization, situation.draw)
    task = architecture.task()
    order = torch.Generator().manual_seed(seed_of(architecture.name, "invariance", situation.order))
    inputs, target = task.batch(torch.randperm(len(task), generator=order)[: situation.batch])
    rate = architecture.learning_rates[1]
    optimizer = (lambda parameters: torch.optim.Adam(parameters, lr=rate)) if adam else None
    return answer(fanin.check(network, (inputs, target), loss_of(task, situation), optimizer=optimizer))


def applies(architecture: Architecture, initialization: Initialization, situation: Situation) -> bool:
    """Whether the transformation leaves the start what it is, and can be done."""
    task = architecture.task()
    if situation.batch != BATCH or situation.order:
        return not task.whole
    if situation.classes != 1:
        return not task.targets.is_floating_point()
    if situation.width != 1:
        fixed = initialization.name == "default" and architecture.name in FIXED_DEFAULT
        return initialization.name in SCALE_AWARE and not fixed
    return True


def starts(only: list[str] | None) -> Iterator[tuple[Architecture, Initialization]]:
    """Tune networks and the initializations that apply to them."""
    for architecture in ARCHITECTURES:
        if architecture.split != "tune" or (only and architecture.name not in only):
            continue
        network = architecture.build()
        _require_same(architecture, network)
        for initialization in INITIALIZATIONS:
            if initialization.name in CHOSEN and initialization.applies(architecture, network):
                yield architecture, initialization


def _require_same(architecture: Architecture, network: nn.Module) -> None:
    """The builders here make InitBench's networks when nothing is multiplied."""
    own = BUILDERS[architecture.name](1, 1)
    shapes, others = ({k: v.shape for k, v in n.state_dict().items()} for n in (network, own))
    if shapes != others:
        raise SystemExit(f"BUILDERS[{architecture.name!r}] is not InitBench's network")


@dataclass(frozen=True, slots=True)
class Pair:
    """A start, checked as it is and transformed."""

    start: str
    plain: Answer
    changed: Answer

    @property
    def same_verdict(self) -> bool:
        """Whether both verdicts are the same."""
        return self.plain.verdict == self.changed.verdict

    @property
    def same_origin(self) -> bool:
        """Whether verdict, cause and layer are the same."""
        ours = (self.plain, self.changed)
        return len({(a.verdict, a.code, a.layer) for a in ours}) == 1

    @property
    def told(self) -> dict[str, str]:
        """For the record."""
        return {"start": self.start, "plain": str(self.plain), "transformed": str(self.changed)}


def measured(only: list[str] | None, *, adam: bool) -> dict[str, list[Pair]]:
    """All pairs by transformation."""
    found: dict[str, list[Pair]] = {name: [] for name in TRANSFORMATIONS}
    began = time.monotonic()
    for architecture, initialization in starts(only):
        start = f"{architecture.name} {initialization.name}"
        plain = checked(architecture, initialization, PLAIN, adam=adam)
        for name, situation in TRANSFORMATIONS.items():
            if applies(architecture, initialization, situation):
                other = checked(architecture, initialization, situation, adam=adam)
                found[name].append(Pair(start, plain, other))
        print(f"{time.monotonic() - began:5.0f} s  {start}: {plain}", file=sys.stderr, flush=True)
    return found


def share(kept: int, of: int) -> str:
    """As a percentage."""
    return f"{kept / of:.1%}" if of else "-"


def summed(pairs: list[Pair]) -> dict[str, Any]:
    """How many there are, and how many stay the same."""
    verdicts = sum(p.same_verdict for p in pairs)
    origins = sum(p.same_origin for p in pairs)
    documented = sum(p.plain.documented == p.changed.documented for p in pairs)
    return {
        "cases": len(pairs),
        "unchanged": verdicts,
        "share": verdicts / len(pairs) if pairs else None,
        "same_verdict_cause_and_layer": origins,
        "documented_rule_unchanged": documented,
        "documented_rule_share": documented / len(pairs) if pairs else None,
        "changes": [p.told for p in pairs if not p.same_verdict],
        "other_causes_or_layers": [p.told for p in pairs if p.same_verdict and not p.same_origin],
    }


def main() -> None:
    """Check, print a table and every change, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="names of architectures; the result is then not kept")
    parser.add_argument("--adam", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = circumstances("torch", "numpy", "scikit-learn") | {"torch_threads": options.threads}
    results = {
        name: summed(pairs) for name, pairs in measured(options.only, adam=options.adam).items() if pairs
    }
    head = ("transformation", "cases", "unchanged", "share", "cause and layer too", "documented rule")
    rows = [
        (
            name,
            r["cases"],
            r["unchanged"],
            share(r["unchanged"], r["cases"]),
            share(r["same_verdict_cause_and_layer"], r["cases"]),
            share(r["documented_rule_unchanged"], r["cases"]),
        )
        for name, r in results.items()
    ]
    print(table(head, rows))
    for kind in ("changes", "other_causes_or_layers"):
        print(f"\n{kind.replace('_', ' ')}:")
        for name, r in results.items():
            for change in r[kind]:
                print(f"  {name}: {change['start']}: {change['plain']} -> {change['transformed']}")
    if not options.only:
        name = "invariance-adam" if options.adam else "invariance"
        print(f"\n{keep(name, record | {'batch': BATCH, 'results': results})}")


if __name__ == "__main__":
    main()
