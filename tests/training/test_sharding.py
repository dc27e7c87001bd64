"""Frozen weights in shards over two real processes: the game is that of whole weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.helpers import (
    Losses,
    Records,
    game_of,
    lora_weights,
    make_config,
    make_trainer,
)
from tests.training.sharded import evaluated, tuned
from unigame.errors import UserError
from unigame.methods.selfplay.buffer import HardSample
from unigame.training.sharding import vision_layers

MODES = ("none", "language")


@pytest.fixture(scope="module")
def ranks(launched: Path) -> list[dict[str, Any]]:
    """What each of two ranks had at the end of each run."""
    files = [launched / "sharded" / f"rank{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("run", ["language", "resumed"])
def test_sharding_changes_no_loss_and_no_player(ranks, run: str) -> None:
    for rank in ranks:
        whole, sharded = rank["none"], rank[run]
        assert sharded["losses"] == pytest.approx(whole["losses"], abs=1e-5)
        for player in ("u", "c"):
            assert sharded[player].keys() == whole[player].keys() and whole[player]
            for name, weight in whole[player].items():
                assert torch.allclose(sharded[player][name], weight, atol=1e-6), name


@pytest.mark.parametrize("run", ["none", "language"])
def test_gradients_are_summed_in_one_order_from_the_first_step_on(ranks, run: str) -> None:
    """DDP's own order changes after one step: on 4 ranks a resumed run then ends in other bits."""
    assert [rank[run]["reordered"] for rank in ranks] == [False, False]


def test_each_process_holds_its_share_of_the_layers(ranks) -> None:
    for rank in ranks:
        sharded = rank["language"]
        assert sharded["held"] * 2 == sharded["sharded"] > 0 and not sharded["learns"]
        assert rank["none"]["sharded"] == 0


def test_the_vision_transformer_is_shared_out_too_if_asked_for(ranks) -> None:
    for rank in ranks:
        both = rank["resumed"]  # language+vision
        assert both["held"] * 2 == both["sharded"] > rank["language"]["sharded"]
        assert not both["learns"]


def test_who_has_nothing_to_draw_or_describe_goes_along(ranks, launched) -> None:
    whole = [torch.load(launched / "plain" / f"rank{i}.pt", weights_only=True) for i in range(2)]
    for rank, expected in zip(ranks, (one["taught"] for one in whole), strict=True):
        for method in ("verify", "imagine"):
            assert rank["taught"][method] == expected[method]
        for name, weight in expected["u"].items():
            assert torch.allclose(rank["taught"]["u"][name], weight, atol=1e-6), name
    texts = [(launched / "sharded" / mode / "captions.jsonl").read_text() for mode in MODES]
    assert texts[0] == texts[1] != ""
    assert not (launched / "sharded" / "language" / "captions_1.jsonl").exists()


@pytest.mark.parametrize("file", ["examples/0-attacked.png", "dynamics/coverage.json"])
def test_the_first_process_alone_draws_for_the_report(launched: Path, file: str) -> None:
    one, other = ((launched / "sharded" / mode / file).read_bytes() for mode in MODES)
    assert one == other


def test_the_base_is_known_by_its_whole_weights(ranks) -> None:
    assert len({rank[run]["digest"] for rank in ranks for run in ("none", "language")}) == 1


def test_unequal_passes_are_refused_on_both_ranks(launched: Path) -> None:
    texts = [json.loads((launched / "sharded" / f"refused{i}.json").read_text()) for i in range(2)]
    assert all("shard_frozen='language'" in text and "method strange" in text for text in texts)


def test_two_sharded_ranks_are_one_process_that_accumulates(ranks, tiny_path, tmp_path) -> None:
    single = tuned(tiny_path, tmp_path, accumulation=2)
    single.train()
    assert Losses(single.state.log_history).values == pytest.approx(
        ranks[0]["sft"]["losses"], abs=1e-5
    )
    for name, weight in lora_weights(single).items():
        assert torch.allclose(weight, ranks[0]["sft"]["u"][name], atol=1e-4), name


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_evaluate_every_row_once(ranks, tiny_path, tmp_path, mode: str) -> None:
    alone = evaluated(tiny_path, tmp_path)
    for rank in ranks:
        assert rank["evaluated"][mode] == pytest.approx(alone, abs=1e-5)


def test_a_checkpoint_of_two_ranks_goes_on_with_one(ranks, launched, tiny_path, tmp_path) -> None:
    folder = launched / "sharded" / "sft" / "checkpoint-2"
    with pytest.raises(UserError, match="gradient_accumulation_steps: 1 on 2 processes"):
        tuned(tiny_path, tmp_path).train(resume_from_checkpoint=str(folder))
    single = tuned(tiny_path, tmp_path, accumulation=2)
    single.train(resume_from_checkpoint=str(folder))
    assert Losses(single.state.log_history).values == pytest.approx(
        ranks[0]["sft"]["losses"], abs=1e-5
    )


def test_buffers_are_dealt_out_whole_and_c_keeps_its_optimizer(tiny_path, tmp_path) -> None:
    game = game_of(make_trainer(tiny_path, tmp_path, Records(4)))
    states = []
    for rank in range(4):
        for i in range(3):
            codes, name = torch.full((4,), rank), f"{rank}-{i}"
            game.buffer.push([HardSample(codes, "q", "a", 3.0 * i + rank, 0.5, name, i)])
        game.tally.candidates = 5
        states.append(copy.deepcopy(game.state_dict()))
        game.replay.buffer = game.replay._new_buffer(rank)
    del states[0]["tally"]["given_up"]  # of a version that did not count it
    dealt = [game.regrouped(states, rank, 2) for rank in range(2)]
    sources = [sample["source"] for one in dealt for sample in one["buffer"]["samples"]]
    assert sorted(sources) == sorted(f"{rank}-{i}" for rank in range(4) for i in range(3))
    assert [one["tally"] for one in dealt] == [
        {**dealt[0]["tally"], "candidates": 10, "held": 6}
    ] * 2
    for one in dealt:
        game.load_state_dict(one)
        assert len(game.buffer) == 6


def test_a_rank_with_fewer_rows_runs_as_many_passes(tiny_path, tmp_path, monkeypatch) -> None:
    settings: dict[str, Any] = {"num_candidates": 4, "challenge_micro_batch": 4}
    trainer = make_trainer(tiny_path, tmp_path, Records(4, captions=True), **settings)
    game, backbone, passes = game_of(trainer), trainer.backbone, []
    read = backbone.answer_token_losses

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(len(kwargs["embeds"]))
        return read(*args, **kwargs)

    monkeypatch.setattr(backbone, "answer_token_losses", counted)
    game.run.sharded = True
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    found = []
    for rows in (4, 3, 1):
        passes.clear()
        game.play(batch.answers.first(rows), step=0)
        found.append(len(passes))
        assert max(passes) <= 4
    assert found[0] == found[1] == found[2] > 2


def test_a_family_without_a_vision_transformer_is_refused() -> None:
    with pytest.raises(UserError, match="shard_frozen='language\\+vision'.*'emu3'"):
        vision_layers(SimpleNamespace(frozen_towers=tuple, facts=SimpleNamespace(family="emu3")))  # type: ignore[arg-type]


def test_one_process_has_nothing_to_share(tiny_path, tmp_path, caplog) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(4), shard_frozen="language")
    assert trainer.backbone.kept_digests is None
    assert "shard_frozen=language" in caplog.text


def test_the_launchers_own_sharding_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="shard_frozen=language"):
        make_config(tmp_path)
