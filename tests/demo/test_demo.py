"""The demo end to end on a tiny random model: what it writes, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny_janus
from unigame.demo import run as demo
from unigame.errors import UserError
from unigame.evaluation import world
from unigame.reports.arms import ROWS
from unigame.reports.compare import compare
from unigame.reports.records import read_record
from unigame.synthetic.knowledge import knowledge_words
from unigame.synthetic.questions import vocabulary

TINY = demo.Sizes(answers=12, drawings=8, ood=12, attack=8, attack_steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_janus(folder, image_size=48, vocab_words=[*vocabulary(), *knowledge_words()])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of four samples an arm, a handful of questions."""
    whole = demo.load_recipe
    short = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "hard_batch_size": 2,
        "buffer_min_size": 2,
        "data.0.size": 60,
        "warmup_steps": 0,
    }
    words = [w for name, value in short.items() for w in (f"--{name}", str(value))]
    monkeypatch.setattr(demo, "load_recipe", lambda name, extra: whole(name, [*words, *extra]))
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(demo, "QUICK_SHARE", 1)
    # A random model draws nothing that the reader knows: let every attacked picture count.
    monkeypatch.setattr(world, "read", lambda image: SAME)
    monkeypatch.setattr(world, "truth", lambda scene: SAME)


SAME: set[Any] = {(0, "red", "disc")}


def test_every_arm_is_trained_measured_and_written(
    model: Path, small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    returned = demo.run_demo(output, quick=True, seed=3, model=str(model))
    written = json.loads((output / "results.json").read_text())
    assert written == json.loads(json.dumps(returned))
    assert list(written["arms"]) == ["base", "sft", "sft_equal_samples", "round_trip", "unigame"]
    assert written["seed"] == 3
    for arm, entry in written["arms"].items():
        assert list(entry["metrics"]) == [row.name for row in ROWS]
        assert entry["steps"] == (0 if arm == "base" else 2)
        for figure in entry["metrics"].values():
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] > 0
    changed = written["config"]["arms"]
    assert changed["sft_equal_samples"]["per_device_train_batch_size"] == 6
    assert changed["round_trip"] == {"perturbation": "none", "max_steps": 2}
    for name in ("config.json", "gallery.png", "curves.png", "table.md", "table.csv"):
        assert (output / name).stat().st_size > 0
    for arm, gaps in written["differences"].items():
        assert arm == "sft" or list(gaps) == [row.name for row in ROWS]
    assert "sft" not in written["differences"]
    assert (output / "adapter" / "adapter_model.safetensors").exists()
    assert not (output / "INCOMPLETE").exists()
    assert "UniGame" in capsys.readouterr().out
    check_records(output, written)
    table = (output / "table.md").read_text()
    assert (
        "| VQAv2, % |" in table and "| WISE |" in table and "| under a fresh attack, % |" in table
    )


def check_records(output: Path, written: dict[str, Any]) -> None:
    """Every arm's record is one that `unigame compare` takes, with the same figures."""
    records = [read_record(output / "arms" / arm / "evaluation") for arm in ("base", "sft")]
    assert records[0].weights != records[1].weights
    found = compare(records, ["base", "sft"], baseline=1)
    assert set(found.details) == {row.benchmark for row in ROWS if row.benchmark != "summary"}
    (grid,) = [grid for grid in found.tables if "VQAv2" in grid.columns]
    figure = grid.cells[0][grid.columns.index("VQAv2")].figure
    assert figure is not None
    assert figure.value == written["arms"]["base"]["metrics"]["vqav2"]["value"]


def test_an_interrupted_demo_keeps_finished_arms_and_goes_on(
    model: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run_arm, trained = tmp_path / "demo", demo._run_arm, []
    monkeypatch.setattr(demo, "ARMS", ("base", "sft"))

    def stop_at_second(arm: str, *rest: Any) -> Any:
        if trained:
            (output / "arms" / arm / "evaluation").mkdir(parents=True)
            (output / "arms" / arm / "evaluation" / "results.json").write_text("half done")
            raise KeyboardInterrupt
        trained.append(arm)
        return run_arm(arm, *rest)

    monkeypatch.setattr(demo, "_run_arm", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(output, quick=True, model=str(model))
    assert list(json.loads((output / "results.json").read_text())["arms"]) == ["base"]
    again: list[str] = []
    monkeypatch.setattr(
        demo, "_run_arm", lambda arm, *rest: (again.append(arm), run_arm(arm, *rest))[1]
    )
    demo.run_demo(output, quick=True, model=str(model))
    assert again == ["sft"]
    # A finished demo starts afresh, and so would other settings.
    again.clear()
    monkeypatch.setattr(demo, "ARMS", ("base",))
    demo.run_demo(output, quick=True, model=str(model))
    assert again == ["base"]


def test_a_demo_into_a_pipe_says_where_it_is_as_it_goes(
    model: Path,
    small: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_arm, said = demo._run_arm, {}
    monkeypatch.setattr(demo, "ARMS", ("base", "sft"))

    def listening(arm: str, *rest: Any) -> Any:
        said[arm] = capsys.readouterr().out
        return run_arm(arm, *rest)

    monkeypatch.setattr(demo, "_run_arm", listening)
    demo.run_demo(tmp_path / "demo", quick=True, model=str(model))
    assert "base: measuring" in said["sft"], "nothing was said of the first arm before the second"
    last = capsys.readouterr().out
    assert "sft: training: 1 of 2" in last and "sft: training: 2 of 2" in last


def test_a_finished_demo_stays_until_all_arms_of_a_rerun_are_there(
    model: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run_arm = tmp_path / "demo", demo._run_arm
    monkeypatch.setattr(demo, "ARMS", ("base",))
    demo.run_demo(output, quick=True, model=str(model))
    scores = output / "arms" / "base" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"first": True}))

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run_arm", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(output, quick=True, model=str(model))
    assert "first" in json.loads(scores.read_text())
    assert list(json.loads((output / "results.json").read_text())["arms"]) == ["base"]
    with pytest.raises(UserError, match="seed=0, and this one has 1.*--overwrite"):
        demo.run_demo(output, quick=True, seed=1, model=str(model))
    monkeypatch.setattr(demo, "_run_arm", run_arm)
    demo.run_demo(output, quick=True, seed=1, model=str(model), overwrite=True)
    assert "first" not in json.loads(scores.read_text())
    assert json.loads((output / "config.json").read_text())["seed"] == 1
    left = {file.name for file in output.iterdir()}
    assert "rerun" not in left and "INCOMPLETE" not in left and ".replaced" not in left


def test_a_wrong_model_leaves_the_output_folder_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        demo.run_demo(tmp_path / "demo", quick=True, model=str(tmp_path / "nowhere"))
    assert not (tmp_path / "demo").exists()
