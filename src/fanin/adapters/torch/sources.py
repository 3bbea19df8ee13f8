"""Which line of whose code last wrote each parameter.

Two official doors of torch see every write: the registration of a parameter with its module (constructors), and
the function mode (in-place methods and `torch.nn.init`). The line is the innermost frame of the user's own code;
where there is none, of the library that is not torch.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fanin.adapters.torch.modes import take_away
from fanin.trial import SourceLine

_lines: Any = WeakIdKeyDictionary()  # Parameter -> SourceLine, gone with the parameter

_loaded: Any = WeakIdKeyDictionary()  # Parameter -> True, where a checkpoint wrote it last

_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # what `parameter.data = ...` calls

NOT_WRITES = frozenset({"requires_grad_", "detach_", "rename_", "share_memory_", "retain_grad", "apply_"})
"""In-place by name, but the values stay."""

LOADS = frozenset({"load_state_dict", "_load_from_state_dict"})
"""Functions of torch that read a checkpoint."""

_TORCH = str(Path(torch.__file__).parent)
_FANIN = str(Path(__file__).parents[2])
_EXAMPLES = str(Path(__file__).parents[2] / "examples")
_STANDARD = str(Path(sysconfig.get_paths()["stdlib"]))
_LIBRARIES = ("site-packages", "dist-packages")


def line_of(parameter: Tensor) -> SourceLine | None:
    """The line that last wrote a parameter; None when that was not recorded."""
    found: SourceLine | None = _lines.get(parameter)
    return found


def was_loaded(parameter: Tensor) -> bool:
    """Whether the last recorded write to a parameter came out of a checkpoint."""
    return bool(_loaded.get(parameter, False))


@contextmanager
def recording() -> Iterator[None]:
    """While open, every write to a parameter is noted."""
    recorder = Recorder()
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()


class Recorder(TorchFunctionMode):
    """Notes writes while started."""

    def __init__(self) -> None:
        super().__init__()
        self._on = False
        self._by_memory: dict[int, nn.Parameter] = {}
        self._registration: Any = None

    def start(self) -> None:
        """Begin to note writes, on this thread and for every module."""
        self._on = True
        self._registration = register_module_parameter_registration_hook(self._registered)
        self.__enter__()

    def stop(self) -> None:
        """Stop."""
        if not self._on:
            return
        self._on = False
        self._registration.remove()
        self._by_memory.clear()
        take_away(self)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._on and not torch.compiler.is_compiling():
            target = _written(func, args, kwargs or {})
            if target is not None:
                self._note(target)
            if func == _SET_DATA and isinstance(args[0], nn.Parameter):
                self._remember(args[0])
        return result

    def _registered(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        line = users_line()
        if line is not None:
            _lines[parameter] = line
        _loaded[parameter] = _is_loading()
        self._remember(parameter)

    def _remember(self, parameter: nn.Parameter) -> None:
        if not nn.parameter.is_lazy(parameter) and not parameter.is_meta:
            self._by_memory[parameter.untyped_storage().data_ptr()] = parameter

    def _note(self, target: Tensor) -> None:
        parameter = target if isinstance(target, nn.Parameter) else self._owner(target)
        line = users_line() if parameter is not None else None
        if line is not None:
            _lines[parameter] = line
        if parameter is not None:
            _loaded[parameter] = _is_loading()

    def _owner(self, view: Tensor) -> nn.Parameter | None:
        """The parameter whose memory a view (`weight.data`, `weight[0]`) writes to."""
        if view.is_meta or view.layout is not torch.strided:
            return None
        address = view.untyped_storage().data_ptr()
        owner = self._by_memory.get(address)
        # A parameter that was moved since leaves its old address to others.
        if owner is None or owner.untyped_storage().data_ptr() != address:
            return None
        return owner


def _written(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a call writes to, if any."""
    if func == _SET_DATA:
        return None if _is_a_move() else args[0]
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.startswith("__")) or name == "__setitem__"
    augmented = name.startswith("__i") and name != "__invert__"
    if not (in_place or augmented) or name in NOT_WRITES:
        out = kwargs.get("out")
        return out if isinstance(out, Tensor) else None
    target = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
    return target if isinstance(target, Tensor) else None


def _is_a_move() -> bool:
    """Whether `Module.to`, `half` or the like is setting `parameter.data`: same values, another place."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_FANIN, _TORCH)):
        if frame.f_code.co_name == "_apply":
            return True
        frame = frame.f_back
    return False


def _is_loading() -> bool:
    """Whether a checkpoint is being read: `Module.load_state_dict` is on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in LOADS and frame.f_code.co_filename.startswith(_TORCH):
            return True
        frame = frame.f_back
    return False


def users_line() -> SourceLine | None:
    """The innermost line of the user's own code on the stack, else of a library that is neither torch nor fanin."""
    library: SourceLine | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_ours(file):
            frame = frame.f_back
            continue
        if not any(part in file for part in _LIBRARIES):
            return SourceLine(file, frame.f_lineno)
        library = library or SourceLine(file, frame.f_lineno)
        frame = frame.f_back
    return library


def _is_ours(file: str) -> bool:
    """Whether a frame belongs to torch, to fanin (its examples are a user's code), or to Python itself."""
    if file.startswith(_EXAMPLES):
        return False
    if file.startswith(("<frozen", _TORCH, _FANIN)):
        return True
    return file.startswith(_STANDARD) and not any(part in file for part in _LIBRARIES)
