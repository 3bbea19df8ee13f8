"""FAN412: embeddings too large for what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval, TensorSummary
from fanin.synthetic import seen
from fanin.trial import Kind, LayerSpec, ParameterSpec, Role, Step, Trial

LARGEST = 3.0
"""Largest root mean square of embeddings that nothing normalizes: three times the framework's unit normal, which is
sound (unit-scaled embeddings, T5). A factor of √width makes 8 of it at width 64."""

LARGEST_LOGITS = 5.0
"""Largest standard deviation σ of the logits of a head that is tied to the table. Normal logits of σ = 5 over 10^4
tokens cost 12 nats more than an even guess (σ²/2; less where few tokens are drawn), and PyTorch's unit normal under a
tied head gives √width: 16 at width 256. Heads drawn on purpose have σ of about 1 at most."""

OVERCONFIDENT = 1.5
"""Loss at step 0, relative to that of the sound re-draw, up to which large logits are scaled down by something behind
the head (a temperature, a soft cap): 0.85 to 0.92 for sound tables, 7.7 to 9.9 for a unit normal under a tied head."""


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table at step 0."""

    layer: LayerSpec
    spec: ParameterSpec
    rms: float

    @property
    def tensor(self) -> str:
        """Its full name."""
        return self.layer.parameter_path(self.spec)


@dataclass(frozen=True, slots=True)
class Excess:
    """What is too large, by how much, and how to say so."""

    table: Table
    value: float
    limit: float
    quantity: str
    message: str


class EmbeddingScale(Rule):
    r"""Embeddings are too large for the layers that read them, or for the head that is tied to them.

    What it detects
    ---------------
    A trainable embedding table of which the rows have a root mean square above 3, in the table or, after a factor,
    where the next layer reads them, without a normalization there; or a table that is also the head's weight, with
    logits of a standard deviation above 5.

    Why it matters
    --------------
    Layers are drawn for inputs of order 1: larger ones saturate attention and gates, and drown what residual branches
    add. Under a tied head it is worse. The logit of token v is the product of its row with features h of order 1,

        z_v = e_v · h,        std[z] = rms(e) √width rms(h)

    so a unit normal makes logits of √width, and a network that is certain of an arbitrary token, in a residual
    network of the one that it has just read. T5's port to PyTorch started at a loss of 110 instead of 11.

    How it is measured
    ------------------
    The rms of a table is taken over its values other than zero, so that padding rows do not count. What the next
    layer reads is seen at its input, if embeddings are all that feeds it, and added up or taken alone, and no
    activation intervenes. A table that only normalizations read may have any size. For a tied head the logits are
    measured; where they were not, std[z] is computed from the equation above. They are passed where the loss at step
    0 is at most 1.5 times that of the sound re-draw: then something behind the head scales them down. T5's
    unit normal, with features scaled by 1 / √width before a tied head, is sound by this measure, and so are heads
    that are zero. Frozen tables are not judged.

    When it is wrong
    ----------------
    A head that reads the table by a function (`F.linear(h, embedding.weight)`) is no layer and not seen. Embeddings of
    continuous quantities may be meant to be large. With Adam the harm is limited to the first hundreds of steps; a
    finding is therefore a suspect, which counts only where the signal shows a fault.

    Fix
    ---
    Draw the table with a standard deviation of 0.02, or of width^-1/2 where the head is tied to it; or scale the
    features before the head. Leave out a factor of √width if the table already has unit variance.

    References
    ----------
    - Press and Wolf 2017, Using the Output Embedding to Improve Language Models: tied heads.
    - Vaswani et al. 2017, Attention Is All You Need, section 3.4: the factor √width, for tied tables of width^-1/2.
    - Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
    - PyTorch issue 3121, transformers pull request 26441: unit normals under tied heads.
    """

    code: ClassVar[str] = "FAN412"
    name: ClassVar[str] = "embedding-too-large"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.WEIGHT), Need(Role.INPUT), Need(Role.OUTPUT, reference=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each table at fault, or one for all where there are several and all are."""
        start = trial.start
        if start is None:
            return
        tables = _tables(trial, start)
        off = [e for t in tables if (e := _logits(trial, start, t) or _size(trial, start, t))]
        layers = tuple(e.table.layer.path for e in off)
        if 1 < len(off) == len(tables):
            yield self._finding(off[0], layers, Scope.EVERYWHERE)
        else:
            yield from (self._finding(e, (e.table.layer.path,), Scope.LAYER) for e in off)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Tables read by a layer, by a normalization, and by a tied head."""
        yield Example("the unit normal", lambda: _network(1.0))
        yield Example("N(0, 0.02^2), tied", lambda: _network(0.02, tied=True))
        yield Example("large, but normalized", lambda: _network(10.0, reader=Kind.NORM))
        yield Example(
            "T5: unit normal, features scaled for the tied head", lambda: _network(1.0, True, 1 / 16)
        )
        yield Example("N(0, 10^2)", lambda: _network(10.0), ("embedding",))
        yield Example("the unit normal times √width", lambda: _network(1.0, factor=16.0), ("embedding",))
        yield Example("the unit normal, tied", lambda: _network(1.0, tied=True), ("embedding",))

    def _finding(self, excess: Excess, layers: tuple[str, ...], scope: Scope) -> Finding:
        return Finding(
            self.code,
            self.name,
            excess.table.layer.path,
            0,
            Interval(excess.value, excess.value),
            Interval(0.0, excess.limit),
            excess.quantity,
            excess.message + (f" So are {len(layers) - 1} more tables." if len(layers) > 1 else ""),
            Cause.EMBEDDING_TOO_LARGE,
            scope=scope,
            layers=layers,
            tensor=excess.table.tensor,
            source=excess.table.spec.source,
            severity=Severity.SUSPECT,
        )


def rms_of_rows(table: TensorSummary) -> float:
    """Root mean square of the values other than zero; 0 when there are none.

    >>> from fanin.summary import summarize
    >>> rms_of_rows(summarize([[0.0, 0.0], [3.0, -3.0]]))
    3.0
    """
    others = table.count - table.zeros
    return sqrt(table.second_moment * table.count / others) if others > 0 else 0.0


def _tables(trial: Trial, start: Step) -> list[Table]:
    """Trainable tables that were read and seen, in forward order. Of tied weights the first one is seen."""
    weights = start.of(Role.WEIGHT)
    found: list[Table] = []
    for layer in trial.spec.layers:
        for spec in layer.weights if layer.kind is Kind.EMBEDDING and layer.calls else ():
            drawn = weights.get(spec.tied_to or layer.parameter_path(spec))
            if drawn and spec.trainable and len(spec.shape) == 2 and not drawn.summary.non_finite:
                found.append(Table(layer, spec, rms_of_rows(drawn.summary)))
    return found


def _size(trial: Trial, start: Step, table: Table) -> Excess | None:
    """Whether the rows are too large, in the table or where they are read."""
    readers = [layer for layer in trial.spec.layers if table.layer.path in layer.inputs and layer.calls]
    if readers and all(layer.kind is Kind.NORM for layer in readers):
        return None
    quantity = "rms of embeddings"
    if table.rms > LARGEST:
        text = f"The rows of {table.tensor} have an rms of {table.rms:.3g}, and nothing normalizes them."
        return Excess(table, table.rms, LARGEST, quantity, text)
    inputs = start.first(Role.INPUT)
    for reader in readers:
        if reader.path in inputs and _reads_rows(trial, reader) and reader.kind is not Kind.NORM:
            rms = inputs[reader.path].summary.rms
            if rms > LARGEST:
                text = f"{reader.path} reads embeddings of rms {rms:.3g}; {table.tensor} has {table.rms:.3g}."
                return Excess(table, rms, LARGEST, f"{quantity} where they are read", text)
    return None


def _reads_rows(trial: Trial, reader: LayerSpec) -> bool:
    """Whether a layer reads rows of tables, added up or alone, and nothing else."""
    fed_by = [layer for layer in trial.spec.layers if layer.path in reader.inputs]
    only = len(fed_by) == len(reader.inputs) and all(layer.kind is Kind.EMBEDDING for layer in fed_by)
    return only and reader.joins in ("", "sum") and reader.input_activation == "identity"


def _logits(trial: Trial, start: Step, table: Table) -> Excess | None:
    """Whether a head that is tied to the table puts out large logits."""
    names = {table.tensor, table.spec.tied_to or table.tensor}
    head = next((layer for layer in trial.spec.layers if _is_tied_head(layer, names)), None)
    sound = trial.reference.loss if trial.reference else nan
    if head is None or start.loss <= OVERCONFIDENT * sound:  # never where there is no reference
        return None
    made, taken = start.first(Role.OUTPUT).get(head.path), start.first(Role.INPUT).get(head.path)
    if made:
        std = made.summary.std
    elif taken:
        std = table.rms * sqrt(table.spec.shape[1]) * taken.summary.rms
    else:
        return None
    if not std > LARGEST_LOGITS:
        return None
    text = (
        f"{head.path} has the weight of {table.tensor}, with rms {table.rms:.3g} at width {table.spec.shape[1]}: "
        f"its logits start with a standard deviation of {std:.3g}."
    )
    return Excess(table, std, LARGEST_LOGITS, "standard deviation of the logits", text)


def _is_tied_head(layer: LayerSpec, names: set[str]) -> bool:
    """Whether a linear layer that ran shares the memory of a parameter of these names."""
    return bool(layer.kind is Kind.LINEAR and layer.calls) and any(
        {layer.parameter_path(w), w.tied_to} & names for w in layer.weights
    )


# -- examples


def _network(
    std: float, tied: bool = False, scale: float = 1.0, factor: float = 1.0, reader: Kind = Kind.LINEAR
) -> Trial:
    """1000 tokens in 256 features, a layer that reads them times a factor, and a head on scaled features."""
    rng = np.random.default_rng(0)
    table: Floats = rng.normal(0.0, std, (1000, 256))
    features = scale * rng.normal(0.0, 1.0, (64, 256))
    logits = features @ (table.T if tied else rng.normal(0.0, 1 / 16, (256, 1000)))
    rows = ParameterSpec("weight", Role.WEIGHT, table.shape, fan_in=1, fan_out=256, unit_axis=0)
    out = ParameterSpec("weight", Role.WEIGHT, table.shape, tied_to="embedding.weight" if tied else None)
    layers = (
        LayerSpec("embedding", Kind.EMBEDDING, "Embedding", (rows,), calls=1),
        LayerSpec("trunk", reader, "Trunk", inputs=("embedding",), input_activation="identity", calls=1),
        LayerSpec("head", Kind.LINEAR, "Linear", (out,), ("trunk",), calls=1),
    )
    values = {
        ("embedding", Role.WEIGHT): table,
        ("trunk", Role.INPUT): factor * table[:64],
        ("head", Role.INPUT): features,
        ("head", Role.OUTPUT): logits,
    }
    return seen(layers, values, outputs=("head",), loss=20.0)
