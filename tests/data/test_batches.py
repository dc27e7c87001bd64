"""A damaged picture costs its own row of a batch and nothing else."""

import pytest
from torch.utils.data import DataLoader, Subset

from tests.data.files import BLUE, GREEN, RED, color_of, png, write
from unigame.data import (
    Captions,
    CorruptImage,
    Mixture,
    SkippedRow,
    SkipReport,
    load_record_or_skip,
    load_rows,
    most_common_answer,
    split_rows,
)
from unigame.errors import UserError

COLORS = {"blue": BLUE, "green": GREEN, "red": RED}


def pictures(root, damaged=(), n=9):
    """Captions named by colour; the damaged ones are cut after the existence check passed."""
    names = sorted(COLORS) * (n // 3)
    for number, name in enumerate(names):
        blob = png(COLORS[name])
        write(root / f"{number}.png", blob[:30] if number in damaged else blob)
        write(root / f"{number}.txt", name)
    return Captions(root)


def matches(records):
    return [record["caption"] == color_of(record["image"]) for record in records]


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_without_the_damaged_row_is_otherwise_the_same(tmp_path, workers):
    whole = pictures(tmp_path / "whole")
    holed = pictures(tmp_path / "holed", damaged=(4,))
    options = {"batch_size": 3, "collate_fn": split_rows, "num_workers": workers}
    for number, ((want, _), (got, skipped)) in enumerate(
        zip(DataLoader(whole, **options), DataLoader(holed, **options), strict=True)
    ):
        assert [record["id"] for record in got] == [
            record["id"] for record in want if record["id"] != "4"
        ]
        assert all(matches(got))
        assert [row.id for row in skipped] == (["4"] if number == 1 else [])


def test_direct_access_raises_with_id_and_reason(tmp_path):
    data = pictures(tmp_path, damaged=(4,))
    with pytest.raises(CorruptImage) as caught:
        data[4]
    assert (caught.value.id, caught.value.reason) == ("4", "corrupt image")
    (tmp_path / "5.png").unlink()  # gone since the check
    skipped = load_record_or_skip(data, 5)
    assert isinstance(skipped, SkippedRow)
    assert (skipped.id, skipped.reason) == ("5", "missing image")
    with pytest.raises(IndexError):
        data[9]


def test_a_wholly_damaged_batch_gets_the_next_whole_record(tmp_path):
    data = pictures(tmp_path, damaged=(6, 7, 8, 0))
    records, skipped = split_rows(data.__getitems__([6, 7, 8]))
    assert [record["id"] for record in records] == ["1"]
    assert all(matches(records))
    assert [row.id for row in skipped] == ["6", "7", "8", "0"]


def test_nothing_readable_ends_in_an_error_not_in_a_loop(tmp_path):
    data = pictures(tmp_path, damaged=range(9))
    with pytest.raises(UserError, match="unreadable images"):
        data.__getitems__([0])
    with pytest.raises(UserError, match="verify: decode"):
        load_rows(data, [3], max_tries=2)
    assert load_rows(data, []) == []


def test_subset_and_mixture_pass_skips_on(tmp_path):
    data = pictures(tmp_path / "a", damaged=(4,))
    records, skipped = split_rows(Subset(data, [3, 4]).__getitems__([1, 0]))
    assert [record["id"] for record in records] == ["3"]
    assert [row.id for row in skipped] == ["4"]
    mixture = Mixture([pictures(tmp_path / "b"), data], seed=3)
    records, skipped = split_rows(mixture.__getitems__(range(len(mixture))))
    assert len(records) == 17
    assert all(matches(records))
    assert [row.id for row in skipped] == ["1:4"]
    assert len({record["id"] for record in records}) == 17


def test_report_counts_a_row_once():
    report = SkipReport()
    report.kept = 5
    for id, reason in [("a", "corrupt image"), ("a", "missing image"), ("b", "corrupt image")]:
        report.add(id, reason)
    for id in "cdef":
        report.add(id, "no text")
    assert report.counts() == {"no text": 4, "corrupt image": 2}
    assert report.summary() == "5 rows, 6 skipped: 4 no text (c, d, ...); 2 corrupt image (a, b)"
    assert "\n" not in report.summary()
    both = SkipReport.merged([("0:", report), ("1:", report)])
    assert both.kept == 10
    assert both.counts() == {"no text": 8, "corrupt image": 4}


def test_most_common_answer_breaks_ties_by_first_given():
    assert most_common_answer(["b", "a", "a", "b", "c"]) == "b"
    assert most_common_answer(["a", "b", "b"]) == "b"
    assert most_common_answer(["x"]) == "x"
