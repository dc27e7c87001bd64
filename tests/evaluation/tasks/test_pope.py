"""POPE from all its layouts to scores; parsers and their traps."""

from __future__ import annotations

import codecs
import json

import pytest
from PIL import Image

from tests.evaluation.tables import jpeg, write_parquet
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.tasks.pope.rules import official_label
from unigame.evaluation.tasks.pope.task import POPE, SUBSETS
from unigame.reports.metrics import estimate, value_of


def row(id, answer="yes", **changes):
    return {
        "id": str(id),
        "question_id": str(id),
        "question": "Is there a dog in the image? ",
        "answer": answer,
        "image_source": f"COCO_val2014_{id // 10:012d}",
        "image": {"bytes": jpeg(), "path": None},
        **changes,
    }


def default_rows():
    """Three subsets with the same four question ids."""
    return [
        row(id, answer, category=subset)
        for subset in SUBSETS
        for id, answer in ((1, "yes"), (2, "no"), (11, "yes"), (12, "no"))
    ]


def say(items, reply):
    return {item.id: Prediction(item.id, reply(item)) for item in items}


def figures(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics}


def test_default_layout_to_scores(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", default_rows())
    benchmark = POPE()
    loaded = benchmark.load(DataSource(root=tmp_path))
    assert len(loaded.items) == 12 and loaded.skips.counts() == {}
    first = loaded.items[0]
    assert first.id == "adversarial/1" and first.cluster == "COCO_val2014_000000000000"
    assert first.prompt == (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    assert first.pictures[0]().size == (16, 12)

    def reply(item):
        """Right on random, always yes on popular, always no on adversarial."""
        truth = item.reference["answer"].capitalize()
        return {"random": truth, "popular": "Yes", "adversarial": "No"}[item.reference["subset"]]

    scored = benchmark.score(loaded.items, say(loaded.items, reply), tmp_path)
    found = figures(scored)
    assert scored.metrics[0].name == "f1"
    expected = {
        "f1": {"random": 1, "popular": 2 / 3, "adversarial": 0},
        "accuracy": {"random": 1, "popular": 0.5, "adversarial": 0.5},
        "precision": {"random": 1, "popular": 0.5, "adversarial": 0},
        "recall": {"random": 1, "popular": 1, "adversarial": 0},
        "yes_ratio": {"random": 0.5, "popular": 1, "adversarial": 0},
    }
    for name, by_subset in expected.items():
        assert found[name] == pytest.approx(100 * sum(by_subset.values()) / 3)
        for subset, value in by_subset.items():
            assert found[f"{name}_{subset}"] == pytest.approx(100 * value)
    assert scored.details["counts"]["popular"] == {"TP": 2, "FP": 2, "FN": 0, "TN": 0}
    assert not scored.unparsed and not scored.warnings
    # The same pictures are in all subsets: two clusters, drawn together.
    assert len({unit.cluster for unit in scored.metrics[0].units}) == 2
    interval = estimate(scored.metrics[1])
    assert interval["low"] <= found["accuracy"] <= interval["high"]


def test_malformed_rows_are_counted(tmp_path):
    rows = [
        *default_rows(),
        row(21, category="rare"),
        row(22, category=None),
        row(23, "maybe", category="random"),
        row(24, category="random", image=None),
        row(1, category="random"),
        row(25, category="random", question=None),
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    loaded = POPE().load(DataSource(root=tmp_path))
    assert len(loaded.items) == 12
    assert loaded.skips.kept == 12
    assert loaded.skips.counts() == {
        "category is 'rare', expected adversarial, popular, random": 1,
        "missing column category": 1,
        "answer is 'maybe', expected yes or no": 1,
        "missing image": 1,
        "question_id occurs twice": 1,
        "missing column question": 1,
    }


def test_limit_keeps_all_subsets(tmp_path):
    write_parquet(tmp_path / "test.parquet", default_rows())
    items = POPE().load(DataSource(root=tmp_path), limit=5).items
    assert [item.id for item in items] == [f"{s}/{id}" for s in SUBSETS for id in (1, 2)]


@pytest.mark.parametrize("folder", ["", "Full", "data"])
def test_split_per_subset(tmp_path, folder):
    for number, subset in enumerate(SUBSETS):
        path = tmp_path / folder / f"{subset}-00000-of-00001.parquet"
        write_parquet(path, [row(number), row(number + 1)])
    loaded = POPE().load(DataSource(root=tmp_path))
    ids = [f"{subset}/{n + i}" for n, subset in enumerate(SUBSETS) for i in (0, 1)]
    assert [item.id for item in loaded.items] == ids
    assert loaded.dataset.split == "adversarial+popular+random"
    one = POPE().load(DataSource(root=tmp_path, split="popular"))
    assert [item.id for item in one.items] == ["popular/1", "popular/2"]


def test_one_subset_of_the_default_layout(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", default_rows())
    benchmark = POPE()
    loaded = benchmark.load(DataSource(root=tmp_path, split="popular"))
    assert {item.reference["subset"] for item in loaded.items} == {"popular"}
    scored = benchmark.score(loaded.items, say(loaded.items, lambda _: "yes"), tmp_path)
    assert "f1_random" not in figures(scored)
    assert scored.warnings == [
        "no adversarial and no random questions: the means are over fewer subsets"
    ]


@pytest.mark.parametrize("place", ["coco_pope_{}.json", "output/coco/coco_pope_{}.jsonl"])
def test_original_files(tmp_path, place):
    for subset in SUBSETS:
        lines = [
            {
                "question_id": i,
                "image": f"COCO_val2014_{i:012d}.jpg",
                "text": "Dog?",
                "label": label,
            }
            for i, label in ((1, "yes"), (2, "no"), (3, "no"))
        ]
        path = tmp_path / place.format(subset)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, lines)) + "\n\n{broken\n7\n")
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    Image.new("RGB", (6, 4)).save(tmp_path / "val2014" / "000000000002.jpg")
    benchmark = POPE(prompt="bare")
    loaded = benchmark.load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == [f"{s}/{i}" for s in SUBSETS for i in (1, 2)]
    assert loaded.skips.counts() == {"not a json object": 6, "missing image": 3}
    assert [item.pictures[0]().width for item in loaded.items[:2]] == [5, 6]
    assert loaded.items[0].prompt == "Dog?"
    one = benchmark.load(DataSource(root=tmp_path, split="random"))
    assert [item.id for item in one.items] == ["random/1", "random/2"]
    assert one.dataset.split == "random"
    with pytest.raises(UserError, match="no split 'bogus' here; choose from adversarial, popular"):
        benchmark.load(DataSource(root=tmp_path, split="bogus"))
    scored = benchmark.score(
        loaded.items, say(loaded.items, lambda item: item.reference["answer"]), tmp_path
    )
    assert figures(scored)["f1"] == 100.0


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8, b"\n\n "])
def test_original_files_may_be_lists(tmp_path, suffix, indent, start):
    rows = [
        {"question_id": i, "image": "COCO_val2014_000000000001.jpg", "text": "Dog?", "label": "no"}
        for i in (1, 2)
    ]
    listed = json.dumps([*rows, 7], indent=indent).encode()
    (tmp_path / f"coco_pope_popular.{suffix}").write_bytes(start + listed)
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    loaded = POPE().load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == ["popular/1", "popular/2"]
    assert loaded.skips.counts() == {"not a json object": 1}


@pytest.mark.parametrize("content", ["[" * 200_000, "[{}", '[{"text": "\\ud800"}'])
def test_an_original_list_that_is_damaged_is_one_line(tmp_path, content):
    (tmp_path / "coco_pope_popular.json").write_text(content)
    Image.new("RGB", (5, 4)).save(tmp_path / "COCO_val2014_000000000001.jpg")
    with pytest.raises(UserError, match="coco_pope_popular.json") as caught:
        POPE().load(DataSource(root=tmp_path))
    assert "\n" not in str(caught.value)


def test_another_layout(tmp_path):
    path = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(path, [row(1)])
    with pytest.raises(UserError, match="no column 'category'.*image_source"):
        POPE().load(DataSource(root=tmp_path))
    write_parquet(path, [row(1, category="x")])
    with pytest.raises(UserError, match="no row of adversarial, popular, random .*category is 'x'"):
        POPE().load(DataSource(root=tmp_path))
    with pytest.raises(UserError, match="no folder"):
        POPE().load(DataSource(root=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("It is not there", "no"),
        ("Yes. There is no cat", "yes"),  # only the first sentence is read
        ("no,", "no"),
        ("no\n", "yes"),  # split at blanks only
        ("There is.no", "yes"),
        ("There isn't", "yes"),
    ],
)
def test_official_label(reply, label):
    assert official_label(reply) == label


@pytest.mark.parametrize(("parser", "warned"), [("official", 1), ("lmms_eval", 0)])
def test_replies_that_no_rule_reads(tmp_path, parser, warned):
    write_parquet(tmp_path / "test.parquet", default_rows())
    benchmark = POPE(parser=parser)
    items = benchmark.load(DataSource(root=tmp_path)).items
    texts = ["NO", "no idea", "perhaps", "Yes."] * 3
    replies = {item.id: text for item, text in zip(items, texts, strict=True)}
    predictions = {id: Prediction(id, text) for id, text in replies.items()}
    predictions["random/12"] = Prediction("random/12", error="corrupt image")
    scored = benchmark.score(items, predictions, tmp_path)
    assert len(scored.metrics[0].units) == 11
    kinds = {replies[id] for id in scored.unparsed}
    assert kinds == ({"perhaps"} if parser == "official" else {"no idea", "perhaps", "Yes."})
    assert len(scored.warnings) == warned
    if warned:
        assert scored.warnings[0].startswith("3 replies begin with a no but were read as yes")


def test_traps_of_lmms_eval(tmp_path):
    write_parquet(tmp_path / "test.parquet", default_rows())
    benchmark = POPE(parser="lmms_eval")
    items = benchmark.load(DataSource(root=tmp_path)).items

    def reply(item):
        return "yes" if item.id.endswith("/1") else "no clue"

    found = figures(benchmark.score(items, say(items, reply), tmp_path))
    assert found["accuracy"] == 25.0  # lowered by the unparsed, unlike
    assert found["precision"] == found["recall"] == found["f1"] == 100.0
    assert found["yes_ratio"] == 50.0  # of the true answers
