"""A repair as plain `torch.nn.init` code, as somebody would write it who knew what it knows.

The code expects `model`, `torch` and `nn`, and draws with the global generator: its values are not those of the repair,
but of the same distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from keyword import iskeyword
from math import exp, isfinite, log, prod, sqrt

from torch import Tensor, nn

from fanin.adapters.torch.recipe import FORGET, FORGET_GATE, GATES, Recipe
from fanin.patch import ALIKE, Call

ONE = 1.25
"""Factor within which the means of two families are one."""

INDENT = "    "

LEVEL = 0.05
"""Of a constant input, below which nothing is taken away: inputs of about zero mean."""

KAIMING = {"relu": "relu", "identity": "linear"}
"""Activations whose gain `nn.init.kaiming_normal_` knows as we do, by our names."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One line or more about one parameter.

    Attributes:
        lines: With `{w}` for the parameter, and `{o}` for its owner.
        scale: The number in it that may be averaged over a family, which stands for `{s}`; 1 where there is none.
    """

    lines: tuple[str, ...]
    scale: float = 1.0


def families(model: nn.Module, recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """The recipes in groups that one loop can write, in the order of their first members."""
    groups: list[_Family] = []
    for recipe in recipes:
        alone = _Family(_pattern(model, recipe.name), [recipe], [_statement(model, recipe)])
        home = next((g for g in groups if g.pattern == alone.pattern and g.takes(alone.statements[0])), None)
        if home is None or not alone.pattern:
            groups.append(alone)
        else:
            home.add(alone)
    order = {recipe.name: place for place, recipe in enumerate(recipes)}
    return [sorted(group.recipes, key=lambda r: order[r.name]) for group in _merged(groups)]


@dataclass(slots=True)
class _Family:
    """Recipes whose names differ in one index, with their statements."""

    pattern: str
    recipes: list[Recipe]
    statements: list[Statement]

    def takes(self, statement: Statement) -> bool:
        """Whether one line could stand for all of these, which are alike, and for this one too."""
        scales = [statement.scale, *(other.scale for other in self.statements)]
        mean = _geometric(scales)
        alike = all(1 / ALIKE < scale / mean < ALIKE for scale in scales)
        return alike and statement.lines == self.statements[0].lines

    def is_about(self, other: _Family) -> bool:
        """Whether only scatter holds two families apart."""
        ratio = _geometric([s.scale for s in self.statements]) / _geometric(
            [s.scale for s in other.statements]
        )
        alike = bool(self.pattern) and self.pattern == other.pattern and 1 / ONE < ratio < ONE
        return alike and self.statements[0].lines == other.statements[0].lines

    def add(self, other: _Family) -> None:
        """Take in another one."""
        self.recipes.extend(other.recipes)
        self.statements.extend(other.statements)


def _merged(groups: Sequence[_Family]) -> list[_Family]:
    """Families that only scatter holds apart become one: a loop over half of the layers would be read as a rule."""
    merged: list[_Family] = []
    for group in groups:
        home = next((other for other in merged if other.is_about(group)), None)
        if home is None:
            merged.append(group)
        else:
            home.add(group)
    return merged


def pasted(model: nn.Module, groups: Iterable[Sequence[Recipe]]) -> str:
    """The code; empty where there is nothing to do."""
    lines: list[str] = []
    opened = ""
    for group in groups:
        header, target = _loop(model, group)
        body = [
            line.format(**_names(target), s=_mean(model, group)) for line in _statement(model, group[0]).lines
        ]
        if header and header != opened:
            lines.append(header)
        lines += [f"{INDENT if header else ''}{line}" for line in body]
        opened = header
    if not any("nn.init" not in line and not line.startswith("for ") for line in lines):
        return "\n".join(lines)
    return "\n".join(["with torch.no_grad():", *(INDENT + line for line in lines)])


def replacement(recipe: Recipe, tensor: Tensor) -> Call:
    """The one call of `nn.init` that draws this parameter soundly; an empty one where a single call cannot."""
    if recipe.distribution == "kept":
        rms = float(tensor.detach().double().square().mean().sqrt())
        recipe = replace(recipe, distribution="normal", factor=rms / recipe.std)
    made = _drawn_lines(recipe, tensor)
    if len(made.lines) != 1 or not made.lines[0].startswith("nn.init."):
        return Call("")
    return Call(made.lines[0], made.scale)


# ── one parameter ───────────────────────────────────────────────────────────────────────────────────────────


def _statement(model: nn.Module, recipe: Recipe) -> Statement:
    if recipe.distribution == "kept":
        return Statement(("{w}.mul_({s})",), recipe.factor)
    if recipe.distribution == "centred":
        return _centred(recipe.value)
    if recipe.distribution == "length":
        return _length(recipe)
    return _drawn_lines(recipe, model.get_parameter(recipe.name))


def _centred(level: float) -> Statement:
    """Minus what a constant input of this level would add."""
    if abs(level) < LEVEL:
        return Statement(("nn.init.zeros_({w})",))
    sign = "-" if level > 0 else ""
    return Statement((f"{{w}}.copy_({sign}{{s}} * {{o}}.weight.flatten(1).sum(1))",), abs(level))


def _drawn_lines(recipe: Recipe, tensor: Tensor) -> Statement:
    std = recipe.std * recipe.factor
    if recipe.distribution == "constant":
        return Statement((f"nn.init.{'ones' if recipe.value else 'zeros'}_({{w}})",))
    if recipe.distribution == "forget_gate":
        hidden = len(tensor) // GATES
        gate = f"{FORGET_GATE * hidden}:{(FORGET_GATE + 1) * hidden}"
        return Statement(("nn.init.zeros_({w})", f"{{w}}[{gate}] = {FORGET / 2}"))
    if recipe.distribution == "uniform":
        return Statement(("nn.init.uniform_({w}, -{s}, {s})",), sqrt(3) * std)
    if recipe.distribution == "orthogonal":
        return _orthogonal(recipe, tensor, std)
    if recipe.distribution != "normal":
        return Statement(())
    if _is_kaiming(recipe, tensor):
        return Statement(
            (f'nn.init.kaiming_normal_({{w}}, nonlinearity="{KAIMING[recipe.activation or ""]}")',)
        )
    padding = () if recipe.padding is None else (f"{{w}}[{recipe.padding}] = 0",)
    return Statement(("nn.init.normal_({w}, std={s})", *padding), std)


def _is_kaiming(recipe: Recipe, tensor: Tensor) -> bool:
    """Whether the scheme by its name draws at this scale, and sees this tensor's fan right."""
    fan = prod(tensor.shape[1:]) if tensor.ndim > 1 else 0
    named = recipe.activation in KAIMING and recipe.scheme in ("he_normal", "lecun_normal")
    return named and fan == recipe.parameter.fan_in and 1 / ALIKE < recipe.factor < ALIKE


def _orthogonal(recipe: Recipe, tensor: Tensor, std: float) -> Statement:
    """torch makes the longer side's vectors orthonormal: elements of RMS 1/√(the longer side)."""
    columns = recipe.fan_in
    rows = recipe.block or tensor.numel() // columns
    gain = std * sqrt(max(rows, columns))
    if recipe.block is None:
        return Statement(("nn.init.orthogonal_({w}, gain={s})",), gain)
    return Statement(
        (f"for gate in {{w}}.split({rows}):", INDENT + "nn.init.orthogonal_(gate, gain={s})"), gain
    )


def _length(recipe: Recipe) -> Statement:
    other = {"weight_g": "{o}.weight_v", "original0": "{o}.original1"}[recipe.parameter.name]
    shape = recipe.parameter.shape
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return Statement((f"{{w}}.copy_({other}.norm(dim={axes}, keepdim=True))",))


def _mean(model: nn.Module, group: Sequence[Recipe]) -> str:
    return _number(_geometric([_statement(model, recipe).scale for recipe in group]))


def _geometric(scales: Sequence[float]) -> float:
    """The mean that keeps a product; the first one where there is none."""
    if all(isfinite(scale) and scale > 0 for scale in scales):
        return exp(sum(log(scale) for scale in scales) / len(scales))
    return scales[0] or 1.0


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.3e}"


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


def _names(target: str) -> dict[str, str]:
    """The parameter and its owner."""
    return {"w": target, "o": target.rpartition(".")[0]}


def expression(model: nn.Module, path: str, root: str = "model") -> str:
    """The Python expression for what is at a path.

    >>> expression(nn.Sequential(nn.Linear(1, 1)), "0.weight")
    'model[0].weight'
    """
    where: object = model
    said = root
    for part in path.split("."):
        said += _step(where, part)
        where = where._modules.get(part) if isinstance(where, nn.Module) else None
    return said


def _step(where: object, part: str) -> str:
    if part.isdigit() and isinstance(where, nn.Sequential | nn.ModuleList | nn.ParameterList):
        return f"[{part}]"
    if isinstance(where, nn.ModuleDict | nn.ParameterDict):
        return f"[{part!r}]"
    if part.isidentifier() and not iskeyword(part):
        return f".{part}"
    return (
        f".get_submodule({part!r})"
        if isinstance(where, nn.Module) and part in where._modules
        else f"[{part!r}]"
    )


def _split(model: nn.Module, name: str) -> tuple[str, str, str] | None:
    """A name at its first index into a list: container, index, rest."""
    parts = name.split(".")
    where: nn.Module | None = model
    for place, part in enumerate(parts):
        if part.isdigit() and isinstance(where, nn.Sequential | nn.ModuleList):
            return ".".join(parts[:place]), part, ".".join(parts[place + 1 :])
        where = where._modules.get(part) if where is not None else None
    return None


def _pattern(model: nn.Module, name: str) -> str:
    """What the names of a family share; empty for a name that has no index."""
    split = _split(model, name)
    return f"{split[0]}.*.{split[2]}" if split else ""


def _loop(model: nn.Module, group: Sequence[Recipe]) -> tuple[str, str]:
    """The head of the loop over a family, and how its body calls the parameter; no head for one alone."""
    split = _split(model, group[0].name) if len(group) > 1 else None
    if split is None:
        return "", expression(model, group[0].name)
    container, _, rest = split
    indices = [int(found[1]) for r in group if (found := _split(model, r.name)) is not None]
    members = model.get_submodule(container) if container else model
    whole = expression(model, container) if container else "model"
    if isinstance(members, nn.ModuleList) and indices == list(range(indices[0], indices[-1] + 1)):
        covered = "" if len(indices) == len(members) else f"[{indices[0]}:{indices[-1] + 1}]"
        one = _singular(container.rpartition(".")[2])
        return f"for {one} in {whole}{covered}:", expression(members[indices[0]], rest, one)
    inner = members.get_submodule(str(indices[0]))
    return f"for i in {_indices(indices)}:", expression(inner, rest, f"{whole}[i]")


def _indices(indices: Sequence[int]) -> str:
    step = indices[1] - indices[0]
    if len(indices) > 2 and list(indices) == list(range(indices[0], indices[-1] + 1, step)):
        return (
            f"range({indices[0]}, {indices[-1] + 1}, {step})"
            if step > 1
            else f"range({indices[0]}, {indices[-1] + 1})"
        )
    return f"({', '.join(map(str, indices))})"


def _singular(name: str) -> str:
    """What one member of a list is called.

    >>> _singular("blocks"), _singular("h")
    ('block', 'layer')
    """
    short = name[:-1] if name.endswith("s") and len(name) > 2 else ""
    return short if short.isidentifier() and not iskeyword(short) and short != "model" else "layer"
