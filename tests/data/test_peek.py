"""Texts in advance: those of the very rows, or none."""

import pytest
from torch.utils.data import ConcatDataset, Dataset, Subset

from unigame.data import Mixture
from unigame.data.peek import peek_texts


class Own(Dataset):
    """A dataset whose texts cost its pictures."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": None, "question": f"own {index}", "answer": "x", "id": str(index)}


class Known(Own):
    def iter_texts(self):
        return ({"question": f"known {n}", "answer": "x", "id": str(n)} for n in range(3))


def asked(rows):
    return None if rows is None else [row["question"] for row in rows]


def test_a_subset_says_its_own_rows():
    listed = [{"question": "in a list"}]
    joined = ConcatDataset([Known(), listed, Known()])
    subset = Subset(joined, [6, 3, 0])
    assert asked(peek_texts(subset)) == ["known 2", "in a list", "known 0"]
    assert asked(peek_texts(Subset(subset, [1]))) == ["in a list"]
    assert asked(peek_texts(ConcatDataset([subset, Own()])))[:2] == ["known 2", "in a list"]


@pytest.mark.parametrize(
    "whole",
    [
        Own(),
        ConcatDataset([Own(), Known()]),
        ConcatDataset([Known(), ConcatDataset([Own(), Known()])]),
        Subset(ConcatDataset([Own(), Known()]), range(6)),
        Mixture([Known(), Known()]),
        ConcatDataset([Known(), Mixture([Known(), Known()])]),
    ],
    ids=["own", "joined", "joined twice", "subset", "mixture", "joined mixture"],
)
def test_a_subset_of_rows_that_cannot_be_told_by_number_says_nothing(whole):
    assert peek_texts(Subset(whole, [4])) is None
