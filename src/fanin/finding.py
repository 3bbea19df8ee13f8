"""What judging a trial yields: findings, what was missing, and the diagnosis made of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fanin.cause import Cause
from fanin.summary import Interval
from fanin.trial import SourceLine


class Verdict(StrEnum):
    """healthy, poor, or undecided: the trial lacks what is needed. Never a silent pass."""

    HEALTHY = "healthy"
    POOR = "poor"
    UNDECIDED = "undecided"


class Scope(StrEnum):
    """How far a fault reaches."""

    LAYER = "layer"
    EVERYWHERE = "everywhere"


class Severity(StrEnum):
    """What training makes of it: a FAULT spoils it or slows it down much; a SUSPECT is unusual in itself and is the
    fault where the signal shows that something is, as its origin, and otherwise a note; a CLUE is the same and
    otherwise not worth a word, since many sound networks have it; from a NOTE training recovers anyway."""

    FAULT = "fault"
    SUSPECT = "suspect"
    CLUE = "clue"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One measurement outside what a rule expects.

    Attributes:
        code: The rule's code, e.g. `FAN101`.
        name: The rule's name, e.g. `shrinking-signal`.
        layer: Path of the layer where it starts.
        step: Training step of the measurement.
        measured: The value, or an interval that contains it.
        expected: Where it should lie.
        quantity: What was measured, with its unit, e.g. `Var[out]/Var[in]`.
        message: The evidence in one or two sentences, with numbers.
        cause: The explanation; None for a rule that gives none (the documented rule).
        scope: One layer, or everywhere from this layer on.
        layers: All layers concerned, in forward order, this one among them.
        tensor: Full name of the tensor concerned, where it is one.
        source: The line that last wrote the parameter; None where that cannot be known.
        workers: The ranks that saw it.
        severity: Whether it makes a start poor.
    """

    code: str
    name: str
    layer: str
    step: int
    measured: Interval
    expected: Interval
    quantity: str
    message: str
    cause: Cause | None = None
    scope: Scope = Scope.LAYER
    layers: tuple[str, ...] = ()
    tensor: str = ""
    source: SourceLine | None = None
    workers: tuple[int, ...] = (0,)
    severity: Severity = Severity.FAULT

    @property
    def evidence(self) -> str:
        """The measurement, what was expected, and the sentence about it."""
        return f"{self.quantity} = {self.measured} (expected {self.expected}). {self.message}"


@dataclass(frozen=True, slots=True)
class Missing:
    """Evidence that a rule needs and the trial lacks.

    Attributes:
        code: The rule's code.
        what: What is missing, and where.
        settle: What would supply it.
        blocks: Whether a verdict of healthy is impossible without it.
    """

    code: str
    what: str
    settle: str
    blocks: bool = True


class Standing(StrEnum):
    """What the verdict makes of a finding: where the trouble begins, what follows from that, or neither."""

    ORIGIN = "origin"
    SYMPTOM = "symptom"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Origin:
    """A fault, and the findings that follow from it.

    Attributes:
        finding: The fault itself.
        symptoms: Findings that it explains.
        downstream: Paths of the layers that suffer from it without fault of their own.
    """

    finding: Finding
    symptoms: tuple[Finding, ...] = ()
    downstream: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict of a trial with its causes, origin before symptom.

    Attributes:
        verdict: healthy, poor or undecided.
        origins: Faults by precedence, then forward order.
        notes: What is unusual and no fault.
        missing: What kept rules from deciding.
        why: One sentence.
        next_step: One sentence: what to do.
        documented: Verdict of the documented rule, PoorWeightInitialization, on the same trial; None when it was
            not asked.
        documented_findings: Its findings, one for each of its checks that fires.
        documented_missing: What kept its checks from deciding.
        disagreement: Why the documented rule's verdict differs, where it does.
        confidence: How often a verdict with this evidence was right on networks labelled by training, 0 to 1; 0 for
            undecided.
        decided_by: The stage that settled it: `parameters`, `one batch`, `five steps` or `race`.
        not_looked_at: Stages that were left out, and how to have them.
    """

    verdict: Verdict
    origins: tuple[Origin, ...] = ()
    notes: tuple[Finding, ...] = ()
    missing: tuple[Missing, ...] = ()
    why: str = ""
    next_step: str = ""
    documented: Verdict | None = None
    documented_findings: tuple[Finding, ...] = ()
    documented_missing: tuple[Missing, ...] = ()
    disagreement: str = ""
    confidence: float = 0.0
    decided_by: str = ""
    not_looked_at: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings: each origin, then its symptoms; notes come last."""
        return tuple(finding for finding, _ in self.standings)

    @property
    def is_documented_rule(self) -> bool:
        """Whether this is what the documented rule says, so that a report need not say it once more."""
        said = {*self.documented_findings, *self.documented_missing}
        return bool(said) and said == {*self.findings, *self.missing}

    @property
    def standings(self) -> tuple[tuple[Finding, Standing], ...]:
        """All findings in the same order, with what the verdict makes of each."""
        found = [(note, Standing.NOTE) for note in self.notes]
        for origin in reversed(self.origins):
            symptoms = [(symptom, Standing.SYMPTOM) for symptom in origin.symptoms]
            found = [(origin.finding, Standing.ORIGIN), *symptoms, *found]
        return tuple(found)
