"""Threads sleep while they wait, unless the user has said otherwise, before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unigame.system import threads
from unigame.system.threads import WAITING, quota, share_cores, usable_cores


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported it yet, in a container without a quota."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "quota", lambda: None)


def test_threads_sleep_while_they_wait(no_torch: None) -> None:
    chosen: dict[str, str] = {}
    share_cores(chosen)
    assert chosen == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_has_set_stays(no_torch: None, name: str) -> None:
    chosen = {name: "mine", "OMP_NUM_THREADS": "7"}
    share_cores(chosen)
    assert chosen == {name: "mine", "OMP_NUM_THREADS": "7"}


def test_once_torch_is_there_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    chosen: dict[str, str] = {}
    share_cores(chosen)
    assert not chosen


def test_no_more_threads_than_the_container_has_cores(
    no_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 64)
    monkeypatch.setattr(threads, "quota", lambda: 3)
    chosen: dict[str, str] = {}
    share_cores(chosen)
    assert chosen["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(threads, "quota", lambda: 64)
    chosen = {}
    share_cores(chosen)
    assert "OMP_NUM_THREADS" not in chosen


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", None)],
)
def test_a_quota_is_read_in_cores(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert quota(tmp_path / "cpu.max") == cores


def test_odd_or_missing_quotas_are_none(tmp_path: Path) -> None:
    assert quota(tmp_path / "nowhere") is None
    for text in ("", "odd", "1 0", "1 2 3"):
        (tmp_path / "cpu.max").write_text(text)
        assert quota(tmp_path / "cpu.max") is None
    assert usable_cores() >= 1


def test_the_command_line_sets_it_where_openmp_reads_it() -> None:
    """OpenMP prints its settings when torch loads it: after the command line has begun."""
    program = (
        "import sys; from unigame import cli; cli.main(['compare', 'nowhere.json']); "
        "assert 'torch' not in sys.modules, 'too late'; import torch"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment | {"OMP_DISPLAY_ENV": "true"},
    )
    assert done.returncode == 0, done.stderr
    (policy,) = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert "PASSIVE" in policy.upper()
