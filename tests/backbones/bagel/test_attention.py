"""Who sees whom: one test a rule, and all of it against the rules spelled out pair by pair."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tests.backbones.bagel.oracle import Split, seen_by_splits
from unigame.backbones.bagel.attention import visible


def blocks_of(splits: list[Split]) -> list[int]:
    """Numbers of blocks: a word is one, a picture is one."""
    blocks: list[int] = []
    for mode, length in splits:
        first = blocks[-1] + 1 if blocks else 0
        blocks += range(first, first + length) if mode == "causal" else [first] * length
    return blocks


def places_of(splits: list[Split]) -> slice | None:
    """Latents of the noised picture: its split without the two marks."""
    start = 0
    for mode, length in splits:
        if mode == "noise":
            return slice(start + 1, start + length - 1)
        start += length
    return None


def seen(*splits: Split) -> Tensor:
    blocks_1L = torch.tensor([blocks_of(list(splits))])
    mask = visible(blocks_1L, torch.ones_like(blocks_1L), places_of(list(splits)))
    assert mask.shape == (1, 1, blocks_1L.shape[1], blocks_1L.shape[1])
    return mask[0, 0]


def test_text_sees_itself_and_what_stands_before_it() -> None:
    assert torch.equal(seen(("causal", 5)), torch.ones(5, 5, dtype=torch.bool).tril())


def test_a_picture_sees_all_of_itself_and_the_past_and_nothing_behind_it() -> None:
    mask = seen(("causal", 2), ("full", 4), ("causal", 3))
    assert mask[2:6, :6].all()
    assert not mask[2:6, 6:].any()
    assert mask[6:, :6].all()  # and text behind it sees it


def test_a_picture_that_is_drawn_from_noise_is_seen_by_no_other_block() -> None:
    mask = seen(("causal", 2), ("noise", 5), ("full", 4), ("causal", 2))
    assert mask[2:7, :7].all()
    assert not mask[7:, 2:7].any()
    assert mask[7:, :2].all() and mask[11:, 7:11].all()


def test_rows_do_not_see_each_other_and_padding_is_seen_by_no_token() -> None:
    blocks_BL = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]])
    real_BL = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mask = visible(blocks_BL, real_BL)[:, 0]
    assert not mask[0, 2:, :2].any()
    assert torch.equal(mask[0, 2:, 2:], torch.ones(3, 3, dtype=torch.bool).tril())
    assert mask.any(-1).all()  # padding itself sees something: no softmax over nothing
    assert torch.equal(mask[1], seen_by_splits([("causal", 2), ("full", 3)]))


def test_what_is_in_a_cache_is_seen_whole() -> None:
    splits: list[Split] = [("full", 4), ("causal", 4)]
    blocks_1L = torch.tensor([blocks_of(splits)])
    ahead = visible(blocks_1L[:, 6:], torch.ones(1, 8))[0, 0]
    assert torch.equal(ahead, seen_by_splits(splits)[6:])


def test_masks_are_those_of_the_rules_pair_by_pair() -> None:
    chance = random.Random(0)
    for _ in range(40):
        splits: list[Split] = [
            (chance.choice(["causal", "full"]), chance.randint(3, 6))
            for _ in range(chance.randint(1, 4))
        ]
        splits.insert(chance.randint(0, len(splits)), ("noise", chance.randint(3, 6)))
        assert torch.equal(seen(*splits), seen_by_splits(splits)), splits
