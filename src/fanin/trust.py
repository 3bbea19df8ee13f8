"""Codes FAN9xx: doubts about the evidence itself, whatever rules are asked. They leave a verdict undecided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from math import isfinite, prod

from fanin.finding import Missing
from fanin.race import Outcome
from fanin.trial import LayerSpec, ParameterSpec, Role, Step, Trial

UNSEEN = 0.5
"""Share of the trained weights that may lie outside layers that ran. Class tokens, positions and the output projection
of an attention lie there in healthy models and make up a small part; bare weights whose use cannot be told may be all
of it."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A code, its name, and its page in the form of a rule's."""

    code: str
    name: str
    text: str

    @property
    def headline(self) -> str:
        """The first line of the page."""
        return self.page.splitlines()[0]

    @property
    def page(self) -> str:
        """The page, as written."""
        return cleandoc(self.text)


NOTHING_SEEN = Doubt(
    "FAN901",
    "nothing-seen",
    """The trial holds no start of a training to judge.

    What it detects
    ---------------
    A trial without training step 0, or in which no layer with weights ran.

    Why it matters
    --------------
    The initialization is what precedes the first update. Nothing else can stand for it, and silence is no clean bill.

    How it is measured
    ------------------
    By looking for step 0 in train mode, and for layers that own weights and were called in it.

    When it is wrong
    ----------------
    When a model is trained through functions rather than calls (`torch.func`), or another part of it was watched.

    Fix
    ---
    Watch a training from its first step (`fanin run`, `fanin.watch`), or use `fanin check`.

    References
    ----------
    None: it is about this tool.
    """,
)

UNSEEN_WEIGHTS = Doubt(
    "FAN902",
    "unseen-weights",
    """Most of the trained weights belong to no layer that was seen to run.

    What it detects
    ---------------
    Matrices that receive a gradient while neither the module that owns them is called nor any function is seen to sum
    over them: bare parameters that are reshaped across their axes, multiplied with one another, or computed with before
    they are used.

    Why it matters
    --------------
    What they do to the signal is not seen, so a fault in them would go unnoticed.

    How it is measured
    ------------------
    The values of matrices with a gradient whose layer has no call, as a share of all matrices with a gradient; more
    than half leaves the verdict undecided. A bare parameter in a product (`x @ w`, `F.linear`, `bmm`, `einsum`), also
    through a view of it, is a layer that is called. So is a layer whose weight is computed (`weight_norm`,
    `spectral_norm`, `orthogonal`): what counts is the weight that it computes with, not what that is made of.

    When it is wrong
    ----------------
    A model that is sound all the same stays undecided.

    Fix
    ---
    Put the weights into layers such as `nn.Linear`, or use them in products as they are.

    References
    ----------
    None: it is about this tool.
    """,
)

THIN_EVIDENCE = Doubt(
    "FAN903",
    "thin-evidence",
    """What is unusual about this start spoils training about as often as not.

    What it detects
    ---------------
    A start without a fault whose notes come, on networks labelled by training, with failures nearly as often as with
    success: sharp attention in all layers, or a signal that is nearly lost in few layers.

    Why it matters
    --------------
    Either verdict would be a guess.

    How it is measured
    ------------------
    By the share of healthy networks among those with the same notes on InitBench's tune split (`fanin.confidence`);
    below 0.7 the verdict is undecided.

    When it is wrong
    ----------------
    The shares are those of small networks; larger ones may be more robust, or less.

    Fix
    ---
    Let it race: `fanin check --race` trains copies of the network and of its sound re-draw for some steps.

    References
    ----------
    None: it is about this tool.
    """,
)

WITHIN_NOISE = Doubt(
    "FAN904",
    "within-noise",
    """One half of the batch shows a fault that the other does not.

    What it detects
    ---------------
    A fault of the signal or of the gradient whose rule fires on the whole batch, and not on each of its two halves.

    Why it matters
    --------------
    Then it hangs on a few examples: another batch may show it or not, and so may training.

    How it is measured
    ------------------
    A check summarizes what the batch does to the network by halves (the first and the second half of its examples) and
    asks each rule that found a fault about either. The verdict is undecided unless another fault is in both. Where both
    agree, the interval that the report gives for a measurement covers the values of both: its noise bar.

    When it is wrong
    ----------------
    When the two halves are no samples of the same thing, as in a batch that is sorted. Gradients of weights are sums
    over the whole batch and are not halved; batches of fewer than four examples are not either, nor is what a watch
    sees of a training.

    Fix
    ---
    Give a larger batch, or one that is shuffled; or let it race (`fanin check --race`).

    References
    ----------
    Tukey, 1958: Bias and confidence in not-quite large samples (the jackknife, here with two blocks).
    """,
)

FOREIGN_TRIAL = Doubt(
    "FAN905",
    "foreign-trial",
    """SageMaker Debugger wrote this trial, which holds tensors by name and no graph.

    What it detects
    ---------------
    A trial in the format of SageMaker Debugger (smdebug), read by fanin.

    Why it matters
    --------------
    Which layer feeds which, which activation follows, and what the layers put out is not in it. Our own rules can find
    faults in what was saved; without the rest they cannot say that there is none.

    How it is measured
    ------------------
    By the format of the trial. The verdict is *poor* where a rule finds a fault, and otherwise *undecided*.

    When it is wrong
    ----------------
    A sound start stays undecided.

    Fix
    ---
    Ask the documented rule alone, which looks at tensors by name (`fanin judge TRIAL --rule PoorWeightInitialization`);
    or watch the training with fanin (`fanin run`, `fanin.watch`), or check the model (`fanin check`).

    References
    ----------
    None: it is about this tool.
    """,
)

DIVERGED = Doubt(
    "FAN906",
    "diverged",
    """The loss became NaN or infinite in the steps that were watched.

    What it detects
    ---------------
    A training whose loss is finite at step 0 and is not at a later step.

    Why it matters
    --------------
    Nothing can be learned from there on. The initialization may be to blame (one layer with weights that are far too
    large, within the steps of a deep network), or the learning rate; where no rule finds a fault of the weights, a
    clean bill would be a guess all the same.

    How it is measured
    ------------------
    By looking at the loss of each training step. A loss that is not finite at step 0 is FAN103's, or could not be seen.
    The verdict is *poor* where a rule finds a fault of the weights, and otherwise *undecided*, unless a race has shown
    that the network trains as well as its sound re-draw.

    When it is wrong
    ----------------
    A sound network that was given too high a learning rate stays undecided.

    Fix
    ---
    Look at the notes, which name what is unusual about the weights. Lower the learning rate and watch again; or let it
    race, which tries several rates on the network and on its sound re-draw (`fanin check --race`).

    References
    ----------
    None: it follows from the arithmetic, in which NaN stays NaN.
    """,
)

DOUBTS = (NOTHING_SEEN, UNSEEN_WEIGHTS, THIN_EVIDENCE, WITHIN_NOISE, FOREIGN_TRIAL, DIVERGED)
"""By code."""


def doubts(trial: Trial) -> Iterator[Missing]:
    """What speaks against trusting this trial, whatever its rules say."""
    if trial.start is None:
        settle = "watch at least one training step, or run fanin check"
        yield Missing(NOTHING_SEEN.code, "the trial holds no training step 0", settle)
        return
    if trial.is_foreign:
        what = "SageMaker Debugger saved tensors by name, and not how the layers are connected"
        yield Missing(
            FOREIGN_TRIAL.code, what, "ask the documented rule alone: --rule PoorWeightInitialization"
        )
        return
    if (lost := _diverged(trial)) is not None:
        what = f"the loss is {trial.start.loss:.3g} at step 0 and {lost.loss} at step {lost.index}"
        settle = "lower the learning rate and watch again, or let it race: fanin check --race"
        yield Missing(DIVERGED.code, what, settle)
    share = _unseen_share(trial)
    if share > UNSEEN:
        what = f"{share:.0%} of the trained weights belong to no layer that was seen to run"
        settle = "put bare parameters into layers, or use them in products as they are"
        yield Missing(UNSEEN_WEIGHTS.code, what, settle)
    elif not any(layer.calls for layer in trial.spec.weight_layers):
        settle = "check that the model has layers and uses them"
        yield Missing(NOTHING_SEEN.code, "no layer with weights ran", settle)


def _diverged(trial: Trial) -> Step | None:
    """The first step whose loss is no longer a number, after a start where it was."""
    if trial.start is None or not isfinite(trial.start.loss):
        return None
    if trial.race is not None and trial.race.outcome is Outcome.HEALTHY:
        return None
    return next((s for s in trial.train_steps if s.losses and not isfinite(s.loss)), None)


def _unseen_share(trial: Trial) -> float:
    """Of the values of all matrices that received a gradient, those whose layer never ran as one."""
    sizes = [(layer.calls, prod(p.shape)) for layer in trial.spec.layers for p in _trained(trial, layer)]
    total = sum(size for _, size in sizes)
    return sum(size for calls, size in sizes if not calls) / total if total else 0.0


def _trained(trial: Trial, layer: LayerSpec) -> list[ParameterSpec]:
    seen = trial.start.of(Role.WEIGHT_GRAD) if trial.start else {}
    known = (p for p in layer.weights if len(p.shape) >= 2 and p.tied_to is None)
    return [p for p in known if f"gradient/{layer.parameter_path(p)}" in seen]
