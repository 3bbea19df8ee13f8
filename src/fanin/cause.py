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
    UNSCALED_INPUT = (
        "unscaled_input",
        "inputs that are not normalized",
        "raw pixels or physical units, a missing division by the standard deviation, or one done twice",
        "standardize the inputs (zero mean, unit variance per feature); the weights are not at fault",
        False,
    )
    UNSCALED_TARGET = (
        "unscaled_target",
        "targets far from the scale of the outputs",
        "a regression target in raw units, where the network's outputs start near 0 and of order 1",
        "standardize the targets, or set the head's bias to their mean; the weights are not at fault",
        False,
    )
    FROZEN = (
        "frozen",
        "randomly drawn layers that are frozen",
        "requires_grad switched off for more than what was pretrained, or weights that were never loaded",
        "let these layers train, or load their pretrained weights",
        False,
    )
    NEVER_WRITTEN = (
        "never_written",
        "memory that was allocated and never written",
        "torch.empty, a meta device materialized with to_empty, or a key that the checkpoint does not have",
        "initialize the parameter; look at how it is allocated or loaded",
        True,
    )
    RANKS_DISAGREE = (
        "ranks_disagree",
        "ranks that must start alike and do not",
        "weights that were drawn after the model was wrapped, with a seed for each rank, or a checkpoint that only one "
        "rank has loaded",
        "initialize before the model is wrapped, or with the same seed on every rank",
        True,
    )
    ZERO_PATH = (
        "zero_path",
        "zeros that no gradient can leave",
        "two layers in a row initialized to zero, or a zero layer behind an activation that is flat at zero",
        "draw the layers on the path at random; a single layer of zeros is fine only where what follows is not flat at "
        "zero",
        True,
    )
    SYMMETRIC_UNITS = (
        "symmetric_units",
        "units that start identical and stay identical",
        "a constant initializer, one row copied to all, or weights tiled from a smaller network",
        "draw the weights at random, so that units can differ (he_normal, glorot_uniform, orthogonal)",
        True,
    )
    DUPLICATE_DRAWS = (
        "duplicate_draws",
        "layers that hold the same draw",
        "the same seed set before each layer, deep copies of one initialized block, or equal shards on all ranks",
        "initialize each layer after it was copied, from one running generator",
        True,
    )
    SPECIAL_SCHEME_MISSING = (
        "special_scheme_missing",
        "layers that need a scheme of their own and do not have it",
        "a sine network with the framework's default, or a state-space model whose step sizes are drawn like weights",
        "use the scheme of the architecture's authors",
        True,
    )
    MEAN_OFFSET = (
        "mean_offset",
        "weights whose mean drowns their differences",
        "a uniform distribution on [0, 1), absolute values, or a constant with a little noise",
        "draw weights with zero mean, so that inputs that differ stay different",
        True,
    )
    BIAS_OFFSET = (
        "bias_offset",
        "biases that drown the signal",
        "a constant meant for another layer (a focal-loss prior, a forget gate), or biases drawn like weights",
        "start biases at zero; prior biases belong to the head, and forget gates to recurrent layers",
        True,
    )
    NORM_GAIN = (
        "norm_gain",
        "normalizations with a gain that is not near 1",
        "an initializer for weights applied to every parameter, normalizations among them",
        "start gains at 1 and offsets at 0; zero only where the norm ends a residual branch",
        True,
    )
    RECURRENT_KERNEL = (
        "recurrent_kernel",
        "a recurrent kernel off the unit circle",
        "a feed-forward scheme on the recurrent weight: the state then grows or dies at every time step",
        "draw the recurrent weight orthogonal, with gain 1",
        True,
    )
    WRONG_FAN = (
        "wrong_fan",
        "weights scaled by the wrong fan",
        "fan_out taken for fan_in, a kernel's area or channels forgotten, or groups not divided out",
        "scale by fan_in, the number of terms summed into one output",
        True,
    )
    EMBEDDING_TOO_LARGE = (
        "embedding_too_large",
        "embeddings too large for what reads them",
        "the framework's unit normal under a tied head, or a scale by the square root of the width applied twice",
        "draw embeddings with standard deviation 0.02, or width^-1/2 where the head is tied to them",
        True,
    )
    HEAD_TOO_LARGE = (
        "head_too_large",
        "a head so large that the network starts overconfident",
        "a unit standard deviation, or hidden features larger than the head was drawn for",
        "draw the head so that its outputs have a standard deviation of about 0.3, or start it at zero",
        True,
    )
    ATTENTION_SATURATED = (
        "attention_saturated",
        "attention that starts on single positions",
        "queries and keys too large: their product has a standard deviation far above 1 before the softmax",
        "scale the query and key weights down (glorot_uniform), or normalize queries and keys",
        True,
    )
    DEFAULT_UNSUITED = (
        "default_unsuited",
        "the framework's default, which this depth does not bear",
        "PyTorch's Linear and Conv draw with a gain of 0.58 whatever the activation: harmless in three layers, "
        "fatal in twenty",
        "draw the weights with the gain that the activation needs (he_normal for ReLU), or normalize between layers",
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
    RESIDUAL_GROWTH = (
        "residual_growth",
        "residual branches that grow with depth",
        "branches as large as the stream that they are added to, without normalization: variance doubles per block",
        "start the last layer of each branch at zero, or scale it by 1 / sqrt(number of branches)",
        True,
    )
    DEAD_UNITS = (
        "dead_units",
        "units that are off for every input",
        "negative biases, inputs that are all alike, or a ReLU on the output",
        "start biases at zero and weights with zero mean; take the ReLU off the output",
        True,
    )
    SATURATED_UNITS = (
        "saturated_units",
        "units that are saturated for every input",
        "weights or inputs too large for a bounded activation, whose slope is then zero",
        "scale the weights so that pre-activations have a standard deviation of about 1",
        True,
    )
    INPUTS_ALIKE = (
        "inputs_alike",
        "inputs that all look alike to the last layer",
        "offsets that grow with depth while differences between inputs do not",
        "draw weights with zero mean and biases at zero; orthogonal weights keep differences longest",
        True,
    )
    VANISHING_GRADIENT = (
        "vanishing_gradient",
        "a gradient that vanishes on the way back",
        "activations on their flat parts, or many layers that each pass on a fraction",
        "use the gain that the activation needs, or an activation that is steeper, or skips",
        True,
    )
    EXPLODING_GRADIENT = (
        "exploding_gradient",
        "a gradient that explodes on the way back",
        "many layers that each amplify it, normalizations between them hiding it forward",
        "scale the weights down, end residual branches at zero, or warm the learning rate up",
        True,
    )
    SIGNAL_LOST = (
        "signal_lost",
        "nothing of the input reaches the output",
        "a layer that puts out the same for every input",
        "look at the first layer where the signal breaks off",
        True,
    )
    SIGNAL_EXPLODED = (
        "signal_exploded",
        "a signal far too large at the output",
        "weights too large somewhere before",
        "look at the first layer where the signal grows",
        True,
    )
    NUMBER_FORMAT = (
        "number_format",
        "values outside the range of the number format",
        "float16 ends at 65504 and at 6e-8: activations overflow and gradients become zero",
        "use bfloat16, or loss scaling where only gradients are too small",
        False,
    )
    LEARNING_RATE = (
        "learning_rate",
        "a learning rate that does not fit these weights",
        "a rate meant for another optimizer, or missing warm-up",
        "change the learning rate so that a step moves weights by about a thousandth; they are not at fault",
        False,
    )
    SLOW_START = (
        "slow_start",
        "a start from which training lags far behind a sound one",
        "what the other findings and notes say of single layers",
        "draw the weights anew by a sound scheme for each layer's activation",
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


NON_FINITE = frozenset({Cause.NON_FINITE_PARAMETER, Cause.NON_FINITE_SIGNAL, Cause.NON_FINITE_INPUT})
"""Causes that are seen or not, whatever training makes of them."""

COUNTED = NON_FINITE | {Cause.NUMBER_FORMAT}
"""Causes of which one value is proof: no statistics over examples, which another batch may show otherwise."""
