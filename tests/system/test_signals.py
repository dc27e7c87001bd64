"""A signal that comes while modules are being imported waits until they are."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from unigame.system import signals

SIGNALLED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range({rounds}):  # what a library does at its import
        time.sleep(0.01)
except BaseException as error:
    raise ImportError("initialization failed") from error
done = True
"""


def module(folder: Path, name: str, rounds: int = 20) -> str:
    """The name of a module that gets a signal at its import, and hides what that raises."""
    made = f"signalled_{name.lower()}_{rounds}"
    text = textwrap.dedent(SIGNALLED).format(name=name, rounds=rounds)
    (folder / f"{made}.py").write_text(text)
    return made


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_waits_for_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = module(tmp_path, name)
    with pytest.raises(signals.Stopped) as caught, signals.raised():
        __import__(made)
        assert sys.modules[made].done
        time.sleep(5)  # the signal comes again
    assert caught.value.signum == getattr(signal, name)


def test_a_module_that_never_ends_its_import_does_not_keep_a_signal_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(signals, "LONGEST_IMPORT", 0.1)
    with pytest.raises(ImportError, match="initialization") as caught, signals.raised():
        __import__(module(tmp_path, "SIGTERM", rounds=6000))
    assert isinstance(caught.value.__cause__, signals.Stopped)


def test_outside_of_imports_a_signal_acts_at_once() -> None:
    with pytest.raises(signals.Stopped), signals.raised():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("this must not be reached")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_of_several_signals_says_why_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a preempted job SIGTERM and SIGHUP come together, and only one of them is put again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (tmp_path / f"{module(tmp_path, 'SIGTERM')}.py").read_text()
    both = text.replace("    for _", "    os.kill(os.getpid(), signal.SIGHUP)\n    for _")
    (tmp_path / "signalled_twice.py").write_text(both)
    with pytest.raises(signals.Stopped) as caught, signals.raised():
        __import__("signalled_twice")
        time.sleep(5)
    assert caught.value.signum == signal.SIGTERM
