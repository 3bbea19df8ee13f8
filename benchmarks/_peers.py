"""What else can watch a training, each as its users would write it, on the tensors that the documented rule reads: the
inputs of activations, the gradients of weights, and the loss, at every step.

A peer is a context in which the model is watched. One that is not installed says so.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _subjects import Subject
from torch import Tensor, nn

import fanin
from fanin.rules.poor_weight_initialization import PoorWeightInitialization

Peer = Callable[[Subject, Path], AbstractContextManager[Any]]


def _fanin(subject: Subject, folder: Path, *, rule_only: bool = False, kept: bool = False) -> Any:
    return fanin.watch(
        subject.model,
        subject.optimizer,
        trial=folder / "trial" if kept else None,
        rules=[PoorWeightInitialization()] if rule_only else None,
        on_error="raise",
    )


@contextmanager
def _naive(subject: Subject, folder: Path) -> Iterator[None]:
    """A hook as it is written in an afternoon: variance of what activations take, quantiles of gradients."""
    ends, seen = torch.tensor([0.05, 0.95]), []

    def takes(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach().var().item())

    def differentiated(parameter: Tensor) -> None:
        gradient = parameter.grad
        if (
            gradient is not None and gradient.ndim > 1 and gradient.numel() <= 2**24
        ):  # torch.quantile takes no more
            seen.append(torch.quantile(gradient.float().flatten(), ends.to(gradient)).tolist())

    modules = [m for m in subject.model.modules() if isinstance(m, nn.ReLU | nn.GELU)]
    handles: list[Any] = [m.register_forward_pre_hook(takes) for m in modules]
    handles += [p.register_post_accumulate_grad_hook(differentiated) for p in subject.model.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _wandb(subject: Subject, folder: Path) -> Iterator[None]:
    """Histograms of parameters and gradients, at every step, offline; `watch` sees no activations."""
    wandb = importlib.import_module("wandb")
    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True, console="off"))
    run.watch(subject.model, log="all", log_freq=1)
    hook = subject.optimizer.register_step_post_hook(lambda *_: run.log({"step": 1}))
    try:
        yield
    finally:
        hook.remove()
        run.unwatch(subject.model)
        run.finish()


@contextmanager
def _smdebug(subject: Subject, folder: Path, *, reductions: bool = False) -> Iterator[None]:
    """The original, set to save what its rule reads: raw, or by its reductions."""
    os.environ.setdefault("SMDEBUG_LOG_LEVEL", "ERROR")
    smd = importlib.import_module("smdebug.pytorch")
    every = smd.SaveConfig(save_interval=1)
    kinds = ["min", "max", "mean", "std", "variance"]
    hook = smd.Hook(
        out_dir=str(folder / "smdebug"),
        save_config=every,
        include_regex=[".*relu_input", ".*gelu_input", "gradient/.*weight", "CrossEntropyLoss.*"],
        reduction_config=smd.ReductionConfig(reductions=kinds, norms=["l2"]) if reductions else None,
    )
    hook.register_module(subject.model)
    try:
        yield
    finally:
        hook.close()


PEERS: dict[str, Peer] = {
    "control": lambda subject, folder: nullcontext(),
    "fanin": _fanin,
    "fanin, to a directory": partial(_fanin, kept=True),
    "fanin, one rule": partial(_fanin, rule_only=True),
    "naive hook": _naive,
    "wandb.watch": _wandb,
    "smdebug": _smdebug,
    "smdebug, reductions": partial(_smdebug, reductions=True),
}


def missing(name: str) -> str:
    """Why a peer cannot run here; empty where it can."""
    package = name.partition(".")[0].partition(",")[0]
    if package in {"wandb", "smdebug"} and find_spec(package) is None:
        return f"{package} is not installed in this environment (benchmarks/README.md says how)"
    return ""
