"""Stop: ask the training to stop. `fanin.watch` and `fanin run` hear it and obey as they were told to."""

from __future__ import annotations

import json
import os
import socket
from typing import final

from fanin.actions.base import Action, Notice
from fanin.beside import STOP, Beside
from fanin.errors import ActionError
from fanin.stores.smdebug import is_smdebug


@final
class Stop(Action):
    """A file beside the trial, for which every worker looks; it names the run, and a later one there passes it over.

    Args:
        trial: Its address, as it was given; what a notice says of it is without the secrets that it may hold.
    """

    name = "stop"
    is_once = True

    def __init__(self, trial: str) -> None:
        self._trial = trial

    def do(self, notice: Notice) -> str:
        """Put it there.

        Raises:
            ActionError: The place cannot be written, or nobody would look.
        """
        if is_smdebug(self._trial):
            raise ActionError(
                "a training that SageMaker Debugger records does not hear us",
                where=notice.trial,
                next_step="--run 'aws sagemaker stop-training-job --training-job-name NAME'",
            )
        said = {
            "run": notice.run,
            "why": notice.title,
            "by": f"follow on {socket.gethostname()}:{os.getpid()}",
        }
        try:
            Beside.at(self._trial).write(STOP, json.dumps(said).encode())
        except OSError as error:
            raise ActionError(
                "the training cannot be asked to stop",
                where=notice.trial,
                got=" ".join(f"{type(error).__name__}: {error}".split())[:300],
                expected="a trial in a place that can be written",
                next_step="stop it by other means: --run COMMAND",
            ) from error
        return "the training was asked to stop"
