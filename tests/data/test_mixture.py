"""Exact proportions, determinism, and fairness over epochs."""

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from unigame.data import Mixture
from unigame.errors import UserError


class Numbers(torch.utils.data.Dataset):
    def __init__(self, name, n):
        self.name, self.n = name, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return {"image": None, "caption": None, "question": self.name, "id": str(index)}


def order(mixture):
    return [mixture.locate(index) for index in range(len(mixture))]


@pytest.mark.parametrize(
    ("lengths", "weights", "size", "shares"),
    [
        ((10, 10), (3, 1), 8, [6, 2]),
        ((10, 10, 10), (1, 1, 1), 10, [4, 3, 3]),
        ((100, 3), (0.7, 0.3), 10, [7, 3]),
        ((5, 7), None, None, [5, 7]),
        ((5, 7), (1, 1), None, [6, 6]),
        ((2, 1000), (0.5, 0.5), 20, [10, 10]),
    ],
)
def test_proportions_are_exact(lengths, weights, size, shares):
    mixture = Mixture([Numbers(str(n), n) for n in lengths], weights, seed=1, size=size)
    assert mixture.shares == shares
    for epoch in range(3):
        mixture.set_epoch(epoch)
        counts = Counter(source for source, _ in order(mixture))
        assert [counts[i] for i in range(len(lengths))] == shares


def test_without_weights_every_row_comes_once_and_shuffled():
    mixture = Mixture([Numbers("a", 40), Numbers("b", 60)], seed=0)
    rows = order(mixture)
    assert sorted(rows) == [(0, i) for i in range(40)] + [(1, i) for i in range(60)]
    assert rows != sorted(rows)
    assert len({source for source, _ in rows[:20]}) == 2


def test_no_row_comes_again_before_all_have_come_over_epochs_too():
    """10 rows, 4 places an epoch: after 5 epochs every row has come exactly twice."""
    mixture = Mixture([Numbers("a", 10), Numbers("b", 4)], (0.5, 0.5), size=8)
    seen = Counter()
    for epoch in range(5):
        mixture.set_epoch(epoch)
        seen.update(row for source, row in order(mixture) if source == 0)
        assert max(seen.values()) - min(seen[i] for i in range(10)) <= 1
    assert set(seen.values()) == {2}


def test_a_small_source_repeats_evenly_within_an_epoch():
    mixture = Mixture([Numbers("a", 3), Numbers("b", 100)], (1, 1), size=20)
    counts = Counter(row for source, row in order(mixture) if source == 0)
    assert sorted(counts.values()) == [3, 3, 4]


def test_order_depends_on_seed_and_epoch_alone():
    def make(seed):
        return Mixture([Numbers("a", 30), Numbers("b", 30)], (2, 1), seed=seed)

    first, jumped = make(5), make(5)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert order(first) == order(jumped)
    epoch0 = order(first)
    for epoch in (1, 2, 3):
        first.set_epoch(epoch)
    jumped.set_epoch(3)  # a resumed run
    assert order(first) == order(jumped) != epoch0
    first.set_epoch(0)
    assert order(first) == epoch0
    assert order(make(6)) != epoch0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_records_come_from_where_locate_says():
    mixture = Mixture([Numbers("a", 5), Numbers("b", 5)], seed=2)
    for index, (source, row) in enumerate(order(mixture)):
        record = mixture[index]
        assert record["question"] == "ab"[source]
        assert record["id"] == f"{source}:{row}"
    with pytest.raises(IndexError):
        mixture[10]
    ids = [r["id"] for batch in DataLoader(mixture, batch_size=4, collate_fn=list) for r in batch]
    assert ids == [f"{source}:{row}" for source, row in order(mixture)]


def test_accelerates_loader_passes_the_epoch_on():
    from accelerate import Accelerator

    mixture = Mixture([Numbers("a", 50), Numbers("b", 50)], (3, 1), size=8)
    loader = Accelerator(cpu=True).prepare(DataLoader(mixture, batch_size=4, collate_fn=list))
    loader.set_epoch(2)
    got = [record["id"] for batch in loader for record in batch]
    mixture.set_epoch(2)
    assert got == [f"{source}:{row}" for source, row in order(mixture)]


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ((1,), None, "1 weights for 2 sources"),
        ((1, 0), None, "weight 0 is not"),
        ((1, -2), None, "weight -2 is not"),
        ((1, float("nan")), None, "weight nan is not"),
        ((1, "big"), None, "weight 'big' is not"),
        ((1, 1), 0, "size must be"),
        ((1000, 1), 5, "source 1 gets no row"),
    ],
)
def test_impossible_mixtures(weights, size, message):
    with pytest.raises(UserError, match=message):
        Mixture([Numbers("a", 5), Numbers("b", 5)], weights, size=size)


def test_empty_sources():
    with pytest.raises(UserError, match="lengths \\[5, 0\\]"):
        Mixture([Numbers("a", 5), Numbers("b", 0)])
    with pytest.raises(UserError, match="needs sources"):
        Mixture([])
