"""SmdebugStore: trials that SageMaker Debugger wrote, to be judged; never written.

What such a trial holds is what somebody told smdebug to save: raw tensors, or reductions of them, at some steps. It
says nothing of the network's graph. So our own rules may find faults in it and cannot clear it (FAN905); the documented
rule, which looks at tensors by name, can do both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from pyarrow.fs import FileSystem

from fanin.errors import UsageError
from fanin.stores.base import Store, Writer
from fanin.stores.place import shown
from fanin.stores.smdebug.archive import Archive
from fanin.stores.smdebug.conversion import trial_of
from fanin.trial import Trial


@final
class SmdebugStore(Store):
    """A trial of SageMaker Debugger, local or at `s3://`.

    Args:
        uri: What smdebug calls `out_dir`.
        filesystem: Where that path is, when the address does not say so.

    Raises:
        UsageError: The address cannot be read.
    """

    def __init__(self, uri: str, filesystem: FileSystem | None = None) -> None:
        self.uri = uri
        self._filesystem = filesystem

    def begin(self, worker: int = 0, about: Mapping[str, str] | None = None) -> Writer:
        """Refuse.

        Raises:
            UsageError: Always: these trials are read only.
        """
        raise UsageError(
            "trials of SageMaker Debugger are read and not written",
            where=shown(self.uri),
            expected="a new directory",
            next_step="write to a directory, e.g. runs/exp1",
        )

    def load(self) -> Trial:
        """Read what is there by now: the steps of all workers whose index file is finished.

        Raises:
            TrialNotFoundError: There is nothing.
            TrialFormatError: A file of it is damaged, or leads out of it.
            StoreError: It cannot be reached.
        """
        archive = Archive(self.uri, self._filesystem)
        archive.refresh()
        archive.require_steps()
        return trial_of(archive)


def is_smdebug(uri: str) -> bool:
    """Whether smdebug writes, or wrote, at this address.

    Raises:
        UsageError: The address cannot be read.
        StoreError: It cannot be reached.
    """
    return Archive(uri).exists
