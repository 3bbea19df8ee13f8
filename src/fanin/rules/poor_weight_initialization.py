"""The documented rule of Amazon SageMaker Debugger, by its names and with its defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf, isfinite, nan
from os import PathLike

from fanin.errors import UsageError
from fanin.finding import Finding, Missing, Scope
from fanin.parameters import bad_parameter, number, patterns, whole
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL
from fanin.summary import Interval, TensorSummary
from fanin.synthetic import mlp, normal, scaled
from fanin.trial import Observation, Role, Step, Trial

LOSS_MARGIN = 0.01
"""The mean loss must fall by 1 %: of three readings of "no longer decreasing", tried on six networks as they trained,
the only one that found all four poor ones and spared both healthy ones."""

RELU_INPUTS = ".*relu_input"
"""The documented default."""


class PoorWeightInitialization(Rule):
    r"""Amazon SageMaker Debugger's rule: uneven activation variances, narrow gradients, or a loss that stays.

    What it detects
    ---------------
    Any one of three, each reported by itself at the first step where it holds:

    - *variance*: the inputs of the network's activations differ in variance by more than a factor `threshold`;
    - *gradients*: the middle 90 % of some weight's gradient lie within less than `distribution_range`;
    - *loss*: the loss has stopped decreasing for `patience` steps.

    Why it matters
    --------------
    Weights that are too small or too large shrink or grow the signal from layer to layer, so that the first layer
    and the last see variances orders of magnitude apart, gradients vanish, and the loss stays where it started.
    SageMaker Debugger is closed to new customers; here its rule can be had anywhere, with its parameters and their
    defaults, each of which may also be given as text, as rule configurations do.

    How it is measured
    ------------------
    In training mode, at steps 0 to `steps` - 1. The documentation leaves much open; these are the readings that
    told trained networks apart:

    - *variance*: with Var_i the variance over all values of the i-th activation input whose name matches
      `activation_inputs_regex` (found anywhere in the name; each call counts), max Var / min Var > `threshold`.
      It also fires where a value is NaN or infinite, where the smallest variance is 0 and the largest is not
      (the ratio is infinite), and where all are 0: there is no signal. One tensor alone has no ratio.
    - *gradients*: the minimum over weight gradients, never biases, of p95 - p5 < `distribution_range`. Percentiles
      are known up to an interval; where the interval holds the threshold, the check stays undecided. Values
      that are not finite are left out; gradients of a single value have no distribution.
    - *loss*: with m the mean of the last `patience` losses and m' that of the `patience` before,
      (m' - m) / |m'| < 1 %. So negative losses are judged too, and one of exactly 0 does not decrease. A loss
      that is NaN or infinite does not decrease, from that step on.

    What cannot be decided is said to be missing: no tensor that matches, no gradients, fewer than 2 `patience`
    losses. `activation_inputs_regex` may be one regex, a list of them, or text with commas between them. A comma
    within brackets, braces or parentheses, or after a backslash, belongs to its regex. None stands for all.

    When it is wrong
    ----------------
    Often. Of 111 sane starts of networks that trained well (convolutional, residual, transformers and others) it
    fired for 76. It takes heads and residual branches of zeros for vanishing gradients, though they cure themselves
    in one step; residual networks grow their variance by design; its range is absolute, so a loss scaled by the
    batch moves the answer; and from step 1 on it sees the learning rate as much as the initialization. It misses
    what normalization hides. Our own verdict rests on the other rules; this one's answer stands beside it.

    Fix
    ---
    Draw weights with the gain that their activation needs: he_normal for ReLU, lecun_normal for SELU or tanh,
    and look at what the other rules name as the cause.

    References
    ----------
    Amazon Web Services, "PoorWeightInitialization", SageMaker Debugger built-in rules (2020).
    Rauschmayr et al., "Amazon SageMaker Debugger: A System for Real-Time Insights into Machine Learning Model
    Training", MLSys (2021).
    """

    code = "FAN001"
    name = "poor-weight-initialization"
    needs = frozenset(
        {
            Need(Role.ACTIVATION_INPUT, every_step=True),
            Need(Role.WEIGHT_GRAD, every_step=True, histogram=True),
        }
    )

    def __init__(
        self,
        base_trial: Trial | str | PathLike[str] | None = None,
        activation_inputs_regex: str | Iterable[str] | None = RELU_INPUTS,
        threshold: float | str = 10.0,
        distribution_range: float | str = 0.001,
        patience: int | str = 5,
        steps: float | str = 10,
    ) -> None:
        """The documented parameters; numbers may be text.

        Args:
            base_trial: The trial to judge, or its address, for the entrance that judges it.
            activation_inputs_regex: Which activation inputs to compare.
            threshold: Largest ratio of variances.
            distribution_range: Smallest p95 - p5 of a gradient.
            patience: Over how many steps the loss must decrease.
            steps: How many training steps are judged.

        Raises:
            RuleParameterError: A parameter has the wrong type or value.
        """
        if base_trial is not None and not isinstance(base_trial, Trial | str | PathLike):
            raise bad_parameter("base_trial", base_trial, "a trial, or its address", "pass 'runs/exp1'")
        self.base_trial = base_trial
        self.chosen_regex = activation_inputs_regex if activation_inputs_regex != RELU_INPUTS else None
        self.patterns = patterns("activation_inputs_regex", activation_inputs_regex)
        self.threshold = number("threshold", threshold, 10.0)
        self.distribution_range = number("distribution_range", distribution_range, 0.001)
        self.patience = whole("patience", patience, 5)
        self.steps = whole("steps", steps, 10)

    def require_applicable(self, trial: Trial) -> None:
        """A regex of one's own that matches none of the activation inputs is a slip, and no evidence; trees have no
        activations at all.

        Raises:
            RuleParameterError: It matches none; the default leaves the check undecided instead.
            UsageError: The trial comes from XGBoost.
        """
        if trial.spec.framework.startswith("XGBoost"):
            raise UsageError(
                "PoorWeightInitialization does not apply to XGBoost",
                where=trial.uri,
                got="a trial of boosted trees, which have no weights, activations or gradients by layer",
                expected="a trial of TensorFlow, PyTorch or MXNet",
                next_step="ask this rule about neural networks only",
            )
        names = [name for step in trial.train_steps for name in step.of(Role.ACTIVATION_INPUT)]
        if self.chosen_regex is None or not names or any(p.search(n) for p in self.patterns for n in names):
            return
        some = ", ".join(dict.fromkeys(names[:3]))
        expected = f"a regex that matches some of the activation inputs: {some}, ..."
        next_step = f"pass activation_inputs_regex={_suggestion(names)!r}"
        raise bad_parameter("activation_inputs_regex", self.chosen_regex, expected, next_step)

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """A finding for each check that fires, and what is missing for each undecided one."""
        yield from (said for said in self.checks(trial).values() if said)

    def checks(self, trial: Trial) -> dict[str, Finding | Missing | None]:
        """What each check says, by its name; None where it passes."""
        steps = [step for step in trial.train_steps if step.index < self.steps]
        return {
            "variance": self._check_variance(steps),
            "gradients": self._check_gradients(steps),
            "loss": self._check_loss(steps),
        }

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Ten steps each: healthy starts, poor ones, and those that it mistakes."""
        yield Example("he_normal, a ReLU network", lambda: mlp(steps=10))
        residual = {f"blocks.{i}.fc2.weight": scaled(HE_NORMAL, 0.2) for i in range(5)}
        yield Example("small residual branches", lambda: mlp(overrides=residual, residual=True, steps=10))
        yield Example(
            "N(0, 1e-4), all three checks",
            lambda: mlp(init=normal(1e-2), steps=10, lr=1e-3),
            layers=("blocks.4.fc", "blocks.0.fc", ""),
        )
        yield Example(
            "N(0, 1), too large to move",
            lambda: mlp(init=normal(1.0), steps=10, lr=1e-9),
            layers=("blocks.0.fc", ""),
        )
        yield Example(
            "one layer five times too large",
            lambda: mlp(overrides={"blocks.3.fc.weight": scaled(HE_NORMAL, 5)}, steps=10, lr=1e-3),
            layers=("blocks.0.fc",),
        )
        yield Example(
            "a learning rate of zero, which is not the initialization",
            lambda: mlp(steps=10, lr=0.0),
            layers=("",),
        )
        yield Example(
            "a head of zeros, which is healthy, but not to this rule",
            lambda: mlp(overrides={"head.weight": "zeros"}, steps=10),
            layers=("blocks.0.fc",),
        )

    def _check_variance(self, steps: list[Step]) -> Finding | Missing | None:
        matched = [self._matching(step) for step in steps]
        for step, tensors in zip(steps, matched, strict=True):
            finding = self._uneven(step, tensors)
            if finding:
                return finding
        decided = any(len(tensors) > 1 for tensors in matched)
        return None if decided else self._too_few(steps, matched)

    def _matching(self, step: Step) -> list[Observation]:
        """Activation inputs that hold values and have a matching name, in forward order."""
        seen = step.of(Role.ACTIVATION_INPUT).items()
        return [
            tensor
            for name, tensor in seen
            if any(pattern.search(name) for pattern in self.patterns)
            and tensor.summary.count + tensor.summary.non_finite
        ]

    def _uneven(self, step: Step, tensors: list[Observation]) -> Finding | None:
        """The finding that the variances of one step call for."""
        if not tensors:
            return None
        variances = [_variance(tensor.summary) for tensor in tensors]
        undefined = [t for t, variance in zip(tensors, variances, strict=True) if not isfinite(variance)]
        if undefined:
            return self._variance_finding(step, undefined[0], nan, _without_variance(undefined[0]))
        low, high = min(variances), max(variances)
        least, most = (tensors[variances.index(v)] for v in (low, high))
        if high == 0:
            text = f"Each of the {len(tensors)} activation inputs is constant: there is no signal."
            return self._variance_finding(step, least, nan, text)
        ratio = high / low if low else inf
        if ratio <= self.threshold:
            return None
        text = f"The variance is {low:.3g} at {least.tensor} and {high:.3g} at {most.tensor}."
        return self._variance_finding(step, least, ratio, text)

    def _variance_finding(self, step: Step, where: Observation, ratio: float, text: str) -> Finding:
        quantity, expected = "max/min variance of activation inputs", Interval(1.0, self.threshold)
        return self._finding(step, where, quantity, Interval(ratio, ratio), expected, text)

    def _too_few(self, steps: list[Step], matched: list[list[Observation]]) -> Missing:
        """Why there was nothing to compare."""
        names = list(dict.fromkeys(name for step in steps for name in step.of(Role.ACTIVATION_INPUT)))
        regex = ", ".join(repr(pattern.pattern) for pattern in self.patterns)
        if not names:
            what = f"no activation input was seen in training steps 0 to {self.steps - 1}"
            return self._missing(what, "watch the model with fanin.check, fanin.watch or fanin run")
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        found = "only one" if any(matched) else "none"
        what = f"{found} of the {len(names)} activation inputs matches {regex} (there are {some})"
        return self._missing(what, f"pass activation_inputs_regex={_suggestion(names)!r}")

    def _check_gradients(self, steps: list[Step]) -> Finding | Missing | None:
        narrowest = [(step, *seen) for step in steps if (seen := _narrowest(step))]
        for step, tensor, width in narrowest:
            if width.high < self.distribution_range:
                return self._narrow(step, tensor, width)
        for step, tensor, width in narrowest:
            if width.low < self.distribution_range:
                what = f"whether p95 - p5 = {width} of {tensor.tensor} at step {step.index} is less than"
                settle = "the quantiles are not that fine: move distribution_range out of this interval"
                return self._missing(f"{what} {self.distribution_range:g}", settle)
        return None if narrowest else self._no_percentiles(steps)

    def _no_percentiles(self, steps: list[Step]) -> Missing:
        """Why there are no percentiles of gradients."""
        seen = [o for step in steps for o in step.of(Role.WEIGHT_GRAD).values()]
        if seen and all(o.summary.histogram is None for o in seen):
            what = "the weight gradients come without percentiles, which no reduction of them can give"
            return self._missing(
                what, "save the gradients themselves, or watch with this rule among the rules"
            )
        what = f"no weight gradient with a histogram was seen in training steps 0 to {self.steps - 1}"
        return self._missing(what, "watch a model that runs backward, with this rule among the rules")

    def _narrow(self, step: Step, tensor: Observation, width: Interval) -> Finding:
        text = f"{tensor.tensor} is the narrowest; its root mean square is {tensor.summary.rms:.3g}."
        quantity, expected = "minimum p95 - p5 of weight gradients", Interval(self.distribution_range, inf)
        return self._finding(step, tensor, quantity, width, expected, text)

    def _check_loss(self, steps: list[Step]) -> Finding | Missing | None:
        watched = [step for step in steps if step.losses]
        for i, step in enumerate(watched):
            if not isfinite(step.loss):
                return self._stays(step, nan, f"The loss is {step.loss}.")
            finding = self._flat(step, [s.loss for s in watched[: i + 1]])
            if finding:
                return finding
        wanted = 2 * self.patience
        if len(watched) >= wanted:
            return None
        settle = "watch more steps" if self.steps >= wanted else f"pass steps={wanted}, or less patience"
        what = f"{wanted} losses are needed to tell whether they decrease, there are {len(watched)}"
        return self._missing(what, settle)

    def _flat(self, step: Step, losses: list[float]) -> Finding | None:
        """The finding that the last 2 `patience` losses call for."""
        n = self.patience
        if len(losses) < 2 * n:
            return None
        before, last = (sum(loss / n for loss in part) for part in (losses[-2 * n : -n], losses[-n:]))
        decrease = _relative_decrease(before, last)
        if decrease >= LOSS_MARGIN:
            return None
        return self._stays(step, decrease, f"Its mean over {n} steps went from {before:.4g} to {last:.4g}.")

    def _stays(self, step: Step, decrease: float, text: str) -> Finding:
        quantity = f"relative decrease of the loss over {self.patience} steps"
        measured, expected = Interval(decrease, decrease), Interval(LOSS_MARGIN, inf)
        return self._finding(step, None, quantity, measured, expected, text)

    def _finding(
        self,
        step: Step,
        where: Observation | None,
        what: str,
        measured: Interval,
        expected: Interval,
        text: str,
    ) -> Finding:
        found = Finding(
            self.code, self.name, "", step.index, measured, expected, what, text, scope=Scope.EVERYWHERE
        )
        if where is None:
            return found
        return replace(
            found, layer=where.layer, scope=Scope.LAYER, layers=(where.layer,), tensor=where.tensor
        )

    def _missing(self, what: str, settle: str) -> Missing:
        return Missing(self.code, what, settle)


def _variance(summary: TensorSummary) -> float:
    """Exactly 0 for a constant, whose M2 may hold rounding; nan where a value is not finite."""
    if summary.non_finite:
        return nan
    return 0.0 if summary.is_constant else summary.variance


def _without_variance(tensor: Observation) -> str:
    summary = tensor.summary
    if summary.non_finite:
        return f"{tensor.tensor} holds {summary.nan} NaN and {summary.inf} infinite values."
    return f"The variance of {tensor.tensor} overflows: it reaches {summary.largest:.3g}."


def _narrowest(step: Step) -> tuple[Observation, Interval] | None:
    """The weight gradient with the smallest p95 - p5 of a step, and an interval that contains that minimum."""
    widths = [
        (seen, _width(seen.summary))
        for seen in step.of(Role.WEIGHT_GRAD).values()
        if seen.summary.histogram is not None and seen.summary.count > 1
    ]
    if not widths:
        return None
    least = min(widths, key=lambda pair: pair[1].high)
    return least[0], Interval(min(width.low for _, width in widths), least[1].high)


def _width(summary: TensorSummary) -> Interval:
    width = summary.quantile(0.95) - summary.quantile(0.05)
    return Interval(max(width.low, 0.0), max(width.high, 0.0))


def _relative_decrease(before: float, last: float) -> float:
    """(m' - m) / |m'|; from a loss of 0 there is no relative step, only none, all or the wrong way."""
    if before != 0:
        return (before - last) / abs(before)
    return 0.0 if last == 0 else -inf if last > 0 else inf


def _suggestion(names: Iterable[str]) -> str:
    """A regex for these names by what they share before their index, e.g. `.*gelu_input`."""
    found = (re.search(r"[A-Za-z]\w*?_input", name) for name in names)
    endings = {match.group() if match else "input" for match in found}
    return f".*{endings.pop()}" if len(endings) == 1 else ".*input"
