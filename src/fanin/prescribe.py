"""From a diagnosis to plans: what would cure its causes, the smallest change first.

Pure: nothing here knows a framework, or how values are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from fanin.cause import Cause
from fanin.change import Plan, Reach, Treatment
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Finding, Scope, Verdict
from fanin.measures import MIXING, branch_ends, head, is_deep_and_plain
from fanin.trial import Kind, LayerSpec, ModelSpec, ParameterSpec, Role, Trial

DEGENERATE = frozenset(
    {
        Cause.NON_FINITE_PARAMETER,
        Cause.ABSURD_SCALE,
        Cause.NEVER_WRITTEN,
        Cause.ZERO_PATH,
        Cause.SYMMETRIC_UNITS,
        Cause.DUPLICATE_DRAWS,
        Cause.MEAN_OFFSET,
        Cause.SPECIAL_SCHEME_MISSING,
        Cause.RECURRENT_KERNEL,
        Cause.ATTENTION_SATURATED,
    }
)
"""Causes that no factor cures: values without variation or sense, a spectrum, and queries and keys that are packed
with the values, of which a factor for all would spoil the rest."""

NEVER_HELD = frozenset({Cause.NON_FINITE_PARAMETER, Cause.ABSURD_SCALE, Cause.NEVER_WRITTEN})
"""Causes by which nothing that the layer holds can be relied on."""

SCALES = frozenset(
    {
        Cause.WRONG_FAN,
        Cause.EMBEDDING_TOO_LARGE,
        Cause.HEAD_TOO_LARGE,
        Cause.DEFAULT_UNSUITED,
        Cause.GAIN_TOO_SMALL,
        Cause.GAIN_TOO_LARGE,
        Cause.RESIDUAL_GROWTH,
    }
)
"""Causes that one factor a layer cures: directions stay."""

CONSTANTS = frozenset({Cause.BIAS_OFFSET, Cause.NORM_GAIN})
"""Causes that lie in what starts at a constant."""

STRUCTURE = {
    Cause.RESIDUAL_GROWTH: "or change the structure: normalize the branches' input, or scale each branch by a learned "
    "factor that starts at zero (Zhang et al. 2019; Bachlechner et al. 2021)",
    Cause.DEFAULT_UNSUITED: "or change the structure: a normalization between layers bears any draw",
    Cause.ATTENTION_SATURATED: "or normalize queries and keys (Henry et al. 2020), which bears any draw",
    Cause.EXPLODING_GRADIENT: "a normalization without a skip makes gradients grow with depth whatever the draw (Yang "
    "et al. 2019): add skips, or warm the learning rate up",
}
"""What would help besides."""


def plans(trial: Trial, diagnosis: Diagnosis) -> tuple[Plan, ...]:
    """What would cure the causes of this verdict, the smallest change first; none where something else is to blame.

    Without a cause the only plan is everything: whether it helps is for a race to say.
    """
    causes = [o.finding for o in diagnosis.origins if _is_initialization(o.finding)]
    if diagnosis.origins and not causes:
        return ()
    everything = _everything(trial, diagnosis)
    if not causes:
        return (everything,) if everything.treatments else ()
    symptoms = [s for o in diagnosis.origins if _is_initialization(o.finding) for s in o.symptoms]
    blamed = _plan(trial, (t for f in causes for t in _cure(trial, f)), Reach.BLAMED)
    layers = _plan(trial, _layers(trial, [*causes, *symptoms]), Reach.LAYERS)
    return tuple(_growing([blamed, layers, everything]))


def whole(trial: Trial) -> Plan:
    """Everything that can be drawn, as for a network that was never initialized."""
    return _everything(trial, Diagnosis(Verdict.UNDECIDED))


def named(trial: Trial, layers: Sequence[str] | str) -> Plan:
    """The parameters of these layers, modules or parameters, whatever they hold.

    Args:
        trial: Of the model.
        layers: Paths, or one; a module's stands for all layers within it.

    Raises:
        UsageError: There is none of this name.
    """
    treatments: dict[str, Treatment] = {}
    for name in [layers] if isinstance(layers, str) else layers:
        found = [
            layer.parameter_path(p) if p.tied_to is None else p.tied_to
            for layer in trial.spec.layers
            for p in layer.parameters
            if _belongs(name, layer, layer.parameter_path(p))
        ]
        if not found:
            raise _no_layer(trial.spec, name)
        treatments |= dict.fromkeys(found, Treatment.REDRAW)
    return Plan(_in_order(trial.spec, treatments), Reach.NAMED, named=True)


def advice(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What helps and is no new draw: other causes than the initialization, and changes of structure."""
    said = []
    for finding in (o.finding for o in diagnosis.origins):
        if finding.cause is not None and not finding.cause.is_initialization:
            said.append(f"{finding.cause.title}: {finding.cause.remedy}")
        elif finding.cause in STRUCTURE:
            said.append(STRUCTURE[finding.cause])
    return tuple(dict.fromkeys(said))


def _no_layer(spec: ModelSpec, name: str) -> UsageError:
    known = [layer.path for layer in spec.layers if layer.parameters]
    return UsageError(
        "there is no layer of this name to repair",
        where="layers",
        got=name,
        expected=f"one of {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}",
        next_step="take the names from model.named_modules()",
    )


def _belongs(name: str, layer: LayerSpec, path: str) -> bool:
    return name in (path, layer.path) or layer.path.startswith(f"{name}.")


# ── one cause ───────────────────────────────────────────────────────────────────────────────────────────────

Treated = tuple[str, Treatment]
"""A parameter's full name, and what it is to get."""


def _cure(trial: Trial, finding: Finding) -> Iterator[Treated]:
    """What one finding asks for."""
    cause, spec = finding.cause, trial.spec
    if cause in CONSTANTS:
        role = Role.BIAS if cause is Cause.BIAS_OFFSET else None
        yield from _all(_reach(spec, finding), Treatment.RESET, role)
    elif cause in NEVER_HELD or cause is Cause.RECURRENT_KERNEL:
        yield from _all(_reach(spec, finding), Treatment.REDRAW)
    elif cause in DEGENERATE:
        yield from _all(_inside(spec, finding), Treatment.REDRAW, Role.WEIGHT)
    elif cause in SCALES:
        for layer in _scaled(spec, finding):
            yield from _all([layer], _rescaled(spec, finding, layer), Role.WEIGHT)
    else:
        yield from _symptom(trial, finding)


def _rescaled(spec: ModelSpec, finding: Finding, layer: LayerSpec) -> Treatment:
    """One factor keeps directions; but in a network that is deep for its width only orthogonal ones carry a signal, and
    for attention one factor would scale values with queries and keys."""
    named = (finding.layer, *finding.layers)
    packed = layer.kind is Kind.ATTENTION or any(layer.path.startswith(f"{path}.") for path in named if path)
    return Treatment.REDRAW if packed or is_deep_and_plain(spec) else Treatment.SCALE


def _symptom(trial: Trial, finding: Finding) -> Iterator[Treated]:
    """A symptom without a cause: of single layers these and what feeds them, else everything."""
    if finding.scope is Scope.EVERYWHERE or not finding.layer:
        yield from _everything(trial, Diagnosis(Verdict.UNDECIDED)).treatments.items()
        return
    layers = _reach(trial.spec, finding)
    feeding = {path for layer in layers for path in layer.inputs}
    yield from _all([layer for layer in trial.spec.layers if layer in layers or layer.path in feeding])


def _all(
    layers: Iterable[LayerSpec], treatment: Treatment = Treatment.REDRAW, role: Role | None = None
) -> Iterator[Treated]:
    for layer in layers:
        for parameter in layer.parameters:
            if role in (None, parameter.role):
                name = parameter.tied_to or layer.parameter_path(parameter)
                yield name, Treatment.RESET if _is_constant(layer, parameter) else treatment


def _is_constant(layer: LayerSpec, parameter: ParameterSpec) -> bool:
    """Whether its role starts at a constant."""
    return layer.kind is Kind.NORM or parameter.role is Role.BIAS


def _reach(spec: ModelSpec, finding: Finding) -> list[LayerSpec]:
    paths = set(finding.layers or (finding.layer,))
    return [layer for layer in spec.layers if layer.path in paths]


def _inside(spec: ModelSpec, finding: Finding) -> list[LayerSpec]:
    """The layers named; of a module that is none itself (attention written by hand) those within."""
    paths = finding.layers or (finding.layer,)
    own = _reach(spec, finding)
    alone = [path for path in paths if path not in {layer.path for layer in own if layer.parameters}]
    within = [layer for layer in spec.layers if any(not p or layer.path.startswith(f"{p}.") for p in alone)]
    return [
        layer for layer in spec.layers if layer in own or (layer in within and layer.kind is not Kind.NORM)
    ]


def _scaled(spec: ModelSpec, finding: Finding) -> list[LayerSpec]:
    """A slope over many layers names some of them; whatever shares it is scaled with them."""
    if finding.scope is Scope.LAYER or finding.cause in (Cause.EMBEDDING_TOO_LARGE, Cause.HEAD_TOO_LARGE):
        return _inside(spec, finding)
    place = {layer.path: i for i, layer in enumerate(spec.layers)}
    first = min((place.get(p, 0) for p in (finding.layer, *finding.layers)), default=0)
    own = {layer.path for layer in _inside(spec, finding)}
    slope = len(finding.layers) <= 1
    return [
        layer
        for layer in spec.layers
        if layer.path in own or (slope and place[layer.path] >= first and layer.kind in MIXING)
    ]


# ── wider ───────────────────────────────────────────────────────────────────────────────────────────────────


def _layers(trial: Trial, findings: Sequence[Finding]) -> Iterator[Treated]:
    """All parameters of all layers that any of the findings names."""
    kept = _deliberate(trial, findings)
    for finding in findings:
        for name, treatment in _all(_inside(trial.spec, finding)):
            if name not in kept:
                yield name, treatment


def _everything(trial: Trial, diagnosis: Diagnosis) -> Plan:
    faults = [f for o in diagnosis.origins for f in (o.finding, *o.symptoms)]
    kept = _deliberate(trial, faults)
    drawn = (pair for pair in _all(trial.spec.layers) if pair[0] not in kept)
    return _plan(trial, drawn, Reach.EVERYTHING)


def _deliberate(trial: Trial, blamed: Sequence[Finding]) -> set[str]:
    """Starts that somebody has chosen: weights of zeros where networks have them (heads, ends of branches and of
    adapters, which are branches) that no finding blames, and the bias of a head that states a prior."""
    start = trial.start
    if start is None:
        return set()
    at_fault = {path for f in blamed for path in (f.layer, *f.layers)}
    usual = set(branch_ends(trial.spec)) | set(trial.spec.outputs)
    zeros = {
        seen.tensor
        for seen in start.of(Role.WEIGHT).values()
        if seen.layer in usual - at_fault and seen.summary.is_zero
    }
    return zeros | set(_priors(trial, at_fault))


def _priors(trial: Trial, at_fault: set[str]) -> Iterator[str]:
    """The head's biases, where they are no draw of any framework: those lie within ±1/√fan_in."""
    last, start = head(trial.spec), trial.start
    if last is None or start is None or last.path in at_fault:
        return
    fan = last.weights[0].fan_in
    for seen in start.of(Role.BIAS).values():
        if seen.layer == last.path and fan and isfinite(seen.summary.rms) and seen.summary.rms > fan**-0.5:
            yield seen.tensor


def _plan(trial: Trial, treated: Iterable[Treated], reach: Reach) -> Plan:
    """Of several treatments of one parameter a draw wins over a factor; what is frozen stays, unless it is broken."""
    asked: dict[str, Treatment] = {}
    for name, treatment in treated:
        if asked.get(name) is not Treatment.REDRAW:
            asked[name] = treatment
    return Plan(_in_order(trial.spec, asked), reach)


def _in_order(spec: ModelSpec, treatments: dict[str, Treatment]) -> dict[str, Treatment]:
    order = [layer.parameter_path(p) for layer in spec.layers for p in layer.parameters]
    return {name: treatments[name] for name in order if name in treatments}


def _growing(found: Sequence[Plan]) -> Iterator[Plan]:
    """Without empty ones, and without those that do what a smaller one has done."""
    last: dict[str, Treatment] = {}
    for plan in found:
        wider = {**last, **plan.treatments}
        if wider != last:
            yield Plan(wider, plan.reach)
            last = wider


def _is_initialization(finding: Finding) -> bool:
    return finding.cause is None or finding.cause.is_initialization
