"""A demo's folder is not overwritten without being asked, and never before the new one is there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from unigame.demo.folder import begin, choose_folder, finish, finished_arms
from unigame.errors import UserError
from unigame.system.progress import PlainLines, progress_on

CONFIG = {"seed": 0, "sizes": {"ood": 12}, "arms": {"sft": {"steps": 2}}, "pair": [1, 2]}


def demo(output: Path, config: dict, word: str, overwrite: bool = False) -> None:
    """A whole demo of one arm that says ``word``."""
    folder = choose_folder(output, config, overwrite)
    begin(folder, output, config)
    arm = folder / "arms" / word
    arm.mkdir(parents=True)
    (arm / "DONE").touch()
    (folder / "compare.md").write_text(word)
    finish(folder, output)


def test_a_rerun_takes_the_place_of_a_finished_demo_at_its_end(tmp_path: Path) -> None:
    demo(tmp_path, CONFIG, "old")
    folder = choose_folder(tmp_path, CONFIG)
    assert not begin(folder, tmp_path, CONFIG) and folder != tmp_path
    assert (tmp_path / "compare.md").read_text() == "old"
    assert finished_arms(tmp_path) == (folder, [])
    assert choose_folder(tmp_path, CONFIG) == folder
    assert begin(folder, tmp_path, CONFIG)  # goes on
    demo(tmp_path, CONFIG, "new")
    assert (tmp_path / "compare.md").read_text() == "new"
    assert finished_arms(tmp_path) == (tmp_path, ["new"])
    assert not folder.exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"sizes": {"ood": 99}}, "sizes.ood was 12 and is now 99"),
        ({"arms": {"sft": {}}}, "arms.sft.steps was 2 and is now null"),
        ({"more": 5}, "more was null and is now 5"),
    ],
)
def test_another_demo_is_replaced_only_where_asked(
    tmp_path: Path, change: dict, named: str, finished: bool
) -> None:
    if finished:
        demo(tmp_path, CONFIG, "old")
    else:
        begin(tmp_path, tmp_path, CONFIG)
        (tmp_path / "compare.md").write_text("old")
    with pytest.raises(UserError, match=named) as caught:
        choose_folder(tmp_path, CONFIG | change)
    assert str(tmp_path) in str(caught.value) and "--overwrite" in str(caught.value)
    assert (tmp_path / "compare.md").read_text() == "old"
    demo(tmp_path, CONFIG | change, "new", overwrite=True)
    assert (tmp_path / "compare.md").read_text() == "new"
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG | change
    assert not (tmp_path / "INCOMPLETE").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_demo_of_an_earlier_version_is_replaced_only_where_asked(
    tmp_path: Path, finished: bool
) -> None:
    begin(tmp_path, tmp_path, CONFIG)
    (tmp_path / "results.json").write_text("{}")  # one table of all arms, in a form of its own
    if finished:
        (tmp_path / "INCOMPLETE").unlink()
    with pytest.raises(UserError, match=r"results\.json.* earlier version.*--overwrite"):
        choose_folder(tmp_path, CONFIG)
    demo(tmp_path, CONFIG, "new", overwrite=True)
    assert (tmp_path / "compare.md").read_text() == "new"
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("name", ["arms", "adapter", "results.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        choose_folder(tmp_path, CONFIG)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_settings_of_something_else_are_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        choose_folder(tmp_path, CONFIG)


def test_an_empty_or_unrelated_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert choose_folder(tmp_path, CONFIG) == tmp_path
    assert choose_folder(tmp_path / "new", CONFIG) == tmp_path / "new"
    demo(tmp_path, CONFIG, "new")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_named_like_a_rerun_keeps_what_is_in_it(tmp_path: Path) -> None:
    output = tmp_path / "rerun"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    demo(output, CONFIG, "old")
    demo(output, CONFIG, "new")  # in rerun/rerun/, until it is done
    assert (output / "thesis.txt").read_text() == "mine"
    assert finished_arms(output) == (output, ["new"]) and not (output / "rerun").exists()


def test_lines_come_at_once_and_are_few() -> None:
    file = io.StringIO()
    with progress_on(Console(file=file)) as progress:
        assert isinstance(progress, PlainLines)
        long, short = progress.add_task("long", total=1000), progress.add_task("short", total=3)
        progress.update(long, completed=99)
        assert not file.getvalue()
        progress.update(long, completed=100)
        assert "long: 100 of 1000" in file.getvalue()
        for done in range(101, 1001):
            progress.update(long, completed=done)
        assert file.getvalue().count("long") == 10 and "1000 of 1000" in file.getvalue()
        progress.advance(short)
        progress.advance(short)
        progress.advance(short)
        assert file.getvalue().count("short") == 3 and "short: 3 of 3" in file.getvalue()


def test_a_terminal_has_bars() -> None:
    with progress_on(Console(file=io.StringIO(), force_terminal=True)) as progress:
        assert isinstance(progress, Progress)
