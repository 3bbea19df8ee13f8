"""For test suites: a model that is not soundly initialized fails its test, with the reason.

def test_the_model_starts_well():
    assert_well_initialized(build_model(), batch, loss_fn)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fanin.examine import Report, check
from fanin.finding import Verdict
from fanin.race import RaceOptions


def assert_well_initialized(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    optimizer: Any = None,
    race: bool | RaceOptions = False,
    allow_undecided: bool = True,
) -> Report:
    """Fail where a model starts poorly; it is left as it is.

    Args:
        model, batch, loss_fn, optimizer, race: As `fanin.check` takes them.
        allow_undecided: Whether a verdict that lacks evidence passes.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: The verdict is poor, or undecided where that is not allowed; its text is the report.
        BatchError: The model cannot run the batch.
        LossError: The loss cannot be computed or differentiated.
        UsageError: The model is of no known framework, or the optimizer is not one of this model.
    """
    __tracebackhide__ = True  # pytest then points at the test
    report = check(model, batch, loss_fn, optimizer=optimizer, race=race)
    allowed = {Verdict.HEALTHY, Verdict.UNDECIDED} if allow_undecided else {Verdict.HEALTHY}
    if report.verdict not in allowed:
        raise AssertionError(f"the model is not well initialized\n\n{report}")
    return report
