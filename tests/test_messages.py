"""The text of errors: what, where, got, expected, next step, and nothing that was not given."""

from __future__ import annotations

import inspect

import pytest

from fanin import errors
from fanin.errors import FaninError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_an_error_says_what_where_got_expected_and_next_in_this_order() -> None:
    error = FaninError(
        "the model cannot run the batch",
        next_step="pass images of 64 features",
        got="shape [32, 8]",
        expected="shape [batch, 64]",
        where="layer fc1",
    )
    assert str(error) == (
        "the model cannot run the batch\n"
        "  where     layer fc1\n"
        "  got       shape [32, 8]\n"
        "  expected  shape [batch, 64]\n"
        "  next      pass images of 64 features"
    )


def test_an_error_without_details_is_one_line() -> None:
    assert str(FaninError("there is no trial")) == "there is no trial"


def test_details_that_were_not_given_leave_no_line() -> None:
    assert str(FaninError("no", got="this")) == "no\n  got       this"


def test_what_others_wrote_cannot_harm_a_terminal_and_lines_stay_lines() -> None:
    error = FaninError("a part \x1b[2J", where="é/\x07\u202e", got="one\n  two\r")
    assert str(error) == "a part \\x1b[2J\n  where     é/\\x07\\u202e\n  got       one\n  two\\r"


def test_details_stay_readable_one_by_one() -> None:
    error = FaninError("no", where="here", got="this", expected="that", next_step="go on")
    assert (error.what, error.where, error.got, error.expected, error.next_step) == (
        "no",
        "here",
        "this",
        "that",
        "go on",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_ours_is_caught_by_the_root_and_prints_alike(kind: type[FaninError]) -> None:
    with pytest.raises(FaninError, match=r"^it broke\n  next      mend it$"):
        raise kind("it broke", next_step="mend it")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_names_every_error(kind: type[FaninError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
