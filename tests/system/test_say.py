"""Warnings are said, and kept for the report of a run."""

from __future__ import annotations

import gc

import pytest

from unigame.system import say


def test_warnings_are_heard_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    heard = say.Heard()
    for text in ("b", "a", "b"):
        say.warn(text)
    later = say.Heard()
    say.warn("c")
    assert heard.lines == ("b", "a", "c") and later.lines == ("c",)
    assert caplog.messages == [f"unigame: warning: {text}" for text in "babc"]


def test_a_run_that_warns_without_end_keeps_the_first() -> None:
    heard = say.Heard()
    for number in range(2 * say.MOST_HEARD):
        say.warn(str(number))
    assert heard.lines == tuple(map(str, range(say.MOST_HEARD)))
    del heard
    gc.collect()
    assert not any("0" in one.lines for one in say._LISTENERS)  # nobody listens for ever
