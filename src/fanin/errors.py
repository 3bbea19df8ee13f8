"""What can go wrong, as one tree::

    FaninError
    ├── UsageError              an argument cannot be what it is
    │   ├── TargetError         MODULE:BUILD does not lead to a model, a batch and a loss
    │   ├── BatchError          the model cannot run the batch
    │   ├── LossError           the loss cannot be computed or differentiated
    │   └── RuleParameterError  a rule's parameter has the wrong type or value
    ├── StoreError              a trial cannot be written or read
    │   ├── TrialNotFoundError  there is nothing there
    │   ├── TrialExistsError    there is a trial already
    │   └── TrialFormatError    what is there is not a trial that this version can read
    ├── ActionError             what was to be done about a verdict could not be done
    └── TrainingStoppedError    a training that was to stop when asked, and was asked

Every message says what went wrong, where, what was got, what was expected and what to do next.
"""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Text with every character that does not print (controls, directions, surrogates) written out.

    >>> print(escape("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FaninError(Exception):
    """An error that tells its reader how to go on.

    Args:
        what: One sentence: what went wrong.
        where: The layer, step, file or argument concerned.
        got: What was found there.
        expected: What would have been right.
        next_step: What the reader can do now.

    >>> print(FaninError("the loss is not a scalar", got="shape [32]", next_step="use reduction='mean'"))
    the loss is not a scalar
      got       shape [32]
      next      use reduction='mean'
    """

    def __init__(
        self, what: str, *, where: str = "", got: str = "", expected: str = "", next_step: str = ""
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        details = {
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "next": self.next_step,
        }
        said = "\n".join([self.what, *(f"  {label:<9} {text}" for label, text in details.items() if text)])
        # Much of it is what files of others say, and ends up on a terminal.
        return "\n".join(map(escape, said.split("\n")))


class UsageError(FaninError):
    """An argument cannot be what it is."""


class TargetError(UsageError):
    """MODULE:BUILD does not lead to a model, a batch and a loss."""


class BatchError(UsageError):
    """The model cannot run the batch."""


class LossError(UsageError):
    """The loss cannot be computed or differentiated."""


class RuleParameterError(UsageError):
    """A rule's parameter has the wrong type or value."""


class StoreError(FaninError):
    """A trial cannot be written or read."""


class TrialNotFoundError(StoreError):
    """There is nothing at the address."""


class TrialExistsError(StoreError):
    """There is a trial already; fanin never overwrites one."""


class TrialFormatError(StoreError):
    """What is there is not a trial that this version can read."""


class ActionError(FaninError):
    """What was to be done about a verdict could not be done."""


class TrainingStoppedError(FaninError):
    """Somebody asked for the training to stop; raised in it, where it was told to obey by raising."""
