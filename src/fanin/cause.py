"""The closed list of explanations. Each says what may be behind it and what to do; each knows whether it lies in the
initialization at all."""

from __future__ import annotations

from enum import Enum


class Cause(Enum):
    """Why a network starts the way it does.

    A member's value is its name in reports; `title` fits a headline, `hypotheses` says what usually lies behind it,
    `remedy` what to do. The order is the order of precedence: a cause may be a symptom of those above it.
    """

    NON_FINITE_INPUT = (
        "non_finite_input",
        "the batch holds NaN or infinite values",
        "missing values read as NaN, a division by a standard deviation of zero, or an overflow in half precision",
        "clean the data before the model sees it; the weights are not at fault",
        False,
    )
    NON_FINITE_PARAMETER = (
        "non_finite_parameter",
        "parameters that are NaN or infinite",
        "memory that was allocated and never written, a checkpoint read in a smaller format, or an initializer that "
        "divides by zero",
        "initialize the parameter; look at how it is allocated or loaded",
        True,
    )
    ABSURD_SCALE = (
        "absurd_scale",
        "parameters of an impossible size",
        "memory that was allocated and never written (torch.empty, a meta device), or a unit mistaken by powers of ten",
        "initialize the parameter; look at how it is allocated or loaded",
        True,
    )
    ZERO_PATH = (
        "zero_path",
        "zeros that no gradient can leave",
        "two layers in a row initialized to zero, or a zero layer behind an activation that is flat at zero",
        "draw all but one of the layers on the path at random; one zero layer on a path is fine",
        True,
    )
    SYMMETRIC_UNITS = (
        "symmetric_units",
        "units that start identical and stay identical",
        "a constant initializer, one row copied to all, or weights tiled from a smaller network",
        "draw the weights at random, so that units can differ (he_normal, glorot_uniform, orthogonal)",
        True,
    )
    GAIN_TOO_SMALL = (
        "gain_too_small",
        "weights too small for the activation",
        "a default meant for shallow networks, a standard deviation fixed by hand, or fan_out taken for fan_in",
        "use the gain that the activation needs (he_normal for ReLU), or normalize between layers",
        True,
    )
    GAIN_TOO_LARGE = (
        "gain_too_large",
        "weights too large for the activation",
        "a unit standard deviation, a gain applied twice, or a fan that misses the kernel's size",
        "use the gain that the activation needs (he_normal for ReLU), or normalize between layers",
        True,
    )
    NON_FINITE_SIGNAL = (
        "non_finite_signal",
        "a signal that overflows or is undefined though the parameters are finite",
        "a product too large for the number format, a logarithm or square root outside its domain",
        "look at the first layer whose output is not finite; try float32 or bfloat16 instead of float16",
        True,
    )

    title: str
    hypotheses: str
    remedy: str
    is_initialization: bool

    def __new__(cls, name: str, title: str, hypotheses: str, remedy: str, is_initialization: bool) -> Cause:
        member = object.__new__(cls)
        member._value_ = name
        member.title = title
        member.hypotheses = hypotheses
        member.remedy = remedy
        member.is_initialization = is_initialization
        return member

    @property
    def rank(self) -> int:
        """Place in the order of precedence; 0 comes first."""
        return list(Cause).index(self)
