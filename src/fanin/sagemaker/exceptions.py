"""The original's exceptions, by name and attributes. Its rules raise and catch them to go on to the next step."""

from __future__ import annotations

from fanin.sagemaker.modes import ModeKeys


class SMDebugError(Exception):
    """The root of all that a trial or a rule raises here."""


class StepUnavailable(SMDebugError):
    """A step was not saved, and never will be."""

    def __init__(self, step: int, mode: ModeKeys) -> None:
        self.step, self.mode = step, mode
        super().__init__(f"Step {step} of mode {mode.name} is not available as it was not saved")


class StepNotYetAvailable(SMDebugError):
    """A step may still come."""

    def __init__(self, step: int, mode: ModeKeys) -> None:
        self.step, self.mode = step, mode
        super().__init__(f"Step {step} of mode {mode.name} not yet available")


class TensorUnavailable(SMDebugError):
    """No tensor of this name was saved."""

    def __init__(self, tname: str) -> None:
        self.tname = tname
        super().__init__(f"Tensor {tname} was not saved.")


class TensorUnavailableForStep(SMDebugError):
    """A tensor was not saved at a step, or only reductions of it."""

    def __init__(
        self, tname: str, step: int, mode: ModeKeys = ModeKeys.GLOBAL, has_reductions: bool = False
    ) -> None:
        self.tname, self.step, self.mode, self.has_reductions = tname, step, mode, has_reductions
        text = f"Value for tensor {tname} is not available for step {step} with mode {mode.name} as it was not saved."
        super().__init__(text + " Reductions of it were saved: ask for these." * has_reductions)


class ShapeUnavailableForStep(SMDebugError):
    """Neither a tensor nor its shape was saved at a step."""

    def __init__(self, tname: str, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> None:
        self.tname, self.step, self.mode = tname, step, mode
        super().__init__(f"Shape for tensor {tname} is not available for step {step} with mode {mode.name}.")


class InvalidWorker(SMDebugError):
    """A worker did not save this."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        super().__init__(f"Invalid Worker: {worker}")


class NoMoreData(SMDebugError):
    """The training has ended, or broken off, before this step."""

    def __init__(self, step: int, mode: ModeKeys, last_step: int) -> None:
        self.step, self.mode, self.last_step = step, mode, last_step
        self.msg = (
            f"Looking for step {step} of mode {mode.name} and reached end of training. "
            f"Max step available is {last_step}"
        )
        super().__init__(self.msg)


class MissingCollectionFiles(SMDebugError):
    """The training has ended, and not all workers wrote what they were to save."""

    def __init__(self) -> None:
        super().__init__("Training job has ended. All the collection files could not be loaded")


class IndexReaderException(SMDebugError):
    """A file of the trial is damaged, or cannot be reached."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class InvalidCollectionConfiguration(SMDebugError):
    """There is no collection of this name, or nothing in it."""

    def __init__(self, c_name: str) -> None:
        self.c_name = c_name
        super().__init__(f"Collection {c_name} has not been configured.")


class RuleEvaluationConditionMet(SMDebugError):
    """A rule has found what it looks for."""

    def __init__(self, rule_name: str, step: int, end_of_rule: bool = False) -> None:
        self.rule_name, self.step, self.end_of_rule = rule_name, step, end_of_rule
        super().__init__(
            f"Evaluation of the rule {rule_name} at step {step} resulted in the condition being met"
        )


class InsufficientInformationForRuleInvocation(SMDebugError):
    """A rule cannot work with what it was given."""

    def __init__(self, rule_name: str, message: str) -> None:
        self.rule_name, self.message = rule_name, message
        super().__init__(f"Insufficient information to invoke rule {rule_name}: {message}")
