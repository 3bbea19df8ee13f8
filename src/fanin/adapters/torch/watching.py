"""A model under observation while it trains: which step it is, what is summarized in it, when to get out of the way.

A step begins with a forward pass in train mode and ends with the optimizer's step, or, where no optimizer is seen,
when the next forward pass begins on fresh gradients. Until then further passes belong to the same step (gradient
accumulation). Passes in eval mode or without gradients are left alone, and so is all but the first evaluation of a
closure within one step of its optimizer (LBFGS).

Gradients are those that arrive: before anybody clips them or averages them over ranks, and without the loss scale.

What is compiled cannot be watched while it runs: a step begins with the first gradient to arrive, and only
parameters, gradients and loss are seen.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any
from weakref import WeakMethod, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fanin.adapters.base import WatchPlan, brief
from fanin.adapters.torch import backward, optimizing
from fanin.adapters.torch.describe import framework, is_compiled, unwrapped
from fanin.adapters.torch.drafting import Draft, Needed
from fanin.adapters.torch.frames import calling_frame, is_running
from fanin.adapters.torch.hooks import Handles, Hook, is_ours_alone
from fanin.adapters.torch.modes import is_recording
from fanin.adapters.torch.outgoing import Outgoing
from fanin.adapters.torch.passing import entering, leaving
from fanin.adapters.torch.scaling import kept, scale_of
from fanin.adapters.torch.sharding import is_replicated, require_sharded_before
from fanin.adapters.torch.sight import Sight
from fanin.adapters.torch.tracing import Tracer
from fanin.adapters.torch.updates import Snapshot, gradients_are_fresh
from fanin.errors import FaninError
from fanin.trial import ModelSpec, Role

log = logging.getLogger("fanin")

FORWARD_UNSEEN = (
    "the forward pass was not seen, because the model is compiled or its parts are called one by one: "
    "only parameters, gradients and loss are known"
)
"""A note in the spec."""

COMPILED = "fanin watches parameters, gradients and loss of %s, which is compiled; not its forward pass"
UNUSED = "fanin saw %d forward passes of %s in train mode and no gradient; it stops watching"

PATIENCE = 100
"""Forward passes in train mode without a gradient after which we get out of the way: nobody calls backward on them
(`torch.autograd.grad`, training in another thread), and following them costs time for nothing."""


class TorchWatching:
    """Hangs on a model from construction until `detach`, or until the last planned step is over.

    Attributes:
        model: What is watched: of a compiled or distributed model the one within.
        fault: Of our own, that ended the watch.
        detached: Whether all hooks are gone.
        asleep: Whether what runs now is no part of the training.
    """

    def __init__(self, model: nn.Module, plan: WatchPlan, *, runs_eagerly: bool = False) -> None:
        self.model = unwrapped(model)
        self.plan = plan
        self.detached = self.asleep = False
        self.fault: Exception | None = None
        self._needed = Needed(plan.needs)
        self._handles = Handles()
        self._sight = Sight(self._needed, self._handles, self._backward_hook)
        self._tracer = Tracer(self.model, self._sight)
        self._trainable: list[nn.Parameter] = []
        self._outgoing = Outgoing(plan.on_step)
        self._done = 0
        self._passes = 0
        self._known: ModelSpec | None = None
        self._ran: tuple[str, ...] = ()
        self._way: tuple[str, ...] = ()
        self._optimizer = ""
        self._runs_eagerly = runs_eagerly
        self._compiled = is_compiled(model) and not runs_eagerly
        self._said = False
        self._called = False
        self._depth = 0
        self._pass: FrameType | None = None
        self._optimizing: FrameType | None = None
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
        if self._compiled:
            self._say_compiled()
        else:
            self._attach_to_modules()
        self._attach_to_parameters()
        optimizing.audience.add(self)
        backward.audience.add(self)

    def _say_compiled(self) -> None:
        if not self._said:
            self._said = True
            log.warning(COMPILED, type(self.model).__name__)

    def _attach_to_modules(self) -> None:
        hang = self._handles.add
        hang(self.model.register_forward_pre_hook(self._hook(self._begins), with_kwargs=True, prepend=True))
        for path, module in self.model.named_modules():
            hang(module.register_forward_pre_hook(entering(self._tracer, path, self._sees_entry)))
            leave = leaving(self._tracer, path, self._sees_exit)
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
        self._guarded(self._outgoing.finish)
        self._let_go()

    def _let_go(self) -> None:
        if not self.detached:
            self.detached = True
            self._tracer.end(None)
            self._handles.remove()
            optimizing.audience.remove(self)
            backward.audience.remove(self)
            self._sight.draft = self._pass = self._optimizing = self._sight.scale = None
            self._roots.clear()
            self._sight.forget()

    def _hook(self, call: Callable[..., None], *bound: Any) -> Hook:
        """For a forward pass: in other threads (DataParallel's replicas) it does nothing."""

        def run(*args: Any, **kwargs: Any) -> None:
            if self.hears_this_thread:
                self._guarded(call, *bound, *args, **kwargs)

        return Hook(run)

    def _backward_hook(self, call: Callable[..., None], *bound: Any) -> Hook:
        """For a backward pass, which accelerators run in threads of their own.

        Python cannot see what a tensor's hook refers to, and would never free a model that lies in a circle with it.
        So it holds us weakly, and the modules' hooks keep us; of a compiled model these are the only ones.
        """
        if self._compiled:
            return Hook(lambda *args: self._guarded(call, *bound, *args))
        ours, theirs = ref(self), WeakMethod(call)

        def run(*args: Any) -> None:
            watching, method = ours(), theirs()
            if watching is not None and method is not None:
                watching._guarded(method, *bound, *args)

        return Hook(run)

    def _guarded(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Run our code inside the user's training, never raising; a forked child is not our training.

        Torch's function modes are off meanwhile: our own arithmetic is no part of the model.
        """
        if self.detached or self.asleep or os.getpid() != self._process or is_recording():
            return
        self._grad_enabled = enabled = torch.is_grad_enabled()
        try:
            if self._tracer.fault is not None:
                raise self._tracer.fault
            with torch._C.DisableTorchFunction():
                # Torch's context managers take longer.
                torch._C._set_grad_enabled(False)
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
        with (
            suppress(Exception),
            torch._C.DisableTorchFunction(),
        ):  # they are whole, and the fault may lie elsewhere
            self._outgoing.finish()
        self._let_go()
        if self.plan.on_error == "raise":
            raise fault
        known = isinstance(fault, FaninError)
        log.warning(
            "fanin stopped watching %s at step %d %s; training goes on%s",
            type(self.model).__name__,
            self._done,
            "where it cannot watch" if known else "because of a fault of its own",
            f"\n{fault}" if known else "",
            exc_info=None if known else fault,
        )

    @property
    def hears_this_thread(self) -> bool:
        """Whether it looks at what runs in this thread."""
        return threading.get_ident() == self._thread

    def joins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take part in a forward pass whose pre-hooks have been gathered without ours."""
        if self._compiled:
            return
        self._guarded(self._begins, module, args, {})
        if self._tracer.awake:
            self._sees_entry("", module, args)

    # -- the life of a step

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called = True
        if self._pass is not None and not is_running(self._pass):
            self._abandon()
        self._depth += 1
        if self._depth > 1:
            return
        self._pass = calling_frame()
        if module.training and self._grad_enabled and not (self._is_recomputed() or self._is_evaluated()):
            others = self._tracer.replacements()
            if not all(isinstance(other, nn.Parameter) for other in others):
                return
            if others and not self._done:
                self._adopt()
            self._begin_step()
            self._follow(args, kwargs)

    def _adopt(self) -> None:
        """Take parameters for the model's that have replaced the known ones since the watch began."""
        require_sharded_before(self.model)
        self._tracer.refresh()
        self._attach_to_parameters()

    def _is_evaluated(self) -> bool:
        """Whether this pass tries other parameters within one step of the optimizer, as LBFGS does: the first
        evaluation is the step, which sees no more from then on."""
        draft = self._sight.draft
        if self._optimizing is None or draft is None or draft.stepped:
            return False
        if not is_running(self._optimizing):
            self._optimizing = None
            return False
        draft.closed = draft.closed or self._is_over(draft)
        return draft.closed

    def _begin_step(self) -> None:
        self._end_step()
        draft = self._sight.draft
        self._passes = 0 if draft is None or draft.differentiated else self._passes + 1
        if self._passes >= PATIENCE:
            log.warning(UNUSED, PATIENCE, type(self.model).__name__)
            self._outgoing.finish()
            self._let_go()
        if self.detached or (self._sight.draft is not None and self._sight.draft.differentiated):
            return
        before = Snapshot(self._trainable, corners=not self._optimizer)
        self._sight.draft = Draft(self._done, self.plan.worker, self._needed, before, self.plan.examples)
        self._sight.draft.replicated = is_replicated(self.model)
        self._sight.parameters(self._tracer.parameters())

    def _follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Trace the pass that begins; not where it meets compiled modules, into which no tracing may reach."""
        self._compiled = self._compiled or (is_compiled(self.model) and not self._runs_eagerly)
        if self._compiled:
            self._say_compiled()
        elif not self.detached:
            self._outer_error = sys.exception()
            draft = self._sight.draft
            knows_enough = draft is not None and self._needed.only_activations(draft.index)
            self._tracer.begin(args, kwargs, self._way if knows_enough else ())

    def _abandon(self) -> None:
        """Forget a pass that was left without a word: torch calls no hook after a KeyboardInterrupt."""
        self._depth = 0
        self._pass = None
        self._tracer.end(None)

    def _is_recomputed(self) -> bool:
        """Whether this pass repeats one that was seen: activation checkpointing, in the midst of its backward."""
        return bool(self._roots) and self._sight.draft is not None and not self._sight.draft.stepped

    def _sees_entry(self, path: str, module: nn.Module, args: Any) -> None:
        self._guarded(self._tracer.enters, path)

    def _sees_exit(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        failed = output is None and sys.exception() is not self._outer_error
        self._guarded(self._tracer.leaves, path, module, (*args, *kwargs.values()), output, failed)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        self._pass = self._outer_error = None
        if self._tracer.awake:
            self._tracer.end(output)
            self._take_spec()
        if self._sight.draft is not None:
            self._sight.draft.forward_ended()

    def _take_spec(self) -> None:
        draft = self._sight.draft
        if draft is None or draft.spec is not None:
            return
        taken, before = self._tracer.way, self._way
        self._way = taken if before in ((), taken) else ()  # where it takes another, it is followed anew
        ran = tuple(self._tracer.current.ran)
        if self._known is None or ran != self._ran:  # the first pass, or one that took another way
            self._tracer.refresh()
            self._known, self._ran = self.spec, ran
            self._attach_to_parameters()
            self._sight.parameters(self._tracer.parameters())  # again for those of lazy modules
        draft.spec = self._known

    def _is_over(self, draft: Draft) -> bool:
        """Whether what begins now belongs to a new step: the parameters have been updated since, or the gradients
        reset. Otherwise gradients accumulate, and it is part of the same step."""
        if not draft.differentiated:
            return False
        return draft.stepped or draft.before.is_outdated() or gradients_are_fresh(self._trainable)

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """Torch: it is about to step."""
        if self.hears_this_thread:
            self._guarded(self._steps, optimizer)

    def optimizer_ended(self, optimizer: Optimizer) -> None:
        """Torch: it has stepped."""
        if self.hears_this_thread:
            self._guarded(self._stepped, optimizer)

    def _steps(self, optimizer: Optimizer) -> None:
        if optimizing.trains(optimizer, self._trainable):
            self._optimizing = calling_frame()

    def _stepped(self, optimizer: Optimizer) -> None:
        if not optimizing.trains(optimizer, self._trainable):
            return
        self._optimizing = None
        self._optimizer = self._optimizer or brief(optimizer)
        if self._sight.draft is not None and self._sight.draft.differentiated:
            self._sight.draft.stepped = True
            if self._done == self.plan.steps - 1:
                self._finish()  # the last one: leave before the next forward pass begins

    def _finish(self) -> None:
        self._sight.backward_ended()  # an optimizer may step amid it
        draft, self._sight.draft = self._sight.draft, None
        if draft is None or not draft.differentiated:
            return
        self._done += 1
        spec = draft.spec or replace(self.spec, notes=(FORWARD_UNSEEN,))
        self._outgoing.add(draft, replace(spec, optimizer=self._optimizer))
        if self._done >= self.plan.steps:
            self._outgoing.finish()
            self._let_go()

    # -- what is summarized

    def _has_gradient(self, path: str, name: str, parameter: nn.Parameter) -> None:
        if self._sight.draft is None and self._is_unseen():
            self._begin_step()
        draft, known = self._sight.draft, self._tracer.parameter(path, name)
        if draft is None or draft.closed or parameter.grad is None:
            return
        draft.differentiated, draft.scale = True, self._sight.scale
        if draft.loss is None and self._roots:
            draft.loss = kept(self._roots[0], self._sight.scale)
        if known.role is Role.WEIGHT:
            self._sight.gradient(known, parameter.grad, bool(self._roots) and is_ours_alone(parameter))

    def _is_unseen(self) -> bool:
        """Whether gradients are the first that is seen of a step, rather than a forward pass."""
        return self._compiled or not self._called

    def backward_begins(self, root: Tensor | None) -> None:
        """Autograd: of nested passes the outermost begins at the loss."""
        if self.hears_this_thread:
            self._roots.append(root)
            if len(self._roots) == 1:
                self._guarded(self._outermost_begins, root)

    def _outermost_begins(self, root: Tensor | None) -> None:
        self._outgoing.offer()
        self._sight.scale = None if root is None else scale_of(root)
        if self._is_unseen() and not self._is_evaluated():
            self._end_step()

    def backward_ends(self) -> None:
        """Autograd: it has returned, or raised."""
        if self.hears_this_thread and self._roots:
            self._roots.pop()
            if not self._roots:
                self._guarded(self._sight.backward_ended)

    def _end_step(self) -> None:
        draft = self._sight.draft
        if draft is None or not self._is_over(draft):
            return
        if draft.was_skipped():
            self._sight.draft = None
        else:
            self._finish()

    def loss(self, value: Any) -> None:
        """State the loss of the current step, where it cannot be found through backward."""
        if self._sight.draft is not None and not is_recording():
            self._sight.draft.loss = kept(value, None) if isinstance(value, Tensor) else float(value)
