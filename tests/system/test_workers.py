"""Jobs side by side: what they tell, what becomes of a fault, and of their children."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unigame.errors import UserError
from unigame.system.progress import PlainLines
from unigame.system.workers import Tell, run_all


def write(folder: Path, tell: Tell) -> None:
    """A job: says who did it, and with how many threads it may."""
    tell("writing", 1, 1)
    (folder / f"{os.getpid()}").write_text(os.environ["OMP_NUM_THREADS"])
    time.sleep(0.3)  # so that the other worker gets the second one


def fail(job: Any, tell: Tell) -> None:
    """A job that refuses its input, or takes a minute, in silence or telling all the time."""
    if job == "bad":
        raise UserError("bad: give a good one")
    for done in range(600):
        if job == "talks":
            tell("talking", done, 600)
        time.sleep(0.1)


def say_much(job: Any, tell: Tell) -> None:
    """A job that is done long before a slow listener has heard all of it."""
    for done in range(1, 101):
        tell("talking", done, 100)


class Slow(PlainLines):
    """Takes its time to show something."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.02)
        super().update(*args, **kwargs)


def run(
    do: Callable[[Any, Tell], None],
    jobs: list[tuple[str, Any]],
    workers: int,
    display: type[PlainLines] = PlainLines,
) -> str:
    stream, done = io.StringIO(), []
    progress = display(Console(file=stream, width=100))
    run_all(jobs, do, workers, progress, lambda: done.append(1))
    assert len(done) == len(jobs)
    return stream.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_are_done_and_tell_how_far_they_are(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what the user has set stays
    said = run(write, [("first", tmp_path), ("second", tmp_path)], workers)
    assert "first: writing: 1 of 1" in said and "second: writing: 1 of 1" in said
    files = {int(file.name): file.read_text() for file in tmp_path.iterdir()}
    assert set(files.values()) == {"3"}
    assert (os.getpid() in files) == (workers == 1)


@pytest.mark.parametrize("other", ["silent", "talks"])
def test_the_fault_of_one_ends_the_others_and_is_raised(other: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="bad: give a good one"):
        run(fail, [("slow", other), ("bad", "bad")], 2)
    assert time.monotonic() - start < 30, "the other job was waited for"


def test_all_that_was_said_is_shown_in_the_end() -> None:
    said = run(say_much, [("first", None), ("second", None)], 2, Slow)
    assert "first: talking: 100 of 100" in said and "second: talking: 100 of 100" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.system import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    t.run(t.wait, [('a', Path(sys.argv[1])), ('b', Path(sys.argv[1]))], 2)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    (pids := tmp_path / "pids").mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    until(lambda: len(list(pids.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(runs(int(file.name)) for file in pids.iterdir()))


def wait(folder: Path, tell: Tell) -> None:
    """A job without an end."""
    (folder / f"{os.getpid()}").touch()
    time.sleep(600)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one that has ended and whose parent did not look is a zombie
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
