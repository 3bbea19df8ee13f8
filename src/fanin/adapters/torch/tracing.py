"""One forward pass as it runs: which layer ran, what fed it, which activation took its output.

Modules are seen through their forward hooks; functions (`F.relu`, `x.tanh()`, `a + b`) through torch's function
mode. Activation inputs are recorded before the activation runs, because an in-place activation overwrites them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fanin.adapters.torch.attention import SOFTMAXES, attention_entropy
from fanin.adapters.torch.bare import BareWeights, Met
from fanin.adapters.torch.describe import (
    is_computing,
    kind_of,
    layer_spec,
    layers,
    output_axis,
    tensors_in,
)
from fanin.adapters.torch.effective import EffectiveWeights, computed, host_of
from fanin.adapters.torch.functions import (
    ACTIVATIONS,
    ATTENTIONS,
    JOINS,
    NORMALIZATIONS,
    activation_of,
)
from fanin.adapters.torch.listening import KnownParameter, Listener, Pass, Provenance
from fanin.adapters.torch.modes import is_recording, take_away
from fanin.adapters.torch.sharding import is_gathered
from fanin.trial import NETWORK_INPUT, ActivationSpec, Kind, LayerSpec, ModelSpec


class Tracer:
    """Follows the forward passes of one model and tells a listener.

    The tracer hangs on the model from `attach` to `detach`; it is awake only between `begin` and `end`, which the
    owner calls around a forward pass that is to be watched.

    Attributes:
        current: What the last pass has shown.
        failed_at: Path of the module whose forward raised in the last pass.
        fault: Of our own, met while a function of the model ran. The owner looks for it at the next module: a mode
            cannot be taken away while it handles a function.
    """

    def __init__(self, model: nn.Module, listener: Listener) -> None:
        self.model = model
        self.current = Pass()
        self.failed_at: str | None = None
        self.fault: Exception | None = None
        self._listener = listener
        self._paths: list[str] = []
        self.awake = False
        self._mode: _FunctionMode | None = None
        self._names: Counter[str] = Counter()
        self._way: list[str] = []
        self._knows_way = False
        self._provenance: Any = WeakIdKeyDictionary()
        self._layers = layers(model)
        self._specs: dict[str, LayerSpec] = {}
        self._bare = BareWeights()
        self._effective = EffectiveWeights()
        self._plain: set[str] = set()
        self._parameters: dict[tuple[str, str], KnownParameter] = {}
        self.refresh()

    # -- the life of a pass

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], way: Sequence[str] = ()) -> None:
        """Wake up: the model's forward is about to run on these arguments.

        Args:
            args, kwargs: What it is given.
            way: The modules that an earlier pass has gone through. Activations are told of as ever; that and how layers
                are connected is known and not found out again.
        """
        self.failed_at = None
        self._paths, self._way = [""], []
        self._knows_way = bool(way)
        self._names.clear()
        self.awake = True
        if self._knows_way:
            self._mode = _FunctionMode(self)
            self._mode.__enter__()
            return
        self.current = Pass()
        self._provenance.clear()
        for tensor in tensors_in((args, kwargs)):
            self._provenance[tensor] = Provenance(frozenset({NETWORK_INPUT}))
        self._bare.begin()
        self._mode = _FunctionMode(self)
        self._mode.__enter__()

    def end(self, output: Any) -> None:
        """Go to sleep: the forward has returned, or raised (output None)."""
        self.awake = False
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.leave()
        if self._knows_way:
            return
        reached = [p for t in tensors_in(output) for p in self._of(t).layers if p != NETWORK_INPUT]
        self.current.outputs = tuple(dict.fromkeys(reached))
        self._provenance.clear()
        self._bare.end()

    @property
    def way(self) -> tuple[str, ...]:
        """The modules that the last pass has gone through, in the order in which they returned."""
        return tuple(self._way)

    # -- what the hooks report

    def goes_into(self, path: str) -> bool:
        """On a known way: note that a module's forward is about to run.

        Returns:
            Whether there is nothing more to see of it.
        """
        if self._knows_way and path in self._plain:
            self._paths.append(path)
            return True
        return False

    def comes_out_of(self, path: str) -> bool:
        """The same of one that has returned."""
        if self._knows_way and path in self._plain:
            if self._paths and self._paths[-1] == path:
                self._paths.pop()
            self._way.append(path)
            return True
        return False

    def enters(self, path: str) -> None:
        """A module's forward is about to run."""
        self._paths.append(path)
        for name, weight in computed(self._layers[path]) if path in self._layers else ():
            self._weight_computed(path, name, weight)

    def leaves(
        self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any, failed: bool
    ) -> None:
        """A module's forward has returned, or raised."""
        if self._paths and self._paths[-1] == path:
            self._paths.pop()
        self._way.append(path)
        if failed:
            self.failed_at = self.failed_at if self.failed_at is not None else path
        elif (made := host_of(path, module)) is not None and isinstance(output, Tensor):
            self._weight_computed(*made, output)
        elif self._knows_way:
            return
        elif path in self._layers and is_computing(module) and not self._is_bare(path, module):
            self._layer_ran(path, module, inputs, output)

    def _is_bare(self, path: str, module: nn.Module) -> bool:
        """Whether a module has put out what its bare weights make, which has been seen already."""
        return kind_of(module) is Kind.OTHER and self._bare.computes(path)

    def _weight_computed(self, path: str, name: str, weight: Tensor) -> None:
        if path not in self._layers:  # a module that the pass itself has added
            return
        spec = self._effective.add(path, name, weight, self._layers[path])
        if spec.fan_in is None and not self._knows_way:
            self._bare.add(path, name, weight)
        full = f"{path}.{name}".lstrip(".")
        self._listener.effective_weight(self._bare.layer_of(path, name), full, weight, spec.unit_axis)

    def _layer_ran(self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = self.current.calls[path]
        self.current.calls[path] += 1
        if path not in self.current.ran:
            self.current.ran[path] = self._placed(self._specs[path], inputs)
        self._comes_from(output, Provenance(frozenset({path})))
        self._listener.layer_ran(path, module, call, inputs, output)

    def _placed(self, spec: LayerSpec, inputs: tuple[Any, ...]) -> LayerSpec:
        fed_by = self._joined(inputs, "other")
        return replace(
            spec,
            inputs=tuple(sorted(fed_by.layers)),
            joins=fed_by.joins if len(fed_by.layers) > 1 else "",
            input_activation=fed_by.activation,
        )

    # -- what the function mode reports

    def passes_over(self, func: Callable[..., Any]) -> bool:
        """Whether there is nothing to report of a function: on a known way only activations tell something."""
        try:
            return self._knows_way and func not in ACTIVATIONS
        except TypeError:  # somebody else's, which cannot be hashed
            return True

    def before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A torch function is about to run."""
        value = args[0] if args else kwargs.get("input")
        if func in ATTENTIONS and not (self._knows_way or (func in SOFTMAXES and self._is_router(value))):
            self._attends(func, args, kwargs)
        name = activation_of(func, kwargs)
        if name is None or not isinstance(value, Tensor):
            return
        tensor, path = self._activation_name(name)
        if self._knows_way:
            self._listener.activation_runs(tensor, path, value, None)
            return
        source = self._of(value)
        self.current.activations.append(ActivationSpec(tensor, name, tuple(sorted(source.layers))))
        for layer in source.layers & self.current.ran.keys():
            if self.current.ran[layer].activation is None:
                self.current.ran[layer] = replace(self.current.ran[layer], activation=name)
        self._listener.activation_runs(tensor, path, value, self._unit_axis(source, value))

    def _attends(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = self._paths[-1] if self._paths else ""
        entropy = partial(attention_entropy, func, args, kwargs)
        self._listener.attention_runs(path, self._names[f"{path}_attention"], entropy)
        self._names[f"{path}_attention"] += 1

    def _is_router(self, logits: Any) -> bool:
        """Whether a softmax chooses among a layer's own units, as mixtures of experts do, and not among positions."""
        layers = self._of(logits).layers if isinstance(logits, Tensor) else ()
        module = self._layers.get(next(iter(layers))) if len(layers) == 1 else None
        return isinstance(module, nn.Linear) and module.out_features == logits.shape[-1]

    def _unit_axis(self, source: Provenance, value: Tensor) -> int | None:
        """The axis that counts units: that of the layers which it comes from, as long as they agree."""
        known = (p for p in source.layers if p in self._layers or self._bare.is_layer(p))
        axes = {self._output_axis(path, value) for path in known}
        axis = axes.pop() if len(axes) == 1 else None
        return axis if axis is not None and -value.ndim <= axis < value.ndim and value.ndim > 1 else None

    def _output_axis(self, path: str, value: Tensor) -> int | None:
        if self._bare.is_layer(path):
            return self._bare.output_axis(path, value)
        return output_axis(self._layers[path], value)

    def after(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A torch function has returned."""
        if self._knows_way:
            return
        self._bare.views.follow(func, args, output)
        met = self._bare.meet(func, args, kwargs)
        if met is not None and isinstance(output, Tensor):
            self._weight_used(met, output)
            return
        joins = JOINS.get(func, "other")
        made_of = self._joined((args, kwargs), joins)
        if func in ACTIVATIONS:
            made_of = replace(made_of, activation=activation_of(func, kwargs))
        elif func in NORMALIZATIONS and not self._inside_norm():
            made_of = self._function_norm(NORMALIZATIONS[func], made_of)
        if made_of.layers:
            self._comes_from(output, made_of)

    def _weight_used(self, met: Met, output: Tensor) -> None:
        """A bare weight is a layer, like the module that it might be."""
        path, taken = met.layer, met.operands.data
        if path not in self.current.ran:
            self.current.ran[path] = self._placed(LayerSpec(path, Kind.LINEAR, "Parameter"), (taken,))
        self.current.calls[path] += 1
        self._comes_from(output, Provenance(frozenset({path})))
        if met.is_first and output.numel():
            axes = met.operands.data_axis, met.operands.output_axis
            self._listener.weight_used(path, taken, axes[0], output, axes[1])

    def _function_norm(self, name: str, made_of: Provenance) -> Provenance:
        """A normalization without a module is a layer all the same, named after the module that it runs in."""
        path = f"{self._paths[-1]}.{name}".lstrip(".")
        self.current.calls[path] += 1
        spec = LayerSpec(
            path, Kind.NORM, f"F.{name}", inputs=tuple(sorted(made_of.layers)), joins=made_of.joins
        )
        self.current.ran.setdefault(path, spec)
        return Provenance(frozenset({path}))

    def _inside_norm(self) -> bool:
        module = self._layers.get(self._paths[-1]) if self._paths else None
        return module is not None and kind_of(module) is Kind.NORM

    def _activation_name(self, function: str) -> tuple[str, str]:
        """Tensor name by the original's convention, and path: `blocks.0.relu_input_0`, `blocks.0.relu`.

        A module that is called like its function keeps its name; any other (`1`, `act`), and a function without a
        module, gets the function's name appended, so that `.*relu_input` finds every ReLU.
        """
        inside = self._paths[-1] if self._paths else ""
        path = inside if inside.rpartition(".")[2] == function else f"{inside}.{function}".lstrip(".")
        index = self._names[path]
        self._names[path] += 1
        return f"{path}_input_{index}", path

    # -- provenance

    def _of(self, tensor: Tensor) -> Provenance:
        found: Provenance = self._provenance.get(tensor, _NOWHERE)
        return found

    def _joined(self, values: Any, joins: str) -> Provenance:
        met = [p for t in tensors_in(values) if (p := self._of(t)).layers]
        if not met:
            return _NOWHERE
        first = met[0]
        if all(p == first for p in met):
            return first
        activations = {p.activation for p in met}
        return Provenance(
            frozenset().union(*(p.layers for p in met)),
            joins,
            activations.pop() if len(activations) == 1 else None,
        )

    def _comes_from(self, output: Any, provenance: Provenance) -> None:
        for tensor in tensors_in(output):
            self._provenance[tensor] = provenance

    # -- the model in neutral words

    def spec(self, framework: str) -> ModelSpec:
        """The model as the last pass showed it: layers that ran, in order, then the others."""
        known = {s.path: s for whole in self._specs.values() for s in self._described(whole)}
        ran = [
            replace(s, **_own(known.get(p, s)), calls=self.current.calls[p])
            for p, s in self.current.ran.items()
        ]
        idle = [s for p, s in known.items() if p not in self.current.ran]
        return ModelSpec(
            name=type(self.model).__name__,
            framework=framework,
            layers=(*ran, *idle),
            activations=tuple(self.current.activations),
            outputs=self.current.outputs,
        )

    def _described(self, spec: LayerSpec) -> list[LayerSpec]:
        """A module's layer and those that weights of its own are; not what is left of it when these were all of it."""
        found = self._bare.split(self._effective.described(spec))
        emptied = bool(spec.parameters) and not found[0].parameters and found[0].kind is Kind.OTHER
        return found[1:] if emptied else found

    def refresh(self) -> None:
        """Look at the modules again: lazy ones have got their parameters, sources have been recorded."""
        modules = self.model.named_modules()
        self._plain = {p for p, m in modules if host_of(p, m) is None and not any(computed(m))}
        first_names: dict[int, str] = {}
        self._specs = {path: layer_spec(path, m, first_names) for path, m in self._layers.items()}
        self._bare.refresh(self._specs, self._layers)
        self._parameters = {
            (path, p.name): KnownParameter(
                path,
                p.name,
                self._current(path, p.name),
                p.role,
                self._bare.known(path, p).unit_axis,
                self._bare.layer_of(path, p.name),
                self._bare.is_used(path, p.name),
            )
            for path, spec in self._specs.items()
            for p in spec.parameters
            if p.tied_to is None
        }

    def _current(self, path: str, name: str) -> nn.Parameter:
        """The parameter itself: a sharded one makes room for its gathered copy while a pass runs (`fully_shard`)."""
        found = self._layers[path].get_parameter(name)
        known = self._parameters.get((path, name))
        return known.tensor if known is not None and is_gathered(known.tensor, found) else found

    def replacements(self) -> list[Tensor]:
        """What stands in the place of known parameters: others, when the model has been sharded, cast or materialized
        since; plain tensors, while a function of its parameters runs (`torch.func.functional_call`)."""
        now = (
            (known.tensor, self._layers[path]._parameters.get(name))
            for (path, name), known in self._parameters.items()
        )
        return [o for known, o in now if o is not known and o is not None and not is_gathered(known, o)]

    def parameters(self) -> tuple[KnownParameter, ...]:
        """The model's parameters, each once."""
        return tuple(self._parameters.values())

    def parameter(self, path: str, name: str) -> KnownParameter:
        """The parameter of this layer with this name."""
        return self._parameters[path, name]


def _own(spec: LayerSpec) -> dict[str, Any]:
    """What a layer is, whatever a pass has shown of its place."""
    return {"kind": spec.kind, "type_name": spec.type_name, "parameters": spec.parameters}


_NOWHERE = Provenance(frozenset())


class _FunctionMode(TorchFunctionMode):
    """Passes every torch function of a forward pass by the tracer."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer: Tracer | None = tracer

    def leave(self) -> None:
        """Stop."""
        self._tracer = None
        take_away(self)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if torch.compiler.is_compiling():  # what the compiler traces, it must be able to trace without us
            return func(*args, **named)
        if self._tracer is None or self._tracer.passes_over(func):
            return func(*args, **named)
        self._tell("before", func, args, named)
        result = func(*args, **named)
        self._tell("after", func, args, named, result)
        return result

    def _tell(self, moment: str, *call: Any) -> None:
        tracer = self._tracer
        if tracer is None or is_recording():
            return
        try:
            with torch._C.DisableTorchFunction():  # our own arithmetic is no business of others' modes
                getattr(tracer, moment)(*call)
        except Exception as fault:  # noqa: BLE001  # a fault of ours must not end the user's training
            tracer.fault, self._tracer = fault, None
