"""FAN101: the signal shrinks with depth until nothing of the input is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf, sqrt
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.propagation import OFF, Stretch, gain_findings, stretch
from fanin.rule import Example, Need, Rule
from fanin.scheme import LECUN_NORMAL
from fanin.trial import Role, Trial

TOLERATED = 8.5
"""Decades of variance that a slope may cost where the optimizer adapts (Adam and its kin), or is not known. On
InitBench's tune split slopes of up to 7.5 decades reach 0.81 and more of the best sound start's progress, most of those
of 9 and more stay below 0.5 (benchmarks/initbench, 300 steps, the best of three learning rates). AlexNet as torchvision
draws it, which is known to train, costs 4.4."""

TOLERATED_BY_SGD = 4.5
"""Decades that plain gradient descent bears: its steps shrink with the gradient. With SGD at 0.1 slopes of 6.5 decades
stay at chance where the sound network learns (examples/digits.py), slopes of 3 reach 0.97 (benchmarks/cliffs.py)."""

FEWEST = 5
"""Layers that are too small from which on a slope is fatal: each grows by about the same amount in each step, so that
their product recovers in a few steps when there are few of them. Networks of three and four layers 13 decades down
reach 0.96 of a sound one; five and more stay below 0.5 (benchmarks/initbench, tune split)."""

LOST = 8.0
"""Decades below which a signal counts as lost whatever the weights; then, without an explanation, the verdict is
undecided. Single layers of 10^-4 cost 8 to 9.6 and recover (benchmarks/results/cliffs.csv), slopes of 10 do so in
part."""


class ShrinkingSignal(Rule):
    """The signal shrinks from layer to layer until the output no longer depends on the input.

    What it detects
    ---------------
    A stretch of layers without normalization over which the variance of the signal falls by orders of magnitude,
    because the weights are smaller than the activations need. It tells a slope (every layer takes its share) from a
    cliff (one layer takes it all) and names the first layer at fault.

    Why it matters
    --------------
    What reaches the last layer is the same for every input, so the loss has nothing to learn from, and the gradient
    of each weight carries the same small factors back. A few layers recover by themselves; the loss is exponential
    in depth, so twenty do not.

    How it is measured
    ------------------
    Along the graph, on the path that should carry most, from the input, or the last normalization, to the last
    layer: D = log10 of the variance over the batch of what enters the last layer, relative to what enters the first.
    Variance over the *batch* is taken for each unit and then averaged, so that a constant, however large, counts as
    nothing. The rule fires when D is below -8.5 (under plain gradient descent below -(4.5 + 3 sigma), sigma being the
    noise of a random draw, Hanin and Nica), **and** the weights explain it: the excesses
    log10(fan_in E[w^2] / gain^2) of the layers add up to at least half of that. A layer is a cliff when it is off by
    more than a decade and no more than half of the layers are off by a factor of two; otherwise it is a slope. A slope
    of five layers or more is a fault; of fewer it is a note under an optimizer that adapts, and so is a single cliff
    downwards: such layers receive a whole gradient, grow in a few steps, and training goes on as if nothing had been
    (measured: `benchmarks/results/cliffs.csv`, `benchmarks/initbench`).

    When it is wrong
    ----------------
    Average pooling and zero padding shrink the signal of healthy networks; that is why the weights must explain it.
    A well-tuned optimizer may climb out of a moderate slope: with 8 ReLU layers of PyTorch's default, which cost 6.7
    decades, plain SGD stays at chance, while the best of six settings reaches 0.89 of what he_normal does. From 15
    decades on none does. A stretch that ends in a normalization is not judged.

    Fix
    ---
    Draw the weights with the gain of the activation that feeds the layer: he_normal for ReLU. In PyTorch:
    `nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")`. Or put normalizations between the layers.

    References
    ----------
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 9 and 10.
    - Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, Deep Information Propagation.
    - Hanin and Rolnick 2018, How to Start Training: The Effect of Initialization and Architecture.
    """

    code: ClassVar[str] = "FAN101"
    name: ClassVar[str] = "shrinking-signal"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.WEIGHT), Need(Role.INPUT, units=True), Need(Role.OUTPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for a slope, or one for each cliff."""
        path = stretch(trial)
        if path is not None and path.start <= 0:
            what = f"the input of {path.links[0].layer.path} is the same for the whole batch"
            yield Missing(self.code, what, "pass a batch of different examples")
        if path is None or path.start <= 0 or path.decades >= -(borne := tolerated(trial, path)):
            return
        if any(link.excess == -inf for link in path.links):
            return  # a layer of zeros: deliberate, or FAN402's case
        if path.excess <= -borne / 2:
            found = gain_findings(self.code, self.name, path, -1, borne, Cause.GAIN_TOO_SMALL)
            few = trial.adapts and sum(link.excess < -OFF for link in path.links) < FEWEST
            yield from (replace(f, severity=Severity.NOTE) if few else f for f in found)
        elif path.decades < -LOST:
            yield Missing(
                self.code,
                f"the signal falls by {-path.decades:.1f} decades before {path.head.layer.path}, and the scale of "
                "the weights does not explain it",
                "look at biases, dead units and saturation; train with fanin.watch and judge the trial",
            )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Plain ReLU networks: deep and shallow, slope and cliff."""
        default = synthetic.scaled(LECUN_NORMAL, factor=1 / sqrt(3))
        cliff = {"blocks.3.fc.weight": synthetic.normal(1e-6)}
        deep, shallow = (64,) * 12 + (10,), (64,) * 4 + (10,)
        yield Example("he_normal, 11 layers", lambda: synthetic.mlp(deep))
        yield Example("PyTorch's default, 4 layers", lambda: synthetic.mlp(shallow, default))
        yield Example("tanh, lecun_normal", lambda: synthetic.mlp(deep, "lecun_normal", "tanh"))
        yield Example(
            "residual, he_normal", lambda: synthetic.mlp((32,) * 6 + (10,), "he_normal", residual=True)
        )
        yield Example("a zero head", lambda: synthetic.mlp(deep, overrides={"head.weight": "zeros"}))
        yield Example("PyTorch's default, 11 layers", lambda: synthetic.mlp(deep, default), ("blocks.0.fc",))
        yield Example("one layer of std 1e-6", lambda: synthetic.mlp(deep, overrides=cliff), ("blocks.3.fc",))
        yield Example(
            "std 1e-3 everywhere", lambda: synthetic.mlp(deep, synthetic.normal(1e-3)), ("blocks.0.fc",)
        )


def tolerated(trial: Trial, path: Stretch) -> float:
    """Decades of loss that are no fault."""
    return TOLERATED if trial.adapts else TOLERATED_BY_SGD + path.noise
