"""A model under observation while it trains: which step it is, what is summarized in it, when to get out of the way.

A step begins with a forward pass in train mode and ends with the optimizer's step, or, where no optimizer is seen,
when the next forward pass begins on fresh gradients. Until then further passes belong to the same step (gradient
accumulation). Passes in eval mode or without gradients are left alone.

What is compiled cannot be watched while it runs: there a step begins with the first gradient that arrives, and only
parameters, gradients and loss are seen.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from math import nan
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch import backward
from fanin.adapters.torch.describe import framework, is_compiled, output_axis, tensors_in, uncompiled
from fanin.adapters.torch.drafting import Draft, Needed
from fanin.adapters.torch.hooks import Handles, Hook
from fanin.adapters.torch.tracing import Tracer
from fanin.adapters.torch.updates import Snapshot, gradients_are_fresh
from fanin.trial import ModelSpec, Role

log = logging.getLogger("fanin")

FORWARD_UNSEEN = (
    "the forward pass was not seen, because the model is compiled or its parts are called one by one: "
    "only parameters, gradients and loss are known"
)
"""A note in the spec."""


PATIENCE = 100
"""Forward passes in train mode without a gradient after which we get out of the way: nobody calls backward on them
(`torch.autograd.grad`, training in another thread), and following them costs time for nothing."""


class TorchWatching:
    """Hangs on a model from construction until `detach`, or until the last planned step is over.

    Attributes:
        model: What is watched: of a compiled model the one within.
        fault: Of our own, that ended the watch.
        detached: Whether all hooks are gone.
    """

    def __init__(self, model: nn.Module, plan: WatchPlan, *, runs_eagerly: bool = False) -> None:
        self.model = uncompiled(model)
        self.plan = plan
        self.detached = False
        self.fault: Exception | None = None
        self._needed = Needed(plan.needs)
        self._tracer = Tracer(self.model, self)
        self._trainable: list[nn.Parameter] = []
        self._handles = Handles()
        self._draft: Draft | None = None
        self._done = 0
        self._passes = 0
        self._known: ModelSpec | None = None
        self._ran: tuple[str, ...] = ()
        self._way: tuple[str, ...] = ()
        self._optimizer_seen = False
        self._runs_eagerly = runs_eagerly
        self._compiled = is_compiled(model) and not runs_eagerly
        self._called = False
        self._depth = 0
        self._pass: FrameType | None = None
        self._grad_enabled = True
        self._outer_error: BaseException | None = None
        self._roots: list[Tensor | None] = []
        self._thread = threading.get_ident()
        self._process = os.getpid()
        try:
            self._attach()
        except BaseException:
            self._let_go()
            raise

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as it has been seen to run."""
        return self._tracer.spec(framework())

    @property
    def failed_at(self) -> str | None:
        """Path of the module whose forward raised in the last pass; None when none did."""
        return self._tracer.failed_at

    # -- hanging on and off

    def _attach(self) -> None:
        if not self._compiled:
            self._attach_to_modules()
        self._attach_to_parameters()
        self._handles.add(register_optimizer_step_post_hook(self._hook(self._stepped)))
        backward.listen(self)

    def _attach_to_modules(self) -> None:
        hang = self._handles.add
        hang(self.model.register_forward_pre_hook(self._hook(self._begins), with_kwargs=True, prepend=True))
        for path, module in self.model.named_modules():
            enter, leave = self._hook(self._enters, path), self._hook(self._leaves, path)
            hang(module.register_forward_pre_hook(enter))
            hang(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        hang(self.model.register_forward_hook(self._hook(self._ends), always_call=True))

    def _attach_to_parameters(self) -> None:
        """Those of lazy modules have nothing to hang on before their first pass."""
        hung = {id(parameter) for parameter in self._trainable}
        for known in self._tracer.parameters():
            lazy, new = nn.parameter.is_lazy(known.tensor), id(known.tensor) not in hung
            if known.tensor.requires_grad and new and not lazy:
                see = self._backward_hook(self._has_gradient, known.path, known.name)
                self._handles.add(known.tensor.register_post_accumulate_grad_hook(see))
                self._trainable.append(known.tensor)

    def detach(self) -> None:
        """Finish the current step and take every hook away; idempotent."""
        self._guarded(self._finish)
        self._let_go()

    def _let_go(self) -> None:
        if not self.detached:
            self.detached = True
            self._tracer.end(None)
            self._handles.remove()
            backward.unlisten(self)
            self._draft = self._pass = None
            self._roots.clear()

    def _hook(self, call: Callable[..., None], *bound: Any) -> Hook:
        """For a forward pass: in other threads than ours (DataParallel's replicas) it does nothing."""

        def run(*args: Any, **kwargs: Any) -> None:
            if threading.get_ident() == self._thread:
                self._guarded(call, *bound, *args, **kwargs)

        return Hook(run)

    def _backward_hook(self, call: Callable[..., None], *bound: Any) -> Hook:
        """For a backward pass, which accelerators run in threads of their own."""
        return Hook(lambda *args: self._guarded(call, *bound, *args))

    def _guarded(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Run our code inside the user's training, never raising; a forked child is not our training.

        Torch's function modes are off meanwhile: our own arithmetic is no part of the model.
        """
        if self.detached or os.getpid() != self._process:
            return
        self._grad_enabled = enabled = torch.is_grad_enabled()
        try:
            if self._tracer.fault is not None:
                raise self._tracer.fault
            with torch._C.DisableTorchFunction():
                torch._C._set_grad_enabled(
                    False
                )  # its context managers take longer, and this is at every module
                try:
                    call(*args, **kwargs)
                finally:
                    torch._C._set_grad_enabled(enabled)
        except Exception as fault:  # noqa: BLE001  # whatever it is, training goes on
            self._fault(fault)

    def _fault(self, fault: Exception) -> None:
        if self.detached:
            return
        self.fault = fault
        self._let_go()
        if self.plan.on_error == "raise":
            raise fault
        log.warning(
            "fanin stopped watching %s at step %d because of a fault of its own; training goes on",
            type(self.model).__name__,
            self._done,
            exc_info=fault,
        )

    def joins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take part in a forward pass whose pre-hooks have been gathered without ours."""
        if self._compiled:
            return
        self._guarded(self._begins, module, args, {})
        self._guarded(self._enters, "", module, args)

    # -- the life of a step

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called = True
        if self._pass is not None and not _is_running(self._pass):
            self._abandon()
        self._depth += 1
        if self._depth > 1:
            return
        self._pass = _calling_frame()
        if module.training and self._grad_enabled and not self._is_recomputed():
            self._begin_step()
            self._follow(args, kwargs)

    def _begin_step(self) -> None:
        self._end_step()
        self._passes = 0 if self._draft is None or self._draft.differentiated else self._passes + 1
        if self._passes >= PATIENCE:
            log.warning(
                "fanin saw %d forward passes of %s in train mode and no gradient; it stops watching",
                PATIENCE,
                type(self.model).__name__,
            )
            self._let_go()
        if self.detached or (self._draft is not None and self._draft.differentiated):
            return
        before = Snapshot(self._trainable, corners=not self._optimizer_seen)
        self._draft = Draft(self._done, self.plan.worker, self._needed, before, self.plan.examples)
        self._observe_parameters(self._draft)

    def _follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Trace the pass that begins; not where it meets compiled modules, into which no tracing may reach."""
        self._compiled = self._compiled or (is_compiled(self.model) and not self._runs_eagerly)
        if not self.detached and not self._compiled:
            self._outer_error = sys.exception()
            draft = self._draft
            knows_enough = draft is not None and self._needed.only_activations(draft.index)
            self._tracer.begin(args, kwargs, self._way if knows_enough else ())

    def _abandon(self) -> None:
        """Forget a pass that was left without a word: torch calls no hook after a KeyboardInterrupt."""
        self._depth = 0
        self._pass = None
        self._tracer.end(None)

    def _is_recomputed(self) -> bool:
        """Whether this pass repeats one that was seen: activation checkpointing, in the midst of its backward."""
        return bool(self._roots) and self._draft is not None and not self._draft.stepped

    def _enters(self, path: str, module: nn.Module, args: Any) -> None:
        if self._tracer.awake:
            self._tracer.enters(path)

    def _leaves(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._tracer.awake:
            failed = output is None and sys.exception() is not self._outer_error
            self._tracer.leaves(path, module, (*args, *kwargs.values()), output, failed)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        self._pass = None
        if self._tracer.awake:
            self._tracer.end(output)
            self._take_spec()
        if self._draft is not None:
            self._draft.forward_ended()

    def _take_spec(self) -> None:
        if self._draft is None or self._draft.spec is not None:
            return
        taken, before = self._tracer.way, self._way
        self._way = (
            taken if not before or taken == before else ()
        )  # where it takes another, it is followed anew
        ran = tuple(self._tracer.current.ran)
        if self._known is None or ran != self._ran:  # the first pass, or one that took another way
            self._tracer.refresh()
            self._known, self._ran = self.spec, ran
            self._attach_to_parameters()
            self._observe_parameters(self._draft)  # again for those of lazy modules
        self._draft.spec = self._known

    def _is_over(self, draft: Draft) -> bool:
        """Whether what begins now belongs to a new step: the parameters have been updated since, or the gradients
        reset. Otherwise gradients accumulate, and it is part of the same step."""
        if not draft.differentiated:
            return False
        return draft.stepped or draft.before.is_outdated() or gradients_are_fresh(self._trainable)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        mine = {id(parameter) for parameter in self._trainable}
        if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            return
        self._optimizer_seen = True
        if self._draft is not None and self._draft.differentiated:
            self._draft.stepped = True
            if self._done == self.plan.steps - 1:
                self._finish()  # the last one: leave before the next forward pass begins

    def _finish(self) -> None:
        draft, self._draft = self._draft, None
        if draft is None or not draft.differentiated:
            return
        step = draft.finished()
        self._done += 1
        self.plan.on_step(step, draft.spec or replace(self.spec, notes=(FORWARD_UNSEEN,)))
        if self._done >= self.plan.steps:
            self._let_go()

    # -- what is summarized

    def _observe_parameters(self, draft: Draft) -> None:
        for known in self._tracer.parameters():
            if not nn.parameter.is_lazy(known.tensor):
                place = known.layer, known.role, known.full_name
                draft.observe(*place, known.tensor, known.unit_axis, again=known.is_bare)

    def layer_ran(
        self, path: str, module: nn.Module, call: int, inputs: tuple[Any, ...], output: Any
    ) -> None:
        """Tracer: a layer has returned, for the call-th time in this pass."""
        if self._draft is None:
            return
        taken, made = next(tensors_in(inputs), None), next(tensors_in(output), None)
        if taken is not None and taken.is_floating_point():
            axis = output_axis(module, taken)
            self._draft.observe(path, Role.INPUT, f"{path}_input_{call}", taken, axis)
        if made is not None:
            self._observe_output(path, f"{path}_output_{call}", made, output_axis(module, made))

    def _observe_output(self, path: str, tensor: str, made: Tensor, axis: int | None) -> None:
        draft = self._draft
        if draft is None:
            return
        draft.observe(path, Role.OUTPUT, tensor, made, axis)
        if made.requires_grad and self._needed.detail(Role.OUTPUT_GRAD, draft.index):
            see = self._backward_hook(self._has_output_gradient, path, f"gradient/{tensor}", axis)
            self._handles.add(made.register_hook(see))

    def weight_used(
        self, path: str, taken: Tensor, axis: int | None, made: Tensor, made_axis: int | None
    ) -> None:
        """Tracer: a bare weight has been used like a layer's."""
        if self._draft is not None:
            if taken.is_floating_point():
                self._draft.observe(path, Role.INPUT, f"{path}_input_0", taken, _within(axis, taken))
            self._observe_output(path, f"{path}_output_0", made, _within(made_axis, made))

    def effective_weight(self, path: str, name: str, value: Tensor, unit_axis: int | None) -> None:
        """Tracer: a weight has been computed from its parts."""
        draft = self._draft
        if draft is None:
            return
        draft.observe(path, Role.WEIGHT, name, value, unit_axis)
        if value.requires_grad and self._needed.detail(Role.WEIGHT_GRAD, draft.index):
            see = self._backward_hook(self._has_effective_gradient, path, f"gradient/{name}", unit_axis)
            self._handles.add(value.register_hook(see))

    def _has_effective_gradient(self, path: str, tensor: str, axis: int | None, gradient: Tensor) -> None:
        if self._draft is not None:
            self._draft.observe(path, Role.WEIGHT_GRAD, tensor, gradient, axis, again=True)

    def activation_runs(self, tensor: str, path: str, value: Tensor, unit_axis: int | None) -> None:
        """Tracer: an activation is about to run."""
        if self._draft is not None:
            with torch.no_grad():
                self._draft.observe(path, Role.ACTIVATION_INPUT, tensor, value, unit_axis)

    def attention_runs(self, path: str, call: int, entropy: Callable[[], Tensor | None]) -> None:
        """Tracer: attention may be about to run."""
        draft = self._draft
        if draft is None or self._needed.detail(Role.ATTENTION_ENTROPY, draft.index) is None:
            return
        with torch.no_grad():
            values = entropy()
        if values is not None:
            draft.observe(path, Role.ATTENTION_ENTROPY, f"{path}_attention_entropy_{call}", values, None)

    def _has_output_gradient(self, path: str, tensor: str, axis: int | None, gradient: Tensor) -> None:
        if self._draft is not None:
            self._draft.observe(path, Role.OUTPUT_GRAD, tensor, gradient, axis)

    def _has_gradient(self, path: str, name: str, parameter: nn.Parameter) -> None:
        if self._draft is None and self._is_unseen():
            self._begin_step()
        draft, known = self._draft, self._tracer.parameter(path, name)
        if draft is None or parameter.grad is None:
            return
        draft.differentiated = True
        if draft.loss is None and self._roots:
            draft.loss = _kept(self._roots[0])
        if known.role is Role.WEIGHT:
            tensor = f"gradient/{known.full_name}"
            draft.observe(known.layer, Role.WEIGHT_GRAD, tensor, parameter.grad, known.unit_axis, again=True)

    def _is_unseen(self) -> bool:
        """Whether gradients are the first that is seen of a step, rather than a forward pass."""
        return self._compiled or not self._called

    def backward_begins(self, root: Tensor | None) -> None:
        """Autograd: of nested passes the outermost begins at the loss."""
        if threading.get_ident() == self._thread:
            self._roots.append(root)
            if len(self._roots) == 1 and self._is_unseen():
                self._guarded(self._end_step)

    def backward_ends(self) -> None:
        """Autograd: it has returned, or raised."""
        if threading.get_ident() == self._thread and self._roots:
            self._roots.pop()

    def _end_step(self) -> None:
        if self._draft is not None and self._is_over(self._draft):
            self._finish()

    def loss(self, value: Any) -> None:
        """State the loss of the current step, where it cannot be found through backward."""
        if self._draft is not None:
            self._draft.loss = _kept(value) if isinstance(value, Tensor) else float(value)


def _kept(loss: Tensor | None) -> Tensor | float | None:
    """A loss as it is now, whatever is written to it later; nan for what is no scalar."""
    if loss is None:
        return None
    return loss.detach().clone() if loss.numel() == 1 else nan


def _within(axis: int | None, tensor: Tensor) -> int | None:
    """The axis that counts units, where there are samples beside it."""
    return axis if axis is not None and tensor.ndim > 1 and -axis <= tensor.ndim else None


def _calling_frame() -> FrameType | None:
    """The innermost frame that is not ours: it runs as long as the pass does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fanin."):
        frame = frame.f_back
    return frame


def _is_running(wanted: FrameType) -> bool:
    """Whether a frame is on this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is wanted
