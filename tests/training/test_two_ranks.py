"""Two real processes: the game runs, both ranks stay equal, and SFT is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import Records, game_of, make_trainer
from tests.training.ranks import game_settings, packed, reca_settings, sft_settings, weights_of


@pytest.fixture(scope="module")
def ranks(launched: Path) -> list[dict[str, Any]]:
    """What each of two ranks had at the end of a game and of an SFT run."""
    files = [launched / "plain" / f"rank{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("player", ["u", "c"])
def test_both_ranks_end_with_the_same_players(ranks, player: str) -> None:
    first, second = (rank["game"][player] for rank in ranks)
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_rank_without_drawings_keeps_step_with_one_that_has_some(ranks) -> None:
    first, second = (rank["taught"] for rank in ranks)
    assert all(torch.equal(first["u"][name], second["u"][name]) for name in first["u"])
    assert len(first["verify"]) == 2 and second["verify"] == []
    assert first["rounds"] == second["rounds"] == [[1, 1, 0, 0]] * 2, "counted over both"
    assert set(first["imagine"]) != set(second["imagine"]), "each draws captions of its own"


def test_hard_samples_were_read_on_both_ranks(ranks) -> None:
    assert all(rank["game"]["hard"]["read"] > 0 for rank in ranks)


def test_the_quantile_is_that_of_one_process_with_both_batches(ranks, tiny_path, tmp_path) -> None:
    settings = game_settings(batch=4) | {"missing_captions": "model"}  # as on the ranks
    single = make_trainer(tiny_path, tmp_path, Records(12), **settings, max_steps=1)
    single.train()
    expected = game_of(single).buffer.recent.values
    first, second = (rank["game"]["recent"] for rank in ranks)
    assert len(first) == 4 and len(expected) == 4
    assert torch.allclose(first[0], expected, atol=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_data_hear_of_each_epoch_on_both_ranks(ranks) -> None:
    assert [rank["game"]["epoch"] for rank in ranks] == [1, 1]


def test_each_rank_describes_its_own_pictures(ranks) -> None:
    assert [rank["described"] for rank in ranks] == [6, 6]  # 12 records, each once over two epochs


@pytest.mark.parametrize(("run", "settings"), [("sft", sft_settings), ("reca", reca_settings)])
def test_two_ranks_are_one_process_with_both_batches(
    ranks, tiny_path, tmp_path, run, settings
) -> None:
    single = make_trainer(tiny_path, tmp_path, **settings(batch=4))
    before = weights_of(single)["u"]
    single.train()
    expected = weights_of(single)["u"]
    for rank in ranks:
        for name, weight in rank[run]["u"].items():
            assert torch.allclose(weight, expected[name], atol=1e-5), name
    assert any(not torch.allclose(before[name], expected[name], atol=1e-3) for name in before)


def test_a_rank_without_pictures_alone_keeps_step(ranks) -> None:
    assert [rank["alone"]["drawn"] for rank in ranks] == [0, 2]
    first, second = (rank["alone"]["u"] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_rank_draws_noise_of_its_own_and_resumes_it_exactly(ranks) -> None:
    first, second = (rank["noise"] for rank in ranks)
    assert len(first["levels"]) == len(second["levels"]) == 8
    assert not set(first["levels"]) & set(second["levels"])
    for rank in (first, second):
        assert rank["levels"][:4] == rank["levels"][4:]
    assert all(torch.equal(first["u"][name], second["u"][name]) for name in first["u"])


def test_two_ranks_on_a_base_in_4_bits_are_one_process_with_both_batches(
    ranks, tiny_path, tmp_path
) -> None:
    pytest.importorskip("bitsandbytes", reason='needs pip install "unigame[quantization]"')
    single = packed(tiny_path, tmp_path, batch=4)
    before = weights_of(single)["u"]
    single.train()
    for name, weight in weights_of(single)["u"].items():
        for rank in ranks:
            assert torch.allclose(weight, rank["packed"]["sft"]["u"][name], atol=1e-5), name
    assert any(
        not torch.allclose(before[n], w, atol=1e-3) for n, w in weights_of(single)["u"].items()
    )
    first, second = (rank["packed"]["game"] for rank in ranks)
    for player, weights in first.items():
        assert all(torch.equal(weights[name], second[player][name]) for name in weights)
