"""Leave no trace: what a forward and backward pass may change in a model and around it, put back bit for bit."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from fanin.adapters.torch import backward
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import UsageError

COPY_LIMIT = 256 * 2**20
"""Bytes of parameters up to which a copy is kept: no burden on any machine that trains. Larger models are only
verified, because no usual model writes to its parameters in its own forward pass and a copy would double memory."""


@contextmanager
def untouched(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Run something on a model and put everything back, also after an exception.

    Parameters, buffers, gradients, the mode of each module, its attributes and hooks, and the random state of torch
    (all devices in use), Python and NumPy. Whoever watches a training in this thread sees nothing of it.

    Args:
        model: Whose state is kept.
        parameters: Whether the values of parameters go back too; a repair is there to change them.

    Raises:
        UsageError: A model too large to be copied has changed its own parameters.
    """
    with ExitStack() as stack:
        stack.enter_context(_unwatched())
        for preserve in (_random_state, _module_state, _lazy, _buffers, _parameters, _gradients):
            if parameters or preserve is not _parameters:
                stack.callback(preserve(model))
        yield


@contextmanager
def _unwatched() -> Iterator[None]:
    """What runs meanwhile in this thread is no part of any training that is watched: a check in its midst."""
    woken = [w for w in backward.audience if isinstance(w, TorchWatching)]
    woken = [w for w in woken if w.hears_this_thread and not w.asleep]
    for watching in woken:
        watching.asleep = True
    try:
        yield
    finally:
        for watching in woken:
            watching.asleep = False


@contextmanager
def beside_untouched(model: nn.Module, loss_fn: Any, batch: Any) -> Iterator[None]:
    """Put back what else a pass may change: modules that the loss holds (itself, bound, in a closure or a partial), and
    the random state that a loader keeps for its order."""
    own = {id(module) for module in model.modules()}
    modules = {id(m): m for m in _modules_in(loss_fn) if id(m) not in own}
    generators = [(g, g.get_state()) for g in _generators_in(batch)]
    with ExitStack() as stack:
        for module in modules.values():
            stack.enter_context(untouched(module))
        for generator, state in generators:
            stack.callback(generator.set_state, state)
        yield


def _modules_in(loss_fn: Any) -> Iterator[nn.Module]:
    cells = getattr(loss_fn, "__closure__", None) or ()
    held = [loss_fn, getattr(loss_fn, "__self__", None), getattr(loss_fn, "func", None)]
    held += [cell.cell_contents for cell in cells if _is_filled(cell)]
    held += [*(getattr(loss_fn, "__defaults__", None) or ()), *getattr(loss_fn, "args", ())]
    return (value for value in held if isinstance(value, nn.Module))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False


def _generators_in(batch: Any) -> list[torch.Generator]:
    sampler, chosen = getattr(batch, "sampler", None), getattr(batch, "batch_sampler", None)
    holders = (batch, sampler, getattr(chosen, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _random_state(model: nn.Module) -> Callable[[], None]:
    cpu, python = torch.random.get_rng_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None

    def restore() -> None:
        torch.random.set_rng_state(cpu)
        random.setstate(python)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy and state is not None:
            numpy.random.set_state(state)

    return restore


def _module_state(model: nn.Module) -> Callable[[], None]:
    """Every module's attributes, one level deep: rebound names, and lists, dicts and sets that grew."""
    saved = [(m, dict(vars(m)), _containers(m)) for m in model.modules()]

    def restore() -> None:
        for module, attributes, containers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in containers:
                _refill(container, content)

    return restore


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(v, v.copy()) for v in vars(module).values() if isinstance(v, list | dict | set | deque)]


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _lazy(model: nn.Module) -> Callable[[], None]:
    """Lazy modules and their parameters, which change their class in their first pass."""
    modules = [(m, type(m)) for m in model.modules()]
    tensors = [(t, type(t)) for t in (*model.parameters(), *model.buffers()) if nn.parameter.is_lazy(t)]

    def restore() -> None:
        for module, kind in modules:
            if type(module) is not kind:
                module.__class__ = kind
        for tensor, lazy in tensors:
            if type(tensor) is not lazy:
                tensor.data = tensor.new_empty(0)
                tensor.__class__ = lazy

    return restore


def _buffers(model: nn.Module) -> Callable[[], None]:
    """Buffers, and the tensors that modules keep as plain attributes."""
    plain = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    kept = {id(b): b for b in (*model.buffers(), *plain) if not (nn.parameter.is_lazy(b) or b.is_meta)}
    saved = [(b, b.detach().clone()) for b in kept.values()]

    def restore() -> None:
        for buffer, before in saved:
            _write_back(buffer, before)

    return restore


def can_be_changed(model: nn.Module) -> bool:
    """Whether `untouched` keeps copies of this model's parameters, so that they may be written to meanwhile."""
    return sum(p.numel() * p.element_size() for p in _written(model)) <= COPY_LIMIT


def _written(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if not (nn.parameter.is_lazy(p) or p.is_meta)]


def _parameters(model: nn.Module) -> Callable[[], None]:
    parameters = _written(model)
    if not can_be_changed(model):
        return _verified([(p, _checksum(p)) for p in parameters])
    # Version counters go back too: a graph that waits for its backward pass would refuse parameters that were stepped.
    saved = [(p, p.detach().clone(), _unsafe_preserve_version_counter(p)) for p in parameters]

    def restore() -> None:
        for parameter, before, version in saved:
            _write_back(parameter, before)
            version.__exit__()

    return restore


def _write_back(tensor: Tensor, before: Tensor) -> None:
    """Bit for bit, into the same memory, and only where something changed; version counters stay as they are."""
    if tensor.shape != before.shape or tensor.layout is not before.layout:
        tensor.data = before
    elif not _same_bits(tensor, before):
        _copy(tensor, before)


def _copy(tensor: Tensor, before: Tensor) -> None:
    """Part by part: copied as a whole, a sparse tensor's alias gets new memory and the tensor itself keeps its old."""
    mine, its = _stored(tensor), _stored(before)
    if [part.shape for part in mine] != [part.shape for part in its]:
        tensor.data = before
        return
    for part, was in zip(mine, its, strict=True):
        part.data.copy_(was)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.is_quantized or a.is_mkldnn:
        return torch.equal(a.detach(), b)
    mine, its = _stored(a), _stored(b)
    return all(m.shape == i.shape and torch.equal(_bits(m), _bits(i)) for m, i in zip(mine, its, strict=True))


def _stored(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that hold it: indices and values of a sparse one, whose kinds know no comparison."""
    plain = tensor.detach()
    if plain.layout is torch.sparse_coo:
        return plain._indices(), plain._values()
    if plain.layout in (torch.sparse_csr, torch.sparse_bsr):
        return plain.crow_indices(), plain.col_indices(), plain.values()
    if plain.layout in (torch.sparse_csc, torch.sparse_bsc):
        return plain.ccol_indices(), plain.row_indices(), plain.values()
    return (plain,)


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    plain = plain.resolve_conj().resolve_neg()
    return plain.contiguous().view(-1).view(torch.uint8) if plain.numel() else plain.new_empty(0)


def _checksum(parameter: Tensor) -> tuple[int, int, int]:
    """Version, address and sum of the bytes: a forward pass that writes to a parameter moves one of them."""
    return parameter._version, parameter.data_ptr(), int(_bits(parameter).sum(dtype=torch.int64))


def _verified(sums: list[tuple[nn.Parameter, tuple[int, int, int]]]) -> Callable[[], None]:
    def verify() -> None:
        for parameter, before in sums:
            if _checksum(parameter) != before:
                raise UsageError(
                    "the model's own forward pass changes its parameters, and it is too large to be copied",
                    got=f"a parameter of shape {list(parameter.shape)} differs after the pass",
                    expected=f"at most {COPY_LIMIT // 2**20} MiB of parameters in such a model",
                    next_step="check a smaller configuration of the same model",
                )

    return verify


def _gradients(model: nn.Module) -> Callable[[], None]:
    """Gradients and what the user has it do as they arrive: an optimizer that steps in backward must not step."""
    saved = [(p, p.grad, p.requires_grad, p._post_accumulate_grad_hooks) for p in model.parameters()]
    for parameter, *_ in saved:
        parameter.grad = None
        parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]

    def restore() -> None:
        for parameter, gradient, trainable, hooks in saved:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient
            parameter._post_accumulate_grad_hooks = hooks

    return restore
