"""What a repair is: changes of parameters, what they do, and whether they may be applied. None is applied yet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import nan

from fanin.finding import Verdict
from fanin.race import Race
from fanin.summary import Interval


class Treatment(StrEnum):
    """What is done to a parameter: REDRAW its values by a sound scheme, SCALE them and keep their directions, or RESET
    them to the constant that their role starts at (a bias 0, a normalization's gain 1, a forget gate's bias 1)."""

    REDRAW = "redraw"
    SCALE = "scale"
    RESET = "reset"


class Safety(StrEnum):
    """SAFE: nothing was trained or loaded, and the repaired network has won against the given one. UNSAFE: something
    would be lost, or nothing is proven. ADVICE: there is nothing to change in the initialization."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    ADVICE = "advice"


class Reach(StrEnum):
    """How much of a network a plan changes, smallest first: the parameters that the diagnosis BLAMES, all of the LAYERS
    that it names, their symptoms among them, or EVERYTHING that can be drawn. NAMED: what the user has named."""

    BLAMED = "blamed"
    LAYERS = "layers"
    EVERYTHING = "everything"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which parameters are to get which treatment.

    Attributes:
        treatments: By full name of the parameter, in forward order.
        reach: How much of the network that is.
        named: Whether the user has named them: then frozen ones too are drawn.
    """

    treatments: dict[str, Treatment]
    reach: Reach = Reach.BLAMED
    named: bool = False


@dataclass(frozen=True, slots=True)
class Values:
    """A parameter's values in two numbers; nan where they are not finite.

    Attributes:
        rms: Root mean square.
        mean: Mean.
    """

    rms: float
    mean: float

    def __str__(self) -> str:
        return f"rms {self.rms:.3g}, mean {self.mean:.2g}"


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one parameter.

    Attributes:
        parameter: Its full name, e.g. `blocks.7.fc1.weight`.
        treatment: Redrawn, scaled or reset.
        scheme: Name of the new values in the literature, e.g. `he_normal`.
        distribution: `normal`, `uniform`, `orthogonal` or `constant`; `kept` where only the scale changes.
        std: Root mean square of the distribution, the factor in it; nan where it is of no use.
        gain: std √fan_in; nan where the fan is not known.
        factor: What the pass has shown to be missing from the scheme's own scale, of a scaled parameter the whole.
        before, after: Its values.
        tied_to: Further names of the same memory, which change with it.
        family: Parameters that the pasted code changes in the same statement, this one among them.
    """

    parameter: str
    treatment: Treatment
    scheme: str
    distribution: str
    std: float = nan
    gain: float = nan
    factor: float = 1.0
    before: Values = Values(nan, nan)
    after: Values = Values(nan, nan)
    tied_to: tuple[str, ...] = ()
    family: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = f"x {self.factor:.3g}" if self.treatment is Treatment.SCALE else self.scheme
        tied = f" (and {', '.join(self.tied_to)})" if self.tied_to else ""
        return f"{self.parameter}{tied}: {self.treatment}, {how}; rms {self.before.rms:.3g} -> {self.after.rms:.3g}"


@dataclass(frozen=True, slots=True)
class Effect:
    """A measurement that made the verdict, before and after.

    Attributes:
        code: The rule's code.
        layer: Path of the layer.
        quantity: What was measured.
        expected: Where it should lie.
        before: What it was.
        after: What it is; None where the rule has nothing to say any more, so that it lies within `expected`.
    """

    code: str
    layer: str
    quantity: str
    expected: Interval
    before: Interval
    after: Interval | None = None

    @property
    def is_cured(self) -> bool:
        """Whether the rule has nothing to say any more."""
        return self.after is None

    def __str__(self) -> str:
        now = f"within {self.expected}" if self.after is None else str(self.after)
        return f"{self.code} {self.quantity} at {self.layer or 'the model'}: {self.before} -> {now}"


@dataclass(frozen=True, slots=True)
class Repair:
    """A new initialization of named parameters, its effect and its proof.

    Attributes:
        changes: In forward order; none where there is only advice.
        safety: Whether it may be applied.
        reasons: Why it is not safe, one sentence each; empty where it is.
        advice: What is to be done besides, or instead.
        reach: How much of the network it changes.
        effects: The causes' own measurements, before and after.
        losses: First loss as given, and repaired; nan where not computed.
        verdict: Of the repaired network, from the same look that judged the given one; None without one.
        proof: The given network against the repaired one, trained on the same batches; None where they did not race.
        repeats: Further races with other draws, where the first one was close.
        code: Plain initialization code that does the same to a model called `model`.
        diff: The same as a unified diff of the user's files, where their lines are known and can be rewritten.
        elsewhere: Where to insert the code, for what could not be rewritten: one sentence each.
        seed: Of the draw.
        passes: Forward passes that all this took, with or without a backward pass.
        seconds: Time that all this took.
        outdone: Why another is proposed, where this one won its races too.
    """

    changes: tuple[Change, ...] = ()
    safety: Safety = Safety.ADVICE
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    reach: Reach = Reach.BLAMED
    effects: tuple[Effect, ...] = ()
    losses: tuple[float, float] = (nan, nan)
    verdict: Verdict | None = None
    proof: Race | None = None
    repeats: tuple[Race, ...] = ()
    code: str = ""
    diff: str = ""
    elsewhere: tuple[str, ...] = ()
    seed: int = 0
    passes: int = 0
    seconds: float = 0.0
    outdone: str = ""

    @property
    def proofs(self) -> tuple[Race, ...]:
        """All its races."""
        return (self.proof, *self.repeats) if self.proof is not None else ()

    @property
    def is_proven(self) -> bool:
        """Whether the repaired network has won most of its races."""
        won = sum(race.reference_wins for race in self.proofs)
        return 2 * won > len(self.proofs)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of what it changes."""
        return tuple(change.parameter for change in self.changes)

    def __str__(self) -> str:
        said = [f"{self.safety.upper()}  {len(self.changes)} parameters"]
        said += [f"  not safe: {reason}" for reason in self.reasons]
        said += [f"  {line}" for line in (*self.effects, *self.changes)]
        said += [f"  advice: {text}" for text in self.advice]
        return "\n".join([*said, *(["", self.code] if self.code else [])])
