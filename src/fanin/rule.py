"""Rule: a pure function from a trial to findings; Example: a trial that says what the rule means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import ClassVar

from fanin.finding import Finding, Missing
from fanin.trial import Role, Trial

PAGE_HEADINGS = (
    "What it detects",
    "Why it matters",
    "How it is measured",
    "When it is wrong",
    "Fix",
    "References",
)
"""The headings of every rule's page, in order."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a rule wants captured.

    Attributes:
        role: Which tensors.
        every_step: At every step, rather than at step 0 only.
        recheck: At step `fanin.trial.RECHECK` too.
        reference: In the reference re-draw too, where one is tried.
        histogram: With quantiles.
        units: With statistics per unit.
    """

    role: Role
    every_step: bool = False
    recheck: bool = False
    reference: bool = False
    histogram: bool = False
    units: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A trial and what the rule must say of it.

    Attributes:
        name: What the trial is, in a few words.
        build: Makes the trial, when asked.
        layers: Layers that the rule must name first, one for each finding; empty for a healthy trial.
    """

    name: str
    build: Callable[[], Trial]
    layers: tuple[str, ...] = ()


class Rule(ABC):
    """A pure function from a trial to findings.

    A rule is one file. The class docstring is its page: a first sentence, then sections with the headings of
    PAGE_HEADINGS, each underlined with dashes. Nothing else need be registered.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    across_workers: ClassVar[bool] = False
    """Whether it compares ranks, and so is given the trial of all of them."""

    def require_applicable(self, trial: Trial) -> None:  # noqa: B027  # most rules apply to every trial
        """Refuse a trial to which this rule's parameters cannot apply.

        Raises:
            RuleParameterError: They cannot.
        """

    @abstractmethod
    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """Findings in forward order, and what is missing. `trial` holds one worker's view, unless `across_workers`.

        A rule that has what it needs and finds nothing yields nothing: healthy, as far as it can see.
        """

    @classmethod
    @abstractmethod
    def examples(cls) -> Iterator[Example]:
        """Healthy and poor trials, written before the check."""

    @classmethod
    def page(cls) -> str:
        """The rule's page, as written."""
        return cleandoc(cls.__doc__ or "")

    @classmethod
    def headline(cls) -> str:
        """The first line of the page."""
        return cls.page().splitlines()[0]
