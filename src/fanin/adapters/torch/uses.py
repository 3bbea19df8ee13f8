"""How a function uses a weight: over which of its axes it sums, and which of them make the outputs.

An output is a sum over the summed axes: the number of their terms is the fan_in. The axes that the output has and the
other operand has not are its units, whose number is the fan_out. Axes that both operands share (experts) count in
neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.adapters.torch.describe import tensors_in
from fanin.adapters.torch.views import Key, Shown, Views
from fanin.trial import Kind


@dataclass(frozen=True, slots=True)
class Taken:
    """A weight as an operand, its axes counted in the tensor that the function is given.

    Attributes:
        weight, data: The operands.
        summed, made: Axes of the weight over which the function sums, and that make outputs.
        output_axis: The axis of the output, from the end, that counts what `made` does; None where there are several.
        data_axis: The axis of the data, from the end, that is summed; None where there are several.
        kind: LINEAR or CONV.
        fan_out: Where it is not the number of what is made.
    """

    weight: Tensor
    data: Any
    summed: tuple[int, ...]
    made: tuple[int, ...]
    output_axis: int | None = -1
    data_axis: int | None = -1
    kind: Kind = Kind.LINEAR
    fan_out: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What a function makes of a weight.

    Attributes:
        key: The weight.
        summed: The weight's axes over which it sums; none of a lookup, and where that cannot be told.
        fan_in, fan_out, unit_axis: As in `ParameterSpec`; None where not known.
        kind: LINEAR or CONV; OTHER where that cannot be told.
    """

    key: Key
    summed: frozenset[int] = frozenset()
    fan_in: int | None = None
    fan_out: int | None = None
    unit_axis: int | None = None
    kind: Kind = Kind.OTHER

    def joined(self, other: Use) -> Use:
        """Both: what they do not share is not known, and nothing is where they sum different terms."""
        mine, theirs = ((use.summed, use.fan_in, use.kind) for use in (self, other))
        if mine != theirs:
            return Use(self.key)
        fan_out = self.fan_out if self.fan_out == other.fan_out else None
        axis = self.unit_axis if self.unit_axis == other.unit_axis else None
        return replace(self, fan_out=fan_out, unit_axis=axis)


def uses(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], views: Views
) -> Iterator[tuple[Use, Taken | None]]:
    """The weights that a function takes, and how; without operands where that is a lookup or cannot be told."""
    take = _WAYS.get(func)
    if take is None:
        return
    named = dict(kwargs)
    placed = (named.pop("input"), *args) if "input" in named else args
    try:
        ways = take(*placed, **named)
    except (TypeError, ValueError, AttributeError, IndexError):  # operands in a form that we do not know
        ways = []
    if not ways:
        keys = (views.owner(tensor) for tensor in tensors_in((args, kwargs)))
        yield from ((Use(key), None) for key in keys if key is not None)
    for way in ways:
        key = views.owner(way.weight)
        if key is not None:
            told = func in _BY_PLACE or not _is_weight(way.data, views)
            use = _use(way, views) if told else None
            yield (use, way) if use is not None else (Use(key), None)


def _is_weight(tensor: Any, views: Views) -> bool:
    """Whether an operand is a parameter itself: in a product of two, what feeds which is not told."""
    if not isinstance(tensor, Tensor):
        return False
    base = tensor if tensor._base is None else tensor._base
    return isinstance(base, nn.Parameter) or views.owner(tensor) is not None


def _use(taken: Taken, views: Views) -> Use | None:
    """The use in the weight's own axes; None where a reshape has mixed them."""
    shown = views.shown(taken.weight)
    if shown is None:
        return None
    summed, made = (_axes(shown, taken.weight, places) for places in (taken.summed, taken.made))
    if not summed or made is None:
        return None
    fan_in, fan_out = (prod(taken.weight.shape[p] for p in places) for places in (taken.summed, taken.made))
    axis = next(iter(made)) if len(made) == 1 and not made & summed else None
    return Use(shown.key, summed, fan_in, taken.fan_out or fan_out, axis, taken.kind)


def _axes(shown: Shown, weight: Tensor, places: tuple[int, ...]) -> frozenset[int] | None:
    """The weight's own axes at these places; None where one that has several indices is none of the weight's."""
    found = [(shown.axes[place], weight.shape[place]) for place in places]
    if any(axis is None and size > 1 for axis, size in found):
        return None
    return frozenset(axis for axis, _ in found if axis is not None)


# ── the operands of each function: one way for each that may be the weight ──────────────────────────────────


def _linear(data: Any, weight: Tensor, bias: Any = None) -> list[Taken]:
    return [Taken(weight, data, (-1,), (-2,) if weight.ndim > 1 else ())]


def _product(first: Tensor, other: Tensor, *rest: Any, **named: Any) -> list[Taken]:
    """The last axis of one with the last but one of the other."""
    inner = -2 if other.ndim > 1 else -1
    left = Taken(first, other, (-1,), (-2,) if first.ndim > 1 else (), inner, inner)
    right = Taken(other, first, (inner,), (-1,) if other.ndim > 1 else ())
    return [left, right]


def _matrix_product(first: Tensor, mat2: Any = None, **named: Any) -> list[Taken]:
    """`mm`, `bmm` and `mv`, whose second operand has names of its own."""
    second = mat2 if mat2 is not None else named.get("vec")
    return _product(first, second) if isinstance(second, Tensor) else []


def _added_product(added: Tensor, first: Tensor, second: Tensor, **named: Any) -> list[Taken]:
    return _product(first, second)


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> list[Taken]:
    if isinstance(dims, Tensor):
        return []
    both = (range(a.ndim - dims, a.ndim), range(dims)) if isinstance(dims, int) else dims
    ways = []
    for weight, data, places, facing in ((a, b, both[0], both[1]), (b, a, both[1], both[0])):
        summed = tuple(place % weight.ndim for place in places)
        made = tuple(place for place in range(weight.ndim) if place not in summed)
        last = -1 if weight is b and len(made) == 1 else None
        inner = facing[0] % data.ndim - data.ndim if len(facing) == 1 else None
        ways.append(Taken(weight, data, summed, made, last, inner))
    return ways


def _convolution(
    data: Any,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Taken]:
    """Weight [out, in/groups, *kernel], as in `describe`."""
    dims = weight.ndim - 2
    steps = prod(stride) if isinstance(stride, tuple | list) and len(stride) == dims else 0
    step = steps or int(stride[0] if isinstance(stride, tuple | list) else stride) ** dims
    fan_out = max(1, weight.shape[0] // groups * prod(weight.shape[2:]) // step)
    channels = -1 - dims
    return [Taken(weight, data, tuple(range(1, weight.ndim)), (0,), channels, channels, Kind.CONV, fan_out)]


def _einsum(equation: Any, *operands: Any) -> list[Taken]:
    """By the equation; of two operands only, as of more the order of the sums is not told."""
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    if not isinstance(equation, str) or len(given) != 2:
        return []
    first, second, result = _labels(equation.replace(" ", ""), given[0].ndim, given[1].ndim)
    both = ((given[0], first, given[1], second), (given[1], second, given[0], first))
    ways = [_way(weight, own, data, others, result) for weight, own, data, others in both]
    return [way for way in ways if way is not None]


def _way(weight: Tensor, own: list[str], data: Tensor, others: list[str], result: list[str]) -> Taken | None:
    """None where an axis meets itself (a diagonal) or is summed by itself."""
    if len(set(own)) < len(own) or not set(own) <= {*others, *result}:
        return None
    summed = tuple(place for place, label in enumerate(own) if label not in result)
    made = tuple(place for place, label in enumerate(own) if label not in others)
    axis = result.index(own[made[0]]) - len(result) if len(made) == 1 else None
    inner = others.index(own[summed[0]]) - len(others) if len(summed) == 1 else None
    return Taken(weight, data, summed, made, axis, inner)


def _labels(equation: str, *ndims: int) -> tuple[list[str], list[str], list[str]]:
    """One label for each axis of both operands and of the result, whose own are those that occur once, sorted, where
    it is not given. The axes of an ellipsis are numbered from their end."""
    left, arrow, right = equation.partition("->")
    first, second = (
        _expanded(term, ndim - len(term.replace("...", "")))
        for term, ndim in zip(left.split(","), ndims, strict=True)
    )
    hidden = sorted({label for label in (*first, *second) if len(label) > 1}, reverse=True)
    letters = [label for label in (*first, *second) if len(label) == 1]
    given = right if arrow else "..." + "".join(sorted(x for x in letters if letters.count(x) == 1))
    before, _, after = given.partition("...")
    return first, second, [*before, *(hidden if "..." in given else []), *after]


def _expanded(term: str, hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f"...{hidden - place}" for place in range(hidden if dots else 0)), *after]


_WAYS: dict[Any, Callable[..., list[Taken]]] = {
    F.linear: _linear,
    F.embedding: lambda *args, **kwargs: [],
    torch.einsum: _einsum,
    torch.tensordot: _tensordot,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
    **dict.fromkeys(
        (torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv),
        _matrix_product,
    ),
    **dict.fromkeys(
        (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addmv, Tensor.addmv), _added_product
    ),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **{
        function: _product
        for place, name in ((F, "grouped_mm"), (torch, "_grouped_mm"))
        if (function := getattr(place, name, None)) is not None
    },
}
"""How functions take their operands; a lookup takes none."""

_BY_PLACE = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})
"""Functions that have a place for the weight: what else they are given is data, even where it is a parameter."""
