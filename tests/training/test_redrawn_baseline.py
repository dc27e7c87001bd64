"""What the redrawing does stands beside what C does, and looking at it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Losses, Records, game_of, logs, lora_weights, make_trainer
from unigame.evaluation.attacks.fresh import attacked_images
from unigame.methods.answers import reads_right
from unigame.methods.selfplay import NoPerturber
from unigame.training.trainer import UniGameTrainer

BESIDE = {
    "redrawn_ce": "adversarial_ce",
    "redrawn_similarity": "similarity",
    "redrawn_codes_changed": "codes_changed",
}


def played(model: Path, folder: Path, **settings: Any) -> UniGameTrainer:
    trainer = make_trainer(model, folder, **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("perturbation", ["learned", "random"])
def test_the_baseline_changes_no_bit_of_the_game(
    tiny_path: Path, tmp_path: Path, perturbation: str
) -> None:
    runs, states = [], []
    for every in (0, 1):
        settings = {"num_candidates": 2, "dropout": 0.1, "perturbation": perturbation}
        settings |= {"challenge_micro_batch": 3, "perturber_steps": 2, "redrawn_every": every}
        runs.append(played(tiny_path, tmp_path / str(every), max_steps=3, **settings))
        states.append(torch.get_rng_state())
    without, beside = runs
    assert torch.equal(*states)
    assert Losses(without.state.log_history).values == Losses(beside.state.log_history).values
    weights = lora_weights(beside)
    assert all(torch.equal(weight, weights[n]) for n, weight in lora_weights(without).items())
    assert torch.equal(
        game_of(without).challenger.generator.get_state(),
        game_of(beside).challenger.generator.get_state(),
    )
    for one, other in zip(
        game_of(without).buffer.samples, game_of(beside).buffer.samples, strict=True
    ):
        assert torch.equal(one.compact, other.compact) and one.hardness == other.hardness
    for one, other in zip(
        game_of(without).perturber.parameters(), game_of(beside).perturber.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    assert not any("redrawn_ce" in entry for entry in logs(without))
    assert all(BESIDE.keys() <= entry.keys() for entry in logs(beside))


def test_the_baseline_is_taken_on_every_nth_challenge(tiny_path: Path, tmp_path: Path) -> None:
    settings = {"challenge_every": 2, "redrawn_every": 2, "max_steps": 6}
    trainer = played(tiny_path, tmp_path, **settings)
    found = ["redrawn_ce" in entry for entry in logs(trainer)]
    assert found == [True, False, False, False, True, False]


def test_without_c_the_attack_is_its_own_baseline(tiny_path: Path, tmp_path: Path) -> None:
    trainer = played(tiny_path, tmp_path, perturbation="none", redrawn_every=1)
    for entry in logs(trainer):
        assert all(entry[name] == entry[figure] for name, figure in BESIDE.items())
        assert entry["attack_codes_changed"] == 0
        assert entry.get("redrawn_success_rate") == entry.get("attack_success_rate")


@pytest.mark.parametrize("settings", [{"num_candidates": 3}, {"sample_candidates": True}])
def test_an_attack_of_nothing_differs_in_nothing_from_the_redrawing(
    tiny_path: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The same Gumbel noise meets both, part by part, or their codes would differ by it."""
    tiny = {"eps_max": 1e-12, "eps_init": 1e-13, "redrawn_every": 1, "gradient_candidates": 1}
    trainer = played(tiny_path, tmp_path, max_steps=2, **tiny, **settings)
    for entry in logs(trainer):
        assert entry["attack_codes_changed"] == 0 < entry["redrawn_codes_changed"]
        assert entry["redrawn_ce"] == pytest.approx(entry["adversarial_ce"], abs=1e-4)


def test_a_real_attack_differs_from_the_redrawing(tiny_path: Path, tmp_path: Path) -> None:
    strong = {"eps_max": 20.0, "eps_init": 10.0}
    trainer = played(tiny_path, tmp_path, max_steps=2, redrawn_every=1, **strong)
    entry = logs(trainer)[-1]
    assert entry["attack_codes_changed"] > 0
    assert entry["redrawn_ce"] != pytest.approx(entry["adversarial_ce"], abs=1e-4)


def test_right_answers_lost_by_the_redrawing_alone_are_counted(
    tiny_path: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(8), per_device_train_batch_size=8)
    game, backbone = game_of(trainer), trainer.backbone
    batch = game.challenged(trainer._read(next(iter(trainer.get_train_dataloader()))))
    game.play(batch, step=0)
    images = attacked_images(backbone, NoPerturber(), batch, game.settings)
    with torch.no_grad(), backbone.without_dropout():
        expected = ~reads_right(
            backbone.answer_token_losses(images, batch.questions, batch.answers)
        )
    assert torch.equal(game.challenger.wrong_BK["redrawn_success_rate"][:, 0], expected)
    assert game.challenger.wrong_BK.keys() == {"attack_success_rate", "redrawn_success_rate"}
    game.forget_candidates()
    assert not game.challenger.wrong_BK  # or they would be counted against the next batch's answers


def test_in_token_space_nothing_is_redrawn(tiny_path: Path, tmp_path: Path) -> None:
    trainer = played(tiny_path, tmp_path, perturb_space="tokens", redrawn_every=1)
    assert not any(name.startswith("redrawn") for entry in logs(trainer) for name in entry)
