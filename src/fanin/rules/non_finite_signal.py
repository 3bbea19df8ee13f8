"""A signal that overflows or is undefined though batch and parameters are finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite, nan

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval
from fanin.synthetic import clusters, constant, mlp, normal
from fanin.trial import Observation, Role, Step, Trial


class NonFiniteSignal(Rule):
    """A layer's output, or the loss, is NaN or infinite at step 0 though batch and parameters are finite.

    What it detects
    ---------------
    The first layer, in forward order, whose output holds a value that is NaN or infinite before the first update;
    or a loss that is not finite though all outputs are. Where the batch or a parameter is not finite itself, this
    rule says nothing: FAN401 does.

    Why it matters
    --------------
    Every later layer, the loss and all gradients become NaN, and so do the weights with the first update. Either the
    weights let the signal grow until the number format ends (65504 in float16, 3.4e38 in float32 and bfloat16), or
    an operation left its domain: a logarithm or root of what is not positive, a softmax over nothing but -inf, a
    division by a deviation of zero.

    How it is measured
    ------------------
    By counting at step 0. With z_l the output of layer l, the finding names

        min { l : count(z_l not finite) > 0 }

    Its message says whether the layer's own input was still finite. If not, the fault lies in what was computed
    between the layers, where there are no parameters. Without such a layer, the loss is looked at.

    When it is wrong
    ----------------
    A model may mask outputs with -inf on purpose; layers with parameters, which are what is watched, rarely do.
    Under dynamic loss scaling infinite gradients are part of the plan in the first steps: gradients are not judged
    here.

    Fix
    ---
    Look at the first layer whose output is not finite. If the signal grew on the way there, draw the weights with
    the gain that their activations need; if it did not, the operation in front of it is to blame. bfloat16 reaches
    as far as float32, float16 does not.

    References
    ----------
    Micikevicius et al., "Mixed Precision Training", ICLR (2018).
    Wardat, Le and Rajan, "DeepLocalize: Fault Localization for Deep Neural Networks", ICSE (2021).
    """

    code = "FAN103"
    name = "non-finite-signal"
    needs = frozenset(
        {Need(Role.OUTPUT), Need(Role.INPUT), Need(Role.WEIGHT), Need(Role.BIAS), Need(Role.WEIGHT_GRAD)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most: the origin."""
        start = trial.start
        outputs = _in_forward_order(trial, start) if start else []
        if start is None or not (outputs or start.losses):
            settle = (
                "watch the model from its first training step on, with fanin.check, fanin.watch or fanin run"
            )
            yield Missing(self.code, "no layer's output was seen at training step 0", settle)
            return
        if _has_unsound_source(trial, start):
            return
        broken = [o for o in outputs if o.summary.non_finite]
        if broken:
            yield self._overflow(start, broken)
        elif start.losses and not isfinite(start.loss):
            yield self._undefined_loss(start)
        elif overflown := _broken_gradients(trial, start):
            yield self._undefined_gradient(overflown)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Signals that stay, signals that grow and stay finite, and signals that do not."""
        yield Example("he_normal", mlp)
        yield Example("N(0, 1), which grows but stays finite", lambda: mlp(init=normal(1.0)))
        yield Example("a NaN weight, which is FAN401", lambda: mlp(overrides={"head.weight": constant(nan)}))
        yield Example(
            "weights whose products overflow", lambda: mlp(init=normal(1e80)), layers=("blocks.3.fc",)
        )
        yield Example(
            "a finite batch that is too large",
            lambda: mlp(init=normal(100.0), batch=(clusters(32)[0] * 1e307, clusters(32)[1])),
            layers=("blocks.0.fc",),
        )
        yield Example("a loss without a value", _without_loss, layers=("",))

    def _overflow(self, start: Step, broken: list[Observation]) -> Finding:
        first, summary = broken[0], broken[0].summary
        given = [o for o in start.of(Role.INPUT).values() if o.layer == first.layer]
        spoiled = any(o.summary.non_finite for o in given)
        largest = max((o.summary.largest for o in given), default=nan)
        source = (
            "Its input is not finite either: an operation without parameters in front of it is to blame."
            if spoiled
            else f"Its input is finite and reaches {largest:.3g}."
        )
        found = self._finding(
            summary.non_finite,
            "non-finite values",
            f"{first.tensor} holds {summary.nan} NaN and {summary.inf} infinite values among "
            f"{summary.count + summary.non_finite}. {source}",
        )
        layers = tuple(dict.fromkeys(o.layer for o in broken))
        return replace(found, layer=first.layer, layers=layers, tensor=first.tensor)

    def _undefined_loss(self, start: Step) -> Finding:
        text = f"The loss is {start.loss}, though every output that was seen is finite."
        return self._finding(1, "non-finite losses", text)

    def _undefined_gradient(self, broken: list[Observation]) -> Finding:
        last = broken[-1]
        text = (
            f"{last.tensor} holds {last.summary.nan} NaN and {last.summary.inf} infinite values, though the loss and "
            f"every output that was seen are finite; so {'does' if len(broken) < 3 else 'do'} {len(broken) - 1} more."
        )
        found = self._finding(last.summary.non_finite, "non-finite gradients", text)
        layers = tuple(dict.fromkeys(o.layer for o in broken))
        return replace(found, layer=last.layer, layers=layers, tensor=last.tensor)

    def _finding(self, number: int, quantity: str, text: str) -> Finding:
        return Finding(
            self.code,
            self.name,
            layer="",
            step=0,
            measured=Interval(number, number),
            expected=Interval(0, 0),
            quantity=quantity,
            message=text,
            cause=Cause.NON_FINITE_SIGNAL,
            scope=Scope.EVERYWHERE,
        )


def _in_forward_order(trial: Trial, start: Step) -> list[Observation]:
    place = {layer.path: i for i, layer in enumerate(trial.spec.layers)}
    return sorted(start.of(Role.OUTPUT).values(), key=lambda o: place.get(o.layer, len(place)))


def _broken_gradients(trial: Trial, start: Step) -> list[Observation]:
    """Gradients of weights that are not finite, in forward order: the last one is where the backward pass broke.
    float16 does not count, for its loss scaling finds its range by overflowing."""
    place = {layer.path: i for i, layer in enumerate(trial.spec.layers)}
    seen = (o for o in start.of(Role.WEIGHT_GRAD).values() if o.summary.non_finite and o.dtype != "float16")
    return sorted(seen, key=lambda o: place.get(o.layer, len(place)))


def _has_unsound_source(trial: Trial, start: Step) -> bool:
    """Whether a parameter or the batch is not finite itself."""
    fed_by_the_batch = trial.spec.entrances
    sources = [
        *start.of(Role.WEIGHT).values(),
        *start.of(Role.BIAS).values(),
        *(o for o in start.of(Role.INPUT).values() if o.layer in fed_by_the_batch),
    ]
    return any(o.summary.non_finite for o in sources)


def _without_loss() -> Trial:
    trial = mlp()
    return replace(trial, steps=(replace(trial.steps[0], losses={0: nan}),))
