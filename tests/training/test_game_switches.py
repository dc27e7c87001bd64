"""The switches of C's freedom in the trainer: exact resume, figures of heads, C's warm-up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, game_of, logs, lora_weights, make_trainer
from tests.training.test_resume import history, same_game
from unigame.methods.selfplay.content import ContentWeights

FREE: dict[str, Any] = {
    "perturber_scope": "heads",
    "perturber_heads": 2,
    "diversity_weight": 0.1,
    "restart_below": 1.0,  # with a floor of 1 no candidate is verified: heads start anew
    "restart_window": 3,
    "clip_floor": 0.9999,
    "strengths": [0.5, 1.0],
    "eps_gate": "fixed",
    "anchor": 2.0,
    "anchor_mode": "near",
    "ce_cap": 4.0,
    "content_weight": 0.3,
    "num_candidates": 2,
    "warm_up_steps": 1,
    "verified_target": 0.5,
    "perturber_loss": "log_odds",
}


@pytest.mark.parametrize(
    "settings",
    [FREE, {**FREE, "clip_floor": -1.0, "accept": "missed", "warm_up_steps": 4}],
    ids=["restarts", "within the warm-up"],
)
def test_resume_is_bit_exact(tiny_path: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    common: dict[str, Any] = {
        "data": Records(7),
        "dropout": 0.1,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        **settings,
    }
    straight = make_trainer(tiny_path, tmp_path / "run", **common)
    straight.train()
    torch.manual_seed(12345)
    resumed = make_trainer(tiny_path, tmp_path / "run", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert history(resumed, 3) == history(straight, 3) and len(history(straight, 3)) == 3
    for name, weight in lora_weights(straight).items():
        assert torch.equal(weight, lora_weights(resumed)[name]), name
    assert (
        game_of(straight).challenger.heads.state_dict()
        == game_of(resumed).challenger.heads.state_dict()
    )
    weights = [game_of(trainer).challenger.content.weights for trainer in (straight, resumed)]
    assert weights[0] == weights[1]
    assert (weights[0] == [settings["content_weight"]] * 2) == (settings["clip_floor"] < 0)
    if settings["clip_floor"] > 0:
        assert sum(game_of(straight).challenger.heads.restarts) > 1
        for name, weight in game_of(straight).perturber.state_dict().items():
            assert torch.equal(weight, game_of(resumed).perturber.state_dict()[name]), name
    else:
        same_game(straight, resumed)


def test_the_log_has_each_heads_share_and_what_was_verified(
    tiny_path: Path, tmp_path: Path
) -> None:
    settings = {**FREE, "clip_floor": -1.0, "restart_below": 0.5, "warm_up_steps": 0}
    trainer = make_trainer(tiny_path, tmp_path, **{**settings, "num_candidates": 4, "max_steps": 3})
    trainer.train()
    for entry in logs(trainer):
        assert entry["head_0_used"] + entry["head_1_used"] == pytest.approx(1.0)
        assert {entry[f"head_{m}_verified"] for m in (0, 1) if entry[f"head_{m}_used"]} == {1.0}
        assert entry["head_restarts"] == 0 and 0 <= entry["head_overlap"] <= 1
    plain = make_trainer(tiny_path, tmp_path / "plain")
    assert not any(name.startswith("head_") for name in game_of(plain).figures)


def test_the_content_weight_rises_where_too_few_are_verified_and_never_below_its_start(
    tiny_path: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"content_weight": 1.0, "verified_target": 0.5, "max_steps": 3}
    for scope, floor in (("token", 0.9999), ("heads", -1.0)):
        trainer = make_trainer(
            tiny_path,
            tmp_path / scope,
            **common,
            perturber_scope=scope,
            clip_floor=floor,
            eps_max=8.0,
            eps_init=4.0,
        )
        trainer.train()
        course = [1.0, *(entry["content_weight"] for entry in logs(trainer))]
        rises = [after > before for before, after in pairwise(course)]
        assert all(rises) if floor > 0 else course == [1.0] * 4, (scope, course)


def test_a_weight_falls_again_once_enough_are_verified() -> None:
    content = ContentWeights(2, start=2.0, target=0.5)
    content.see(torch.tensor([[4.0, 4.0], [0.0, 2.0]]))
    assert content.weights[0] > 2.0 and content.weights[1] == 2.0
    high = content.weights[0]
    content.see(torch.tensor([[4.0, 0.0], [3.0, 0.0]]))
    assert 2.0 < content.weights[0] < high and content.weights[1] == 2.0
    content.restart(0)
    assert content.weights == [2.0, 2.0], "a new head does not pay the old one's price"


def test_c_stands_still_where_no_row_counts_and_says_nothing_of_it(
    tiny_path: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(4, captions=True), max_steps=1)
    game = game_of(trainer)
    game.create_scheduler(9)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    rows = batch.answers

    def weights() -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in game.perturber.parameters()]

    start = weights()
    assert game.play(rows)[1] is not None
    played = weights()
    assert any(not torch.equal(a, b) for a, b in zip(start, played, strict=True))
    for _ in range(3):  # momentum and weight decay would go on
        assert game.play(replace(rows, counts=False))[1] is None
    assert all(torch.equal(a, b) for a, b in zip(played, weights(), strict=True))


def test_random_c_has_the_objective_of_all_parts_by_their_shares(
    tiny_path: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"perturbation": "random", "challenge_micro_batch": 1}
    trainer = make_trainer(tiny_path, tmp_path, Records(4, captions=True), **settings)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    result, norm = game_of(trainer).play(batch.answers)
    assert norm is None
    assert result.objective.item() == pytest.approx(float(result.metrics["objective"]), rel=1e-4)


def test_c_warms_up_against_a_model_that_stands_still(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=2, warm_up_steps=2, dropout=0.1)
    warned = []
    monkeypatch.setattr("unigame.methods.selfplay.health.warn", warned.append)
    before = lora_weights(trainer)
    c = {n: w.clone() for n, w in game_of(trainer).perturber.state_dict().items()}
    trainer.train()
    assert all(torch.equal(w, before[n]) for n, w in lora_weights(trainer).items())
    after = game_of(trainer).perturber.state_dict()
    assert any(not torch.equal(after[n], w) for n, w in c.items())
    assert any("warm_up_steps=2" in text for text in warned)
    assert len(game_of(trainer).buffer) > 0 and game_of(trainer).tally.replayed == 0
    more = make_trainer(tiny_path, tmp_path / "more", max_steps=3, warm_up_steps=2)
    before = lora_weights(more)
    more.train()
    assert any(not torch.equal(w, before[n]) for n, w in lora_weights(more).items())
