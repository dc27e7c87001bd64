"""The store: what stays, what goes, what is sampled, and that it comes back exactly."""

from __future__ import annotations

import torch

from unigame.methods.drawings.store import (
    DrawingStore,
    StoredDrawing,
    codes_used,
    distinct,
    variety,
)


def drawing(caption: str, code: int, step: int = 0) -> StoredDrawing:
    return StoredDrawing(caption, torch.tensor([code, code + 1]), step, [("q?", "a")], [])


def codes_of(store: DrawingStore) -> list[int]:
    return [int(kept.codes[0]) for kept in store.drawings]


def test_the_oldest_make_room_of_a_caption_and_of_all() -> None:
    store = DrawingStore(capacity=4, per_caption=2)
    store.add([drawing("a", code) for code in range(3)])
    assert codes_of(store) == [1, 2]
    store.add([drawing("b", 10), drawing("c", 20), drawing("c", 30)])
    assert codes_of(store) == [2, 10, 20, 30]


def test_what_is_old_is_dropped() -> None:
    store = DrawingStore(capacity=9, per_caption=9, max_age=5)
    store.add([drawing("a", 1, step=0), drawing("a", 2, step=3)])
    store.forget(5)
    assert codes_of(store) == [1, 2]
    store.forget(6)
    assert codes_of(store) == [2]


def test_each_is_sampled_before_any_comes_twice() -> None:
    store = DrawingStore(capacity=9, per_caption=9, seed=1)
    assert store.sample(3) == []
    store.add([drawing("a", code) for code in range(5)])
    picked = [int(one.codes[0]) for one in store.sample(7)]
    assert len(picked) == 7 and set(picked[:5]) == set(range(5))


def test_it_comes_back_exactly_and_goes_on_alike() -> None:
    store, other = (DrawingStore(capacity=9, per_caption=9, seed=seed) for seed in (1, 2))
    store.add([drawing("a", 1), drawing("b", 70_000)])
    store.sample(3)
    other.load_state_dict(store.state_dict())
    assert other.state_dict()["captions"] == ["a", "b"]
    assert other.drawings[0].codes.dtype == torch.int16
    assert torch.equal(other.drawings[1].codes, torch.tensor([70_000, 70_001]))
    for one, two in zip(store.sample(20), other.sample(20), strict=True):
        assert torch.equal(one.codes, two.codes) and one.questions == two.questions


def test_figures_count_what_is_different() -> None:
    drawn = torch.tensor([[1, 2], [1, 2], [2, 3], [1, 2]])
    assert distinct(drawn, ["a", "a", "a", "b"]) == (3, 2)
    assert codes_used(drawn, 6) == 3 / 6
    assert codes_used(drawn.float(), 6) is None and codes_used(drawn, None) is None
    codes = torch.tensor([[1, 2], [1, 3], [9, 9], [5, 5]])
    assert variety(codes, ["a", "a", "b", "a"]) == (0.5 + 1.0, 2)


def test_latents_are_unlike_by_degrees() -> None:
    one, other = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    near = one + 0.1 * other
    (same, _), (close, _), (far, pairs) = (
        variety(torch.stack([one, second]), ["a", "a"]) for second in (one, near, other)
    )
    assert same == 0 and 0.05 < close < 0.1 and 0.95 < far < 1.05 and pairs == 1
    assert distinct(torch.stack([one, near]), ["a", "a"]) == (0, 0), "not measured"
