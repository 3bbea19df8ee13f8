"""Judging a trial while it is written.

When it is decided: poor as soon as the steps that are in say so, since that is what `judge` would say of them and what
can be acted upon; healthy only once the steps that were to be captured are in, because each of them can still show a
fault; undecided never before the end. The end is that of the trial (all its workers are done), the death of its writer,
or the follower's own timeout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from fanin.beside import Beside
from fanin.errors import FaninError, RuleParameterError, StoreError, TrialFormatError, TrialNotFoundError
from fanin.examine import Report, judge, load_trial
from fanin.finding import Verdict
from fanin.glance import Glance, Liveness, glance
from fanin.judgement import load_rules
from fanin.rule import Rule
from fanin.status import Ended, Standing, status_of
from fanin.stores.parquet.part import Part, decoded_once
from fanin.stores.place import shown
from fanin.trial import Trial

POLL_S = 0.1
"""Seconds between two looks at a local disk: to list 20 files takes 0.06 ms."""

REMOTE_POLL_S = 0.5
"""The same for an object store, which is paid by the request: with it a verdict may come a second after its step."""

PATIENCE_S = 5.0
"""How long a trial may be unreadable before that is its state: copies (rsync, `aws s3 sync`) are whole after a while,
and stores fail for a moment."""


@dataclass(frozen=True, slots=True)
class Following:
    """How to follow.

    Attributes:
        rules: Which rules to ask; None for all.
        timeout: Seconds after which to give up; None for never.
        dead_after: Seconds without a sign of life after which the writer is dead; None for BEATING_S with a heartbeat
            and IDLE_S without.
        to_the_end: Whether to look on when it is decided, as long as the trial grows.
    """

    rules: tuple[Rule, ...] | None = None
    timeout: float | None = None
    dead_after: float | None = None
    to_the_end: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the trial has shown that is new.

    Attributes:
        standing: The state of things.
        report: What was judged; None before anything was.
        error: Why it cannot be read.
    """

    standing: Standing
    report: Report | None = None
    error: FaninError | None = None


def follow(uri: str, how: Following | None = None) -> Iterator[Look]:
    """What each new look at a trial shows, until `standing.ended`. The trial may not be there yet.

    A rule whose parameters cannot apply to this trial breaks it off: `Look.error` says so.

    Raises:
        UsageError: This cannot be the address of a trial.
    """
    follower = _Follower(uri, how or Following())
    follower.is_news()
    yield follower.look()
    while not follower.is_over:
        time.sleep(follower.poll)
        if follower.is_news():
            yield follower.look()


class _Follower:
    """The state of following one trial: what was seen last, and since when what was the case."""

    def __init__(self, uri: str, how: Following) -> None:
        self._uri, self._how = uri, how
        self._beside = Beside.at(uri)
        self.poll = REMOTE_POLL_S if "://" in uri and not uri.startswith("file://") else POLL_S
        self._began = time.monotonic()
        self._liveness = Liveness(how.dead_after)
        self._parts: dict[bytes, Part] = {}
        self._seen: Glance | None = None
        self._was_there = False
        self._report: Report | None = None
        self._run = ""
        self._error: FaninError | None = None
        self._failing_since: float | None = None
        self._ended = Ended.NOT
        self._codes = tuple(rule.code for rule in how.rules or ())
        if how.rules is None:
            load_rules()  # the imports, which take 0.3 s, while there is nothing to judge yet

    @property
    def is_over(self) -> bool:
        return self._ended is not Ended.NOT

    def is_news(self) -> bool:
        """Whether there is a reason to look again: something new, the end, or a failure that may have passed."""
        if self._is_timed_out():
            self._ended = Ended.TIMED_OUT
            return True
        try:
            seen = glance(self._beside)
        except OSError as error:
            return self._failed(_unreachable(self._uri, error))
        self._was_there = self._was_there or seen.holds_trial
        if seen.holds_trial and self._liveness.is_dead(seen):
            self._ended = Ended.WRITER_DEAD
        before, self._seen = self._seen, seen
        return self.is_over or self._error is not None or before is None or seen.files != before.files

    def _is_timed_out(self) -> bool:
        return self._how.timeout is not None and time.monotonic() - self._began > self._how.timeout

    def _failed(self, error: FaninError) -> bool:
        """Whether it has lasted, so that it is the state of things."""
        now = time.monotonic()
        self._error = error
        self._failing_since = now if self._failing_since is None else self._failing_since
        lasted = now - self._failing_since > PATIENCE_S
        if (
            self._ended is not Ended.TIMED_OUT
        ):  # a writer that is dead, too, may have left what is whole in a moment
            self._ended = Ended.BROKEN if lasted else Ended.NOT
        return self.is_over

    def look(self) -> Look:
        try:
            if self._ended is not Ended.BROKEN:
                with decoded_once(self._parts):
                    trial = load_trial(self._uri)
                self._judge(trial)
        except StoreError as error:
            self._take(error)
        return Look(self._standing(), self._report, self._error)

    def _take(self, error: StoreError) -> None:
        """A trial that is not there yet is no failure; nor is a directory in which others have files."""
        holds_trial = self._seen is not None and self._seen.holds_trial
        absent = isinstance(error, TrialNotFoundError) or (
            isinstance(error, TrialFormatError) and not holds_trial
        )
        if absent and not self._was_there:
            self._error = self._failing_since = None
        else:
            self._failed(_removed(self._uri, error) if absent else error)

    def _judge(self, trial: Trial) -> None:
        self._error = self._failing_since = None
        self._run = trial.identity
        try:
            self._report = judge(trial, rules=self._how.rules)
        except RuleParameterError as error:  # which no later look would change
            self._error, self._ended = error, Ended.BROKEN
            return
        if self.is_over and self._ended is not Ended.WRITER_DEAD:
            return
        if trial.complete:
            self._ended = Ended.TRIAL_ENDED
        elif self._report.verdict is Verdict.POOR and not self._how.to_the_end:
            self._ended = Ended.DECIDED

    def _standing(self) -> Standing:
        report = self._report
        diagnosis = report.diagnosis if report else None
        return Standing(
            trial=shown(self._uri),
            status=status_of(diagnosis, self._ended),
            verdict=diagnosis.verdict if diagnosis else None,
            ended=self._ended,
            why=self._why(report),
            steps=len(report.trial.train_steps) if report else 0,
            findings=tuple(origin.finding for origin in diagnosis.origins) if diagnosis else (),
            rules=self._codes,
            run=self._run,
            is_awaited=report is None and self._error is None,
        )

    def _why(self, report: Report | None) -> str:
        if self._error is not None and self._ended is Ended.BROKEN:
            return self._error.what
        if report is None:
            return "there is no trial at this address" + ("" if self.is_over else " yet")
        return report.diagnosis.why


def _removed(uri: str, error: StoreError) -> StoreError:
    return StoreError(
        "the trial was removed while it was followed",
        where=shown(uri),
        got=error.got or error.what,
        expected="the parts that were there before",
        next_step="follow the address to which it was moved; what starts here anew is another trial: follow again",
    )


def _unreachable(uri: str, error: OSError) -> StoreError:
    return StoreError(
        "the trial cannot be reached",
        where=shown(uri),
        got=" ".join(f"{type(error).__name__}: {error}".split())[:300],
        next_step="check the path, the network and the permissions",
    )
