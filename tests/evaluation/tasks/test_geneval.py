"""From GenEval's own file on disk to scores, with a detector that reads flat rectangles."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.evaluation.scorers import tiny_scorers
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.scorers.detectors import Detection
from unigame.evaluation.tasks.geneval.rules import TAGS
from unigame.evaluation.tasks.geneval.task import GenEval
from unigame.reports.metrics import value_of

ROWS = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    {
        "tag": "two_object",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}],
        "prompt": "a dog and a cat",
    },
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
    {
        "tag": "colors",
        "include": [{"class": "cup", "count": 1, "color": "blue"}],
        "prompt": "a blue cup",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cat", "count": 1},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a dog left of a cat",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "bus", "count": 1, "color": "blue"},
        ],
        "prompt": "a red cup and a blue bus",
    },
]
# What a rectangle is: its class by its colour's red part, its score by the green part; blue ones
# are cups painted "blue", and so on. Written once here, read back by the scorers below.
PAINTS = {
    (200, 90, 10): ("dog", "red"),
    (220, 90, 10): ("cat", "red"),
    (40, 90, 200): ("cup", "blue"),
    (60, 90, 10): ("cup", "red"),
    (80, 90, 200): ("bus", "blue"),
}
DOG, CAT, BLUE_CUP, RED_CUP, BLUE_BUS = PAINTS
LEFT, RIGHT, TOP = (2, 20, 12, 30), (40, 20, 50, 30), (20, 2, 30, 12)


class Reader:
    """A detector and colour classifier of painted rectangles; counts what it is asked."""

    def __init__(self, name="reader"):
        self.name, self.detected, self.classified = name, 0, []

    def detect(self, images):
        self.detected += len(images)
        return [self._read(np.asarray(image)) for image in images]

    def _read(self, pixels):
        found = []
        for paint, (class_name, _) in PAINTS.items():
            ys, xs = np.nonzero((pixels == paint).all(-1))
            for left in (True, False):
                side = (xs < 32) == left
                if side.any():
                    box = (xs[side].min(), ys[side].min(), xs[side].max() + 1, ys[side].max() + 1)
                    found.append(Detection(class_name, 0.95, tuple(map(float, box))))
        return found

    def classify(self, image, detections, class_name):
        self.classified.append(class_name)
        centres = [((d.box[0] + d.box[2]) / 2, (d.box[1] + d.box[3]) / 2) for d in detections]
        return [PAINTS[image.getpixel(tuple(map(int, centre)))][1] for centre in centres]


def paint(path, *things):
    image = Image.new("RGB", (64, 64))
    for colour, box in things:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


GOOD = {
    "00000": [(DOG, LEFT)],
    "00001": [(DOG, LEFT), (CAT, RIGHT)],
    "00002": [(DOG, LEFT), (DOG, RIGHT)],
    "00003": [(BLUE_CUP, LEFT)],
    "00004": [(DOG, LEFT), (CAT, RIGHT)],
    "00005": [(RED_CUP, LEFT), (BLUE_BUS, RIGHT)],
}


def write(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation_metadata.jsonl").write_text("".join(line + "\n" for line in lines))
    return DataSource(root=folder)


@pytest.fixture
def bench():
    reader = Reader()
    return GenEval(detector=reader, colours=reader, samples=2)


def predictions(folder, drawings):
    return {
        id: Prediction(
            id,
            pictures=tuple(
                paint(folder / f"{id}_{k}.png", *things) for k, things in enumerate(samples)
            ),
        )
        for id, samples in drawings.items()
    }


def values(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics}


def test_prompts_are_read_verbatim(tmp_path):
    loaded = GenEval().load(write(tmp_path, ROWS))
    assert [item.prompt for item in loaded.items] == [row["prompt"] for row in ROWS]
    assert [item.id for item in loaded.items] == [f"{i:05d}" for i in range(6)]
    assert {item.samples for item in loaded.items} == {4}
    assert dict(loaded.items[4].reference) == ROWS[4]
    assert len(loaded.dataset.fingerprint) == 64
    assert loaded.skips.counts() == {}


def test_all_right_half_right_and_wrong(tmp_path, bench):
    items = bench.load(write(tmp_path / "data", ROWS)).items
    half = {id: [things, []] for id, things in GOOD.items()}
    half["00000"] = [GOOD["00000"], GOOD["00000"]]
    half["00003"] = [[(RED_CUP, LEFT)], [(RED_CUP, RIGHT)]]
    drawn = predictions(tmp_path / "pictures", half)
    scored = bench.score(items, drawn, tmp_path / "out")
    found = values(scored)
    expected = {tag: 0.5 for tag in TAGS} | {"single_object": 1.0, "colors": 0.0}
    assert {tag: found[tag] for tag in TAGS} == expected
    assert found["overall"] == pytest.approx(0.5)
    assert found["images"] == pytest.approx(6 / 12)
    assert scored.metrics[0].name == "overall"
    assert scored.scorer["detector"] == "reader"
    assert "GenEval-like" in scored.warnings[0]
    assert scored.details == {"pictures": 12, "pictures_missing": 0}
    units = {unit.id: unit for unit in scored.metrics[0].units}
    assert units["00003/1"].cluster == "00003"
    assert units["00003/1"].group == "colors"
    verdicts = [json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").open()]
    wrong = {row["id"]: row["reason"] for row in verdicts if not row["correct"]}
    assert wrong["00003/0"] == "expected blue cup>=1, found 0 blue; and 1 red"


def test_the_mean_is_over_tags_and_not_over_pictures(tmp_path, bench):
    rows = [ROWS[0], ROWS[0], ROWS[0], ROWS[3]]
    items = bench.load(write(tmp_path / "data", rows)).items
    drawings = {f"{i:05d}": [[(DOG, LEFT)]] for i in range(4)}
    found = values(bench.score(items, predictions(tmp_path, drawings), tmp_path / "out"))
    assert found["images"] == pytest.approx(0.75)
    assert found["mean_of_2_tags"] == pytest.approx(0.5)
    assert "overall" not in found


def test_a_second_run_detects_only_what_is_new(tmp_path):
    reader = Reader()
    bench = GenEval(detector=reader, colours=reader, samples=1)
    items = bench.load(write(tmp_path / "data", ROWS)).items
    drawn = predictions(tmp_path / "pictures", {id: [things] for id, things in GOOD.items()})
    first = bench.score(items, drawn, tmp_path / "out")
    assert reader.detected == 6
    assert sorted(reader.classified) == ["bus", "cup", "cup"]
    again = bench.score(items, drawn, tmp_path / "out")
    assert (reader.detected, len(reader.classified)) == (6, 3)
    assert values(again) == values(first) and values(first)["overall"] == 1.0

    paint(tmp_path / "pictures/00000_0.png", (CAT, LEFT))  # a redrawn picture
    changed = bench.score(items, drawn, tmp_path / "out")
    assert reader.detected == 7
    assert values(changed)["single_object"] == 0.0

    other = GenEval(detector=Reader("other weights"), colours=reader, samples=1)
    other.score(items, drawn, tmp_path / "out")
    assert other._detector.detected == 6


def test_missing_and_damaged_pictures_are_counted_and_not_scored(tmp_path, bench):
    items = bench.load(write(tmp_path / "data", ROWS)).items
    drawn = predictions(tmp_path / "p", {id: [things] * 2 for id, things in GOOD.items()})
    del drawn["00000"]
    drawn["00001"] = Prediction("00001", error="out of memory")
    drawn["00002"] = Prediction("00002")
    drawn["00003"].pictures[0].unlink()
    drawn["00003"].pictures[1].write_bytes(b"no picture")
    drawn["00004"].pictures[1].unlink()
    scored = bench.score(items, drawn, tmp_path / "out")
    assert scored.unscored == {
        "00000": "no picture was drawn",
        "00001": "out of memory",
        "00002": "no picture was drawn",
        "00003": "drawn picture: missing image",
    }
    assert scored.details == {"pictures": 3, "pictures_missing": 9}
    assert values(scored) == {"mean_of_2_tags": 1, "position": 1, "color_attr": 1, "images": 1}
    assert any("9 of 12 pictures" in line for line in scored.warnings)
    assert any("no pictures for single_object, two_object" in line for line in scored.warnings)


def test_pictures_are_laid_out_for_the_reference_scorer(tmp_path, bench):
    items = bench.load(write(tmp_path / "data", ROWS)).items
    drawn = predictions(tmp_path / "p", {"00004": [GOOD["00004"], []]})
    jpeg = tmp_path / "p" / "one.jpg"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(jpeg)
    drawn["00000"] = Prediction("00000", pictures=(jpeg,))
    for _ in range(2):  # again: what lay there is replaced
        bench.score(items, drawn, tmp_path / "out")
    official = tmp_path / "out/official"
    names = sorted(str(file.relative_to(official)) for file in official.rglob("*.*"))
    assert names == [
        "00000/metadata.jsonl",
        "00000/samples/0000.png",
        "00004/metadata.jsonl",
        "00004/samples/0000.png",
        "00004/samples/0001.png",
    ]
    assert json.loads((official / "00004/metadata.jsonl").read_text()) == ROWS[4]
    with Image.open(official / "00000/samples/0000.png") as image:
        assert (image.format, image.size) == ("PNG", (8, 8))


# ---- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "not valid json"),
        ({"include": [{"class": "dog", "count": 1}], "prompt": "x"}, "missing column tag"),
        ({**ROWS[0], "tag": "colours"}, "unknown tag 'colours'"),
        ({**ROWS[0], "prompt": " "}, "empty prompt"),
        ({**ROWS[0], "prompt": 3}, "prompt is int, expected str"),
        ({**ROWS[0], "include": []}, "empty include"),
        ({**ROWS[0], "include": {"class": "dog"}}, "include is dict, expected list"),
        ({**ROWS[0], "include": ["dog"]}, "an object is no mapping"),
        ({**ROWS[0], "include": [{"class": "dragon", "count": 1}]}, "unknown class"),
        ({**ROWS[0], "include": [{"class": "dog"}]}, "missing column count"),
        ({**ROWS[0], "include": [{"class": "dog", "count": 0}]}, "count below 1"),
        ({**ROWS[0], "include": [{"class": "dog", "count": True}]}, "count is bool, expected int"),
        (
            {**ROWS[0], "include": [{"class": "dog", "count": 1, "color": "teal"}]},
            "unknown color",
        ),
        (
            {**ROWS[0], "include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]},
            "position refers to no earlier object",
        ),
        (
            {
                **ROWS[0],
                "include": [
                    {"class": "cat", "count": 1},
                    {"class": "dog", "count": 1, "position": ["near", 0]},
                ],
            },
            "position is no [relation, landmark]",
        ),
        (
            {**ROWS[0], "exclude": [{"class": "dog", "count": "three"}]},
            "count is str, expected int",
        ),
    ],
)
def test_a_malformed_row_is_counted_and_keeps_the_numbers_of_the_others(tmp_path, row, reason):
    loaded = GenEval().load(write(tmp_path, [ROWS[0], row, ROWS[1]]))
    assert [item.id for item in loaded.items] == ["00000", "00002"]
    assert loaded.skips.counts() == {reason: 1}
    assert loaded.skips.skipped == {"00001": reason}


def test_other_detectors_may_know_other_classes(tmp_path, bench):
    row = {
        "tag": "colors",
        "include": [{"class": "disc", "count": 1, "color": "cyan"}],
        "prompt": "a cyan disc",
    }
    source = write(tmp_path, [row])
    assert bench.load(source).items[0].reference["include"] == row["include"]
    with pytest.raises(UserError, match="no row is a GenEval prompt .*unknown class"):
        GenEval().load(source)


def test_empty_fields_of_a_table_are_dropped(tmp_path):
    filled = {"class": "dog", "count": 1, "color": None, "position": None}
    loaded = GenEval().load(write(tmp_path, [{**ROWS[0], "include": [filled], "exclude": None}]))
    assert loaded.items[0].reference["include"] == [{"class": "dog", "count": 1}]
    assert "exclude" not in loaded.items[0].reference


def test_a_clone_of_the_repository_will_do(tmp_path):
    write(tmp_path / "prompts", ROWS)
    (tmp_path / "prompts" / "generation_prompts.txt").write_text("a dog\n")
    loaded = GenEval().load(DataSource(root=tmp_path))
    assert len(loaded.items) == 6
    assert loaded.dataset.id == tmp_path.name


def test_a_limit_takes_as_many_of_every_kind(tmp_path):
    rows = [row for row in ROWS for _ in range(5)]  # sorted by kind, as the real file is
    loaded = GenEval().load(write(tmp_path, rows), limit=8)
    tags = [item.reference["tag"] for item in loaded.items]
    assert tags == ["single_object"] * 2 + ["two_object"] * 2 + list(TAGS[2:])
    assert [item.id for item in loaded.items][:3] == ["00000", "00001", "00005"]


def test_a_layout_that_is_not_genevals(tmp_path):
    with pytest.raises(UserError, match="no official data set on the Hub; download prompts/"):
        GenEval().load(DataSource())
    (tmp_path / "questions.jsonl").write_text('{"question": "what?", "answer": "x"}\n')
    with pytest.raises(UserError, match="has no column 'tag', 'include', 'prompt'"):
        GenEval().load(DataSource(root=tmp_path))


def test_unknown_settings():
    with pytest.raises(UserError, match="geneval has no prompt variant 'rewritten'"):
        GenEval(prompt="rewritten")
    with pytest.raises(UserError, match="samples is 0"):
        GenEval(samples=0)


# ---- with checkpoints in the real format ---------------------------------------------------------


def test_checkpoints_from_folders(tmp_path):
    bench = GenEval(
        detector=tiny_scorers.mask2former(), colours=str(tiny_scorers.clip()), device="cpu"
    )
    items = bench.load(write(tmp_path / "data", ROWS)).items
    bench.prepare()
    bench._detector._short_edge = 32
    drawn = predictions(tmp_path / "p", {id: [things] for id, things in GOOD.items()})
    scored = bench.score(items, drawn, tmp_path / "out")
    assert scored.details["pictures"] == 6
    assert "at 32 px" in scored.scorer["detector"]
    rows = [json.loads(line) for line in (tmp_path / "out/detections.jsonl").open()]
    assert all(row["detections"] for row in rows)
    assert bench._detector.checkpoint._model is None


def test_prepare_finds_a_wrong_model_before_anything_is_drawn():
    with pytest.raises(UserError, match="nobody/nothing"):
        GenEval(detector="nobody/nothing").prepare()
    with pytest.raises(UserError, match="give a CLIP checkpoint"):
        GenEval(detector=tiny_scorers.mask2former(), colours=tiny_scorers.dinov2()).prepare()
