"""What a recipe takes, tried: whole models, slices put together, and what cannot be tried."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import JanusConfig

from tests.tiny import make_tiny_janus, shared_tiny_janus
from tests.training.helpers import blocks
from unigame.doctor import trial
from unigame.doctor.peak import peak_bytes, tensor_bytes
from unigame.doctor.trial import try_recipe
from unigame.errors import UserError
from unigame.methods.selfplay.perturber import build_perturber
from unigame.methods.semantics import ClipSimilarity
from unigame.training.recipe import Recipe, build_recipe

CPU = torch.device("cpu")


def recipe(model: Path, folder: Path, **settings) -> Recipe:
    chosen = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "max_steps": 7,
        "use_cpu": True,
        **settings,
    }
    return build_recipe(
        {
            "model": str(model),
            "dtype": "float32",
            "data": [{"type": "synthetic", "split": "train", "size": 10}],
            "lora": {"r": 4, "lora_dropout": 0.0},
            **blocks(chosen),
        }
    )


def test_a_small_model_is_tried_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    found = try_recipe(recipe(shared_tiny_janus(), tmp_path))
    assert not found.sliced and found.own_data
    assert found.steps == 7
    assert found.total_seconds == pytest.approx(7 * found.seconds) and found.seconds > 0
    assert not (tmp_path / "run").exists()


def test_epochs_become_steps_and_accumulation_is_paid_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trial, "_steps", lambda *_: trial._Step(2.0, 100.0, 90.0))
    settings = {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 2}
    found = try_recipe(recipe(shared_tiny_janus(), tmp_path, **settings))
    assert found.steps == round(3 * 10 / (2 * 2))
    assert found.seconds == 4.0 and found.memory == 100.0


def test_slices_give_the_memory_of_the_whole(tmp_path: Path, monkeypatch) -> None:
    model = make_tiny_janus(tmp_path / "model", image_size=32, layers=7)
    plan = recipe(model, tmp_path)
    whole = try_recipe(plan)
    monkeypatch.setattr(trial, "WHOLE", 0)
    sliced = try_recipe(plan)
    assert sliced.sliced
    assert sliced.memory == pytest.approx(whole.memory, rel=0.25)
    short = try_recipe(plan, _with_layers(model, 2))
    assert short.memory < 0.9 * sliced.memory


def test_the_larger_of_two_peaks_is_that_of_the_whole(tmp_path, monkeypatch) -> None:
    model = make_tiny_janus(tmp_path / "model", layers=7)
    # The challenge starts higher; understanding grows faster with each of the 7 blocks.
    peaks = {(1, 1): (100.0, 50.0), (3, 1): (110.0, 90.0), (1, 3): (100.0, 50.0)}
    asked: list[tuple[int, int]] = []

    def slices(plan, config, *blocks_and_more):
        asked.append(blocks_and_more[:2])

    monkeypatch.setattr(trial, "WHOLE", 0)
    monkeypatch.setattr(trial, "_slice", slices)
    monkeypatch.setattr(trial, "_steps", lambda *_: trial._Step(1.0, *peaks[asked[-1]]))
    found = try_recipe(recipe(model, tmp_path))
    assert set(asked) == set(peaks)
    assert found.memory == 50.0 + 6 * 20.0 and found.seconds == 1.0


def test_steps_without_a_challenge_count(tmp_path: Path, monkeypatch) -> None:
    due = []

    def timed(trainer, batch) -> float:
        every = trainer.method("selfplay").settings.challenge_every
        due.append(trainer.state.global_step % every == 0)
        return 5.0 if due[-1] else 1.0

    monkeypatch.setattr(trial, "_timed", timed)
    assert try_recipe(recipe(shared_tiny_janus(), tmp_path)).seconds == 5.0
    assert try_recipe(recipe(shared_tiny_janus(), tmp_path, challenge_every=4)).seconds == 2.0
    plain = recipe(shared_tiny_janus(), tmp_path, methods=["sft"])
    monkeypatch.setattr(trial, "_timed", lambda *_: 3.0)
    assert try_recipe(plain).seconds == 3.0


def test_steps_in_which_c_plays_alone_are_not_those_that_are_tried(
    tmp_path: Path, monkeypatch
) -> None:
    alone = []

    def timed(trainer, batch) -> float:
        alone.append(trainer.method("selfplay").settings.warm_up_steps)
        return 1.0

    monkeypatch.setattr(trial, "_timed", timed)
    try_recipe(recipe(shared_tiny_janus(), tmp_path, warm_up_steps=5))
    assert set(alone) == {0}


def _with_layers(model: Path, layers: int) -> JanusConfig:
    config = JanusConfig.from_json_file(model / "config.json")
    config.text_config.num_hidden_layers = layers
    return config


def test_the_peak_has_what_judges_pictures_and_c_in_it(tmp_path: Path, monkeypatch) -> None:
    """Bytes that are alive all the time; what a step adds is left out here."""
    monkeypatch.setattr("unigame.doctor.peak.peak_bytes", lambda *_: 0)
    monkeypatch.setattr(trial, "WARM_UP", 0)
    monkeypatch.setattr(trial, "TIMED", 1)

    def alive(**chosen: object) -> float:
        return try_recipe(recipe(shared_tiny_janus(), tmp_path, **chosen)).memory

    judge = tensor_bytes(ClipSimilarity("janus-nano-clip", "image-text"))
    c = build_perturber("learned", 32, width=8)
    moments = 2 * tensor_bytes(c) + 4 * len(list(c.parameters()))  # and a count for each weight
    clip = {"similarity_model": "janus-nano-clip", "perturber_width": 8}
    plain = alive(similarity="none", perturbation="none")
    played = alive(similarity="clip", **clip)
    assert played - plain == judge + tensor_bytes(c) + moments
    label = {"similarity": "none", "label_weight": 1.0, "label_similarity": "clip"}
    assert alive(**label, **clip) == played


def test_networks_of_a_method_are_found_once_and_without_the_base() -> None:
    base, judge = torch.nn.Linear(3, 3), torch.nn.Linear(2, 2)
    player = SimpleNamespace(scorer=judge, optimizer=None)
    method = SimpleNamespace(challenger=player, check=player, run=SimpleNamespace(backbone=base))
    brought = trial.networks_of(method)  # type: ignore[arg-type]
    assert set(brought) == {base, judge}
    everything = torch.nn.ModuleList([base, *brought])
    assert tensor_bytes(everything) == tensor_bytes(base, judge)


def test_made_up_rows_stand_in_for_data_that_is_elsewhere(tmp_path: Path) -> None:
    plan = recipe(shared_tiny_janus(), tmp_path)
    plan.data = [{"type": "captions", "path": str(tmp_path / "absent")}]
    found = try_recipe(plan)
    assert not found.own_data and found.memory > 0


def test_what_is_too_large_for_a_cpu_is_said_at_once(tmp_path: Path) -> None:
    plan = recipe(shared_tiny_janus(), tmp_path)
    with pytest.raises(UserError, match=r"7\.4 B parameters are not tried on a CPU"):
        try_recipe(plan, parameters=7_400_000_000)


def test_peak_bytes_sees_what_lives_together() -> None:
    def work() -> None:
        one = torch.ones(250_000)
        del one
        two, three = torch.ones(250_000), torch.ones(500_000)
        del two, three

    assert peak_bytes(work, CPU) == pytest.approx(3e6, rel=0.01)


def test_tensor_bytes_counts_weights_buffers_and_moments() -> None:
    layer = torch.nn.Linear(10, 5)
    layer.register_buffer("seen", torch.zeros(4, dtype=torch.int64))
    optimizer = torch.optim.AdamW(layer.parameters())
    assert tensor_bytes(layer, optimizer) == 55 * 4 + 32
    layer(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    moments = 2 * 55 * 4 + 2 * 4  # and a step count for each of the two weights
    assert tensor_bytes(layer, optimizer) == 55 * 4 + 32 + moments
