"""Know before step one whether a neural network was initialized well: which layer, why, and what to do.

    report = fanin.check(model, batch, loss_fn)

Names are loaded when they are first used: `import fanin` loads no framework, and not even NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "Cause",
    "FaninError",
    "PoorWeightInitialization",
    "Repair",
    "RepairReport",
    "Report",
    "TensorSummary",
    "Trial",
    "Verdict",
    "__version__",
    "check",
    "initialize",
    "judge",
    "load_trial",
    "repair",
    "watch",
]

if TYPE_CHECKING:
    from fanin.capture import watch as watch
    from fanin.cause import Cause as Cause
    from fanin.change import Repair as Repair
    from fanin.errors import FaninError as FaninError
    from fanin.examine import Report as Report
    from fanin.examine import check as check
    from fanin.examine import judge as judge
    from fanin.examine import load_trial as load_trial
    from fanin.finding import Verdict as Verdict
    from fanin.repairs import RepairReport as RepairReport
    from fanin.repairs import initialize as initialize
    from fanin.repairs import repair as repair
    from fanin.rules.poor_weight_initialization import PoorWeightInitialization as PoorWeightInitialization
    from fanin.summary import TensorSummary as TensorSummary
    from fanin.trial import Trial as Trial

    __version__: str

else:  # hidden from type checkers: where they see a module's __getattr__, they take any name for granted
    _HOMES = {
        "Cause": "cause",
        "FaninError": "errors",
        "PoorWeightInitialization": "rules.poor_weight_initialization",
        "Repair": "change",
        "RepairReport": "repairs",
        "Report": "examine",
        "TensorSummary": "summary",
        "Trial": "trial",
        "Verdict": "finding",
        "check": "examine",
        "initialize": "repairs",
        "judge": "examine",
        "load_trial": "examine",
        "repair": "repairs",
        "watch": "capture",
    }

    _MODULES = ("sagemaker", "testing")

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value = version("fanin")
        elif name in _MODULES:
            from importlib import import_module

            value = import_module(f"fanin.{name}")
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(f"fanin.{_HOMES[name]}"), name)
        else:
            import sys

            raise AttributeError(
                f"module 'fanin' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
            )
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return list(__all__)
