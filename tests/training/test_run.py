"""``unigame train``: from a YAML file to an adapter, and no weight loaded before all is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import unigame.backbones
from tests.training.helpers import Records
from unigame.errors import UserError
from unigame.training.run import main


@pytest.fixture
def recipe(tiny_path: Path, tmp_path: Path) -> Path:
    rows = []
    for item in Records(6, captions=True).items:
        item["image"].save(tmp_path / f"{item['id']}.png")
        rows.append({**item, "image": f"{item['id']}.png"})
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    source = {"type": "vqa", "path": str(table)}
    settings: dict[str, Any] = {
        "max_steps": 2,
        "use_cpu": True,
        "save_steps": 1,
        "per_device_train_batch_size": 3,
        "generation_weight": 0.5,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    tree = {"model": str(tiny_path), "data": [source], "eval_data": [source], "lora": {"r": 2}}
    path.write_text(yaml.safe_dump({**tree, "training": settings}))
    return path


def test_a_run_leaves_an_adapter_and_says_what_to_do_next(
    recipe: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent / "run"
    main(recipe, ["--learning_rate", "1e-3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Trained 2 steps" in said and "held-out loss" in said
    assert f"--model {tiny_path} --adapter {folder}" in said
    unigame.backbones.load_backbone(tiny_path, device="cpu", adapter=folder)
    assert json.loads((folder / "unigame_config.json").read_text())["learning_rate"] == 1e-3
    with pytest.raises(UserError, match="already has 2 of 2 steps"):
        main(recipe, ["--resume_from_checkpoint", "true"])
    more = ["--learning_rate", "1e-3", "--max_steps", "3"]
    main(recipe, [*more, "--resume_from_checkpoint", str(folder / "checkpoint-1")])
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "-1"], "beta=-1"),
        (["--no_such_key", "1"], "unknown setting"),
        (["--data.0.path", "gone.jsonl"], "gone.jsonl"),
        (["--data.0.type", "vqaa"], "vqaa"),
        (["--eval_data.0.colour", "red"], "unknown key 'colour'"),
    ],
)
def test_mistakes_are_found_before_any_weight_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(unigame.backbones, "load_backbone", load)
    with pytest.raises(UserError, match=message):
        main(recipe, words)
