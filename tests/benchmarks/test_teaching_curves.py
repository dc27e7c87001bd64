"""Learning curves on a tiny random model: a log for each round, its own diversity, a figure."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import unigame
from tests.tiny import make_tiny_janus
from unigame.synthetic.questions import vocabulary

SCRIPTS = Path(unigame.__file__).parents[1] / "benchmarks"
SMALL = (
    *("training.per_device_train_batch_size=4", "questions=8", "texts=4"),
    *("measured.id=6", "measured.drawings=1", "measured.groups=0", "measured.score=0"),
)
OF_VERIFY = {"captions": 2, "drawings": 2, "rows": 2, "verifier": "none"}


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("teaching_curves")


@pytest.fixture(scope="module")
def rounds(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The curve over rounds of one seed."""
    folder = tmp_path_factory.mktemp("curves")
    model = make_tiny_janus(folder / "model", image_size=48, vocab_words=vocabulary())
    changes = [f"arms.verify.methods.verify.{name}={value}" for name, value in OF_VERIFY.items()]
    script.main(
        [
            *("--curves", "rounds", "--seeds", "0", "--steps", "3", "--workers", "1"),
            *("--model", str(model), "--output", str(folder / "runs"), "--set", *SMALL, *changes),
            *("--json", str(folder / "curves.json"), "--figure", str(folder / "curves.png")),
        ]
    )
    return folder


def test_every_round_is_a_point(script: ModuleType, rounds: Path) -> None:
    found = json.loads((rounds / "curves.json").read_text())["rounds"]["3"]
    assert found["step"] == [1, 2, 3]
    for name in script.OF_ROUNDS:
        assert len(found[name]) == 3
    assert found["kept"] == [1, 1, 1] and all(1 <= number <= 2 for number in found["distinct"])
    assert found["true"] == [0, 0, 0] and found["recall"] == [None] * 3, "nothing is right"
    assert all(0 < share <= 1 for share in found["round_codes_used"])
    assert (rounds / "curves.png").stat().st_size > 1000


def test_a_round_without_a_confirmed_drawing_has_no_precision(script: ModuleType) -> None:
    entries = [{"verify_kept": 0.0}, {"verify_kept": 0.5, "verify_precision": 0.8}]
    assert script._mean(entries, "verify_precision") == 0.8
    assert script._mean(entries[:1], "verify_precision") is None


def test_points_are_drawn_for_every_curve(script: ModuleType, tmp_path: Path) -> None:
    point = {name: {arm: [20.0, 30.0] for arm in ("sft", "imagine")} for name in script.MEASURED}
    found = {"scenes": {"10": point, "20": point}, "captions": {"75": point}}
    series = {name: [0.5, None] for name in script.OF_ROUNDS}
    found["rounds"] = {"300": {"step": [30, 60], **series}}
    script.draw(found, tmp_path / "all.png")
    assert (tmp_path / "all.png").exists()


def test_one_number_changes_from_point_to_point(script: ModuleType) -> None:
    options = script.parse_arguments(["--seeds", "1", "--scenes", "10", "60"])
    changed = [changes[0] for _, _, changes, _ in script._points(options, "scenes")]
    assert changed == ["task_scenes=10", "task_scenes=60"]
    ((_, _, changes, _),) = script._points(options, "rounds")
    assert "steps=300" in changes and "arms.verify.methods.verify.every=30" in changes
