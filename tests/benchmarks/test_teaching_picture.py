"""The README's picture of what the halves teach each other: what it takes, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import unigame
from unigame.errors import UserError

SCRIPTS = Path(unigame.__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("teaching_picture")


def kept(folder: Path, name: str, metrics: dict[str, Any], split: str = "test") -> str:
    """A result of two seeds, as ``evidence.py --json`` keeps it."""
    result = {"seeds": [1, 2], "metrics": metrics, "command": f"evidence.py --split {split}"}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(result))
    return str(file)


VERIFY = {"t2i_exact": {"base": [70, 72], "sft": [71, 70], "verify": [80, 79]}}
ALL = {
    "new_task": {"base": [0, 0], "sft": [50, 48], "imagine": [74, None]},
    "old_tasks": {"base": [93, 92], "sft": [46, 44], "imagine": [91, None]},
    "t2i_exact": {"base": [78, 79], "sft": [39, 41], "imagine": [68, None]},
}


def test_each_panel_has_its_arms_in_order(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    files = [kept(tmp_path, "verify", VERIFY), kept(tmp_path, "all", ALL)]
    picture = tmp_path / "teaching.png"
    monkeypatch.setattr("sys.argv", ["x", *files, "--figure", str(picture)])
    script.main()
    assert picture.stat().st_size > 1000
    drawing, new, *_ = figures[0].axes
    texts = [axis.get_yticklabels() for axis in (drawing, new)]
    assert [[text.get_text() for text in labels] for labels in texts] == [
        [script.DRAWING[arm] for arm in ("base", "sft", "verify")],
        [script.ANSWERING[arm] for arm in ("base", "sft", "imagine")],
    ]
    assert drawing.get_xlabel() == "%, 2 seeds"


def test_results_that_cannot_stand_beside_each_other_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, other = kept(tmp_path, "v", VERIFY), kept(tmp_path, "o", ALL, "validation")
    picture = str(tmp_path / "no.png")
    monkeypatch.setattr("sys.argv", ["x", verify, other, "--figure", picture])
    with pytest.raises(UserError, match="splits test and validation"):
        script.main()
    monkeypatch.setattr("sys.argv", ["x", verify, verify, "--figure", picture])
    with pytest.raises(UserError, match="new_task: not measured"):
        script.main()
