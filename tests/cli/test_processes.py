"""``--processes``: further processes of the same command, and none of them left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unigame import cli
from unigame.cli import processes
from unigame.cli.picture_files import PictureFiles, picture_paths


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


# ---- pictures --------------------------------------------------------------------------------
class Painter:
    """Draws pictures that are the seed's alone."""

    device = torch.device("cpu")
    text_rules = None
    facts = SimpleNamespace(guidance_scale=5.0)

    def generate(self, prompts, *, seeds, **settings):
        self.drawn = [*getattr(self, "drawn", []), *seeds]
        levels = torch.tensor([seed % 200 / 255 for seed in seeds])
        return levels[:, None, None, None].expand(-1, 3, 4, 4)


def draw(monkeypatch, output: Path, *words: str, rank: int = 0, count: int = 1) -> Painter:
    painter = Painter()
    monkeypatch.setattr("unigame.backbones.load_backbone", lambda *args, **settings: painter)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    command = ["generate", "a red disc", "--num-images", "10", "--output", str(output / "a.png")]
    assert cli.main([*command, *words]) == 0
    return painter


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_draw_the_pictures_of_one_each_of_them_once(monkeypatch, tmp_path) -> None:
    alone = draw(monkeypatch, tmp_path / "alone")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-9.png").write_bytes(b"of another command")
    second = draw(monkeypatch, tmp_path / "out", rank=1, count=2)
    monkeypatch.setattr("unigame.cli.picture_files.LEAST_PATIENCE", 0.1)  # no one else comes
    first = draw(monkeypatch, tmp_path / "out", rank=0, count=2)
    assert pictures(tmp_path / "out") == pictures(tmp_path / "alone")
    assert second.drawn == [*alone.drawn[4:8]]
    # What was there before it began is not known to be of this command: it draws that anew.
    assert first.drawn[:6] == [*alone.drawn[:4], *alone.drawn[8:]]


def test_the_pictures_of_a_killed_process_are_drawn_by_the_first(
    monkeypatch, tmp_path, capsys
) -> None:
    alone = draw(monkeypatch, tmp_path / "alone")
    (tmp_path / "out").mkdir()
    popen, command = (
        processes.subprocess.Popen,
        [sys.executable, "-c", "import time; time.sleep(60)"],
    )

    def start(words, **settings):
        """A process that draws one picture, begins another, and is killed."""
        files = PictureFiles(picture_paths(tmp_path / "out" / "a.png", 10), 2)
        files.write(4, torch.full((3, 4, 4), alone.drawn[4] % 200 / 255))
        (tmp_path / "out" / ".a-6.png.77.partial").write_bytes(b"begun")
        process = popen(command)
        process.kill()
        return process

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    first = draw(monkeypatch, tmp_path / "out", "--processes", "2")
    assert pictures(tmp_path / "out") == pictures(tmp_path / "alone")
    assert sorted(first.drawn) == sorted(set(alone.drawn) - {alone.drawn[4]})
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "process 1 was killed by signal 9" in line] == said[-1:]


def test_processes_that_would_have_no_picture_are_said_and_not_started(
    monkeypatch, tmp_path, caplog
) -> None:
    started = []
    popen = processes.subprocess.Popen

    def start(words, **settings):
        started.append(settings["env"]["RANK"])
        return popen([sys.executable, "-c", ""])

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr("unigame.cli.picture_files.LEAST_PATIENCE", 0.1)
    (tmp_path / "out").mkdir()
    draw(monkeypatch, tmp_path / "out", "--num-images", "2", "--processes", "4")
    assert started == ["1"] and len(pictures(tmp_path / "out")) == 2
    assert "--processes 4 for 2 pictures: 2 not started" in caplog.text
