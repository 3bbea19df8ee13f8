"""How a parameter's new values came about: what is needed to draw them again, and to print the code that does."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, prod, sqrt
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from fanin.change import Treatment
from fanin.trial import ParameterSpec

Distribution = Literal[
    "normal", "uniform", "orthogonal", "constant", "forget_gate", "length", "centred", "kept"
]

FORGET = 1.0
"""Bias of the forget gate (Jozefowicz et al. 2015); half of it in each of the two bias vectors, which add up."""

FORGET_GATE = 1
"""Its place among PyTorch's four gates: input, forget, cell, output."""

GATES = 4
"""Of an LSTM."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a parameter is to hold.

    Attributes:
        name: The parameter's full name.
        parameter: What is known of it.
        distribution: `kept` scales what is there; `length` is the norm of another parameter's rows; `centred` takes
            away what a constant input of `value` would add.
        scheme: Name in the literature.
        std: Root mean square of the values, before `factor`; nan for constants.
        value: Of a constant.
        block: Rows of one block (a gate) of an orthogonal matrix; None for all.
        padding: Row that stays zero.
        treatment: What a report calls it.
        factor: What the pass multiplied the values with; of kept ones all that they were multiplied with.
        activation: What the layer's input last passed; None where not known.
    """

    name: str
    parameter: ParameterSpec
    distribution: Distribution
    scheme: str
    std: float = nan
    value: float = 0.0
    block: int | None = None
    padding: int | None = None
    treatment: Treatment = Treatment.REDRAW
    factor: float = 1.0
    activation: str | None = None

    @property
    def fan_in(self) -> int:
        """Terms of one output's sum; 1 where not known."""
        return self.parameter.fan_in or 1


def write(recipe: Recipe, tensor: nn.Parameter, generator: Generator) -> None:
    """Draw the values in float32 and put them into the parameter's own memory, without a word to autograd."""
    if recipe.distribution == "constant":
        tensor.data.fill_(recipe.value)
    elif recipe.distribution == "forget_gate":
        hidden = len(tensor) // GATES
        tensor.data.zero_()
        tensor.data[FORGET_GATE * hidden : (FORGET_GATE + 1) * hidden] = FORGET / 2
    else:
        tensor.data.copy_(_drawn(recipe, tensor, generator))
    if recipe.padding is not None:
        tensor.data[recipe.padding] = 0


def _drawn(recipe: Recipe, tensor: Tensor, generator: Generator) -> Tensor:
    if recipe.distribution == "orthogonal":
        unit = orthogonal_rows(tensor, recipe.fan_in, generator, recipe.block)
        return unit * (recipe.std * sqrt(recipe.fan_in))
    if recipe.distribution == "uniform":
        return sqrt(3) * recipe.std * (2 * torch.rand(tensor.shape, generator=generator) - 1)
    return torch.randn(tensor.shape, generator=generator) * recipe.std


def orthogonal_rows(tensor: Tensor, fan_in: int, generator: Generator, block: int | None = None) -> Tensor:
    """Blocks of rows, each semi-orthogonal, with elements of RMS 1/√fan_in (Saxe et al. 2014).

    Args:
        tensor: Of which the shape is taken, [out, ...] with fan_in elements in each row.
        fan_in: Elements of a row.
        generator: On the CPU.
        block: Rows of a block (a gate); all where None.
    """
    rows = prod(tensor.shape) // fan_in
    size = block or rows
    blocks = [_orthogonal(min(size, rows - start), fan_in, generator) for start in range(0, rows, size)]
    return torch.cat(blocks).reshape(tensor.shape)


def _orthogonal(rows: int, columns: int, generator: Generator) -> Tensor:
    drawn = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    q, r = torch.linalg.qr(drawn)
    q = q * r.diagonal().sign()  # uniform over the group (Mezzadri 2007)
    q = q if rows >= columns else q.T
    scaled: Tensor = q * sqrt(max(rows, columns) / columns)
    return scaled
