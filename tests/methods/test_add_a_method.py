"""The method of docs/add-a-method.md, found by entry point and run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, logs, lora_weights, make_game, make_trainer
from unigame import registry
from unigame.errors import UserError
from unigame.methods.registry import build_methods
from unigame.training.recipe import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's file, as an installed package would bring it."""
    text = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)[0]
    (tmp_path / "my_noise.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("feature_noise", "my_noise:FeatureNoise", "unigame.methods")
    found = registry.entry_points

    def entries(group: str) -> Any:
        return [entry] if group == "unigame.methods" else found(group=group)

    monkeypatch.setattr(registry, "entry_points", entries)
    yield text


def test_it_is_short(module: str) -> None:
    assert len(module.splitlines()) <= 60


def test_it_is_found_by_name_and_has_its_settings(module: str, tmp_path: Path) -> None:
    words = ["--methods", "selfplay,feature_noise", "--scale", "0.2", "--beta", "0.25"]
    recipe = load_recipe("janus_nano", [*words, "--output_dir", str(tmp_path / "run")])
    assert list(recipe.methods) == ["selfplay", "feature_noise"]
    assert recipe.methods["feature_noise"] == {"scale": 0.2, "weight": 0.5}
    assert recipe.settings_of("selfplay").beta == 0.25
    with pytest.raises(UserError, match="scale"):
        load_recipe("janus_nano", ["--methods", "feature_noise", "--scale", "-1"])
    with pytest.raises(UserError, match="feature_noise"):
        load_recipe("janus_nano", ["--methods", "selfplay", "--scale", "0.2"])


def test_its_rows_count_and_its_figure_is_logged(
    module: str, tiny_path: Path, tmp_path: Path
) -> None:
    methods = build_methods({"feature_noise": {"scale": 3.0, "weight": 0.25}})
    trainer = make_trainer(tiny_path, tmp_path, methods=methods)
    trainer.train()
    for entry in logs(trainer):
        whole = entry["clean_ce"] + 0.25 * entry["noisy_ce"]
        assert entry["loss"] == pytest.approx(whole, abs=1e-5)
        assert entry["noisy_ce"] != pytest.approx(entry["clean_ce"], abs=1e-4)


@pytest.mark.parametrize("beside", [False, True])
def test_it_resumes_bit_exactly(module: str, tiny_path: Path, tmp_path: Path, beside: bool) -> None:
    def run(folder: Path, steps: int, resume: bool = False) -> Any:
        methods = build_methods({"feature_noise": {}})
        if beside:
            methods.insert(0, make_game(buffer_min_size=2))
        trainer = make_trainer(
            tiny_path,
            folder,
            Records(8),
            methods=methods,
            max_steps=steps,
            dropout=0.1,
            lr_scheduler_type="constant",
            **SAVING,
        )
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4, resume=True)
    assert (tmp_path / "parts" / "checkpoint-2" / "feature_noise_state.pt").is_file()
    for name, weight in lora_weights(whole).items():
        assert torch.equal(weight, lora_weights(resumed)[name]), name
    state = whole.method("feature_noise").state_dict()["generator"]
    assert torch.equal(state, resumed.method("feature_noise").state_dict()["generator"])
