"""``--processes``: further processes of the same command, and none of them left behind."""

from __future__ import annotations

import sys

import pytest

from unigame import cli
from unigame.cli import processes


def test_others_run_the_command_and_failures_are_named() -> None:
    with processes.others(["--version"], 2) as started:
        assert started[0].wait(60) == 0
        assert processes.lost(started) == []
    with processes.others(["nonsense"], 2) as started:
        assert started[0].wait(60) == 2
        assert "process 1" in processes.lost(started)[0] and "2" in processes.lost(started)[0]


def test_none_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = processes.subprocess.Popen
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    numbers = []

    def start(words, env, **settings):
        numbers.append((words[-1], env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]))
        return popen(sleeping, env=env, **settings)

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt), processes.others(["evaluate"], 3) as started:
        raise KeyboardInterrupt
    assert all(process.returncode is not None for process in started)
    assert numbers == [("evaluate", "1", "1", "3"), ("evaluate", "2", "2", "3")]


def test_another_number_than_the_launchers_is_refused(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--benchmarks", "pope", "--processes", "3"]) == 2
    assert "--processes 3" in capsys.readouterr().err
