"""Every shortcut of a step gives what the plain version gives, and can be turned off."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from tests.tiny import tiny_backbone
from tests.training.helpers import game_of, logs, lora_weights, make_trainer
from unigame.methods.rows import Rows, join, split_groups
from unigame.methods.selfplay import SelfPlaySettings, challenge
from unigame.training.trainer import UniGameTrainer


def trained(model: Path, folder: Path, **settings) -> UniGameTrainer:
    trainer = make_trainer(model, folder, max_steps=4, buffer_min_size=2, **settings)
    trainer.train()
    return trainer


def assert_same_players(one: UniGameTrainer, other: UniGameTrainer) -> None:
    for name, weight in lora_weights(one).items():
        assert torch.allclose(weight, lora_weights(other)[name], atol=1e-5), name
    pairs = zip(
        game_of(one).perturber.parameters(), game_of(other).perturber.parameters(), strict=True
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    ours, theirs = game_of(one).buffer.samples, game_of(other).buffer.samples
    assert [s.source for s in ours] == [s.source for s in theirs]
    assert all(torch.equal(a.compact, b.compact) for a, b in zip(ours, theirs, strict=True))


def test_kept_tokens_change_nothing_but_the_work(tiny_path: Path, tmp_path: Path, monkeypatch):
    plain = trained(tiny_path, tmp_path / "a", keep_tokens_mb=0)
    assert all(sample.tokens is None for sample in game_of(plain).buffer.samples)
    kept = make_trainer(tiny_path, tmp_path / "b", max_steps=4, buffer_min_size=2)
    monkeypatch.setattr(kept.backbone, "render", lambda compact: pytest.fail("drawn again"))
    kept.train()
    assert all(sample.tokens is not None for sample in game_of(kept).buffer.samples)
    assert_same_players(plain, kept)


def test_kept_tokens_are_those_of_the_stored_picture(tiny_path: Path, tmp_path: Path):
    trainer = trained(tiny_path, tmp_path)
    backbone = trainer.backbone.eval()
    for sample in game_of(trainer).buffer.samples:
        again = backbone.embed_images(backbone.render(sample.compact[None].long()))[0]
        assert torch.allclose(sample.tokens, again, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, None])
def test_a_challenge_in_parts_is_the_whole_challenge(
    tiny_path: Path, tmp_path: Path, rows: int | None
):
    # Adam makes a step of the learning rate out of a gradient that is all rounding.
    settings = {"label_weight": 0.5, "perturber_steps": 2, "learning_rate": 1e-3}
    settings["hard_quantile"] = 0.5
    whole = trained(tiny_path, tmp_path / "a", challenge_micro_batch=100, **settings)
    parts = trained(tiny_path, tmp_path / "b", challenge_micro_batch=rows, **settings)
    assert_same_players(whole, parts)


def test_merged_lora_plays_the_same_game(tiny_path: Path, tmp_path: Path):
    plain = trained(tiny_path, tmp_path / "a", merge_lora=False, perturber_steps=2)
    merged = trained(tiny_path, tmp_path / "b", merge_lora=True, perturber_steps=2)
    assert any(weight.abs().max() > 1e-3 for weight in lora_weights(merged).values())
    assert_same_players(plain, merged)


def test_lora_is_not_copied_where_memory_is_short(tiny_path: Path, tmp_path: Path, monkeypatch):
    merged: list[bool] = []

    @contextmanager
    def noting(model: torch.nn.Module):
        merged.append(True)
        yield

    monkeypatch.setattr("unigame.backbones.common.lora.merged", noting)
    trained(tiny_path, tmp_path / "a", gradient_checkpointing=True)
    assert not merged
    trained(tiny_path, tmp_path / "b")
    assert merged


@pytest.mark.parametrize("rows", [1, 2, None])
def test_an_understanding_step_in_passes_is_the_whole_step(
    tiny_path: Path, tmp_path: Path, rows: int | None
):
    settings = {"generation_weight": 0.5, "loss_reduction": "token"}
    whole = trained(tiny_path, tmp_path / "a", understanding_micro_batch=100, **settings)
    parts = trained(tiny_path, tmp_path / "b", understanding_micro_batch=rows, **settings)
    assert whole._num_passes() == 1 < parts._num_passes()
    assert_same_players(whole, parts)
    for one, other in zip(logs(whole), logs(parts), strict=True):
        for name in ("loss", "clean_ce", "hard_ce", "generation_loss", "attack_success_rate"):
            assert one.get(name) == pytest.approx(other.get(name), abs=1e-5), name
    assert any("hard_ce" in entry for entry in logs(whole))


def test_passes_hold_every_row_once_and_there_are_always_so_many():
    clean = Rows(torch.rand(2, 3, 4, 4), ids=["a", "b"], share_R=torch.ones(2))
    hard = Rows(torch.rand(2, 3, 4, 4), ids=["c", "d"], share_R=torch.ones(2))
    passes = split_groups([clean, hard], 3)
    assert [[rows.ids for rows in groups] for groups, _ in passes] == [
        [["a", "b"]],
        [["c"]],
        [["d"]],
    ]
    passes = split_groups([clean.pick([0])], 3)
    assert [count for _, count in passes] == [1, 0, 0]
    assert [groups[0].share_R.tolist() for groups, _ in passes] == [[1], [0], [0]]
    assert [groups[0].counts for groups, _ in passes] == [True, False, False]


def test_every_rank_runs_equally_many_parts_whatever_it_holds():
    shares = [share for _, share in batch_of(2).split(3)]
    assert shares == [0.5, 0.5, 0.0]
    parts = batch_of(3).split(2)
    assert [len(part) for part, _ in parts] == [2, 1]
    assert parts[1][0].questions == batch_of(3).questions[2:]


def test_candidates_without_a_graph_are_the_same_candidates():
    backbone, perturber, batch = tiny_janus(), strong_perturber(), batch_of()

    def play(learned: int | None):
        generator = torch.Generator().manual_seed(7)
        config = SelfPlaySettings(num_candidates=3, gradient_candidates=learned)
        return challenge(backbone, perturber, batch, config, generator=generator)

    every, one = play(None), play(1)
    assert torch.equal(every.drawing.compact, one.drawing.compact)
    assert torch.allclose(every.ce_BK, one.ce_BK, atol=1e-6)
    assert torch.allclose(every.tokens_ENH, one.tokens_ENH, atol=1e-6)
    assert torch.allclose(one.objective, every.ce_BK[:, 0].mean(), atol=1e-6)
    assert torch.allclose(every.objective, every.ce_BK.mean(), atol=1e-6)
    assert every.ce_BK.std(dim=1).min() > 0  # three different pictures of each sample


def test_candidates_drawn_a_few_at_a_time_are_the_same_candidates(monkeypatch):
    backbone, perturber, batch = tiny_janus(), strong_perturber(), batch_of(2)
    drawn: list[int] = []
    draw = backbone.draw

    def noting(*args, num_candidates, **options):
        drawn.append(num_candidates)
        return draw(*args, num_candidates=num_candidates, **options)

    monkeypatch.setattr(backbone, "draw", noting)
    results = []
    for at_once, passes in ((None, [1, 4]), (4, [1, 2, 2]), (7, [1, 3, 1]), (1, [1] * 5)):
        drawn.clear()
        generator = torch.Generator().manual_seed(7)
        config = SelfPlaySettings(num_candidates=5)
        results.append(
            challenge(
                backbone, perturber, batch, config, generator=generator, pictures_at_once=at_once
            )
        )
        assert drawn == passes
    for result in results[1:]:
        assert torch.equal(result.drawing.compact, results[0].drawing.compact)
        assert torch.allclose(result.ce_BK, results[0].ce_BK, atol=1e-6)
        assert torch.allclose(result.tokens_ENH, results[0].tokens_ENH, atol=1e-6)
    assert results[0].ce_BK.std(dim=1).min() > 0


def test_hard_tokens_keep_their_digits_beside_a_bfloat16_model():
    backbone = tiny_backbone("bfloat16")
    clean_BNH = backbone.embed_images(torch.rand(1, 3, 16, 16)).bfloat16()
    hard_HNH = clean_BNH.float() + 1e-4  # a delta that bfloat16 would round away
    clean = Rows(embeds=clean_BNH, questions=["what colour is it"], answers=["red"])
    hard = Rows(embeds=hard_HNH, questions=["is it big"], answers=["no"])
    embeds_MNH = join([clean, hard], backbone.embed_images).embeds
    assert torch.equal(embeds_MNH[0], clean_BNH[0].float())
    assert torch.equal(embeds_MNH[1], hard_HNH[0])
