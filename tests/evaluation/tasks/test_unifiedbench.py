"""From a folder of numbered pictures to scores, with encoders whose cosines are known."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.scorers import tiny_scorers
from unigame.backbones.base import CAPTION_QUESTION
from unigame.data import CorruptImage
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.tasks.unifiedbench import rules as cosines
from unigame.evaluation.tasks.unifiedbench.task import UnifiedBench
from unigame.reports.metrics import value_of


class Colour:
    """Encodes a picture as its first pixel; counts the pictures."""

    def __init__(self, name, scale=(1, 1, 1), broken=()):
        self.name, self.scale, self.broken, self.encoded = name, np.array(scale), broken, 0

    def encode(self, images):
        self.encoded += len(images)
        vectors = np.array([image.getpixel((0, 0)) for image in images]) * self.scale
        return np.array([v if tuple(v) not in self.broken else v * np.nan for v in vectors])


def four():
    return [Colour("one"), Colour("two", (1, 0, 0)), Colour("three", (0, 1, 1)), Colour("four")]


def picture(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), rgb).save(path)
    return path


def folder(root, names=("10.png", "2.png", "1.png")):
    for name in names:
        picture(root / name, (int("".join(filter(str.isdigit, name)) or 7), 100, 0))
    return DataSource(root=root)


def redrawn(items, root, rgb=(100, 100, 0)):
    return {
        item.id: Prediction(item.id, "a caption", (picture(root / f"{item.id}.png", rgb),))
        for item in items
    }


def values(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics if metric.units}


# ---- items ---------------------------------------------------------------------------------------


def test_pictures_come_in_natural_order_and_stems_are_ids(tmp_path):
    loaded = UnifiedBench().load(folder(tmp_path))
    assert [item.id for item in loaded.items] == ["1", "2", "10"]
    assert loaded.items[1].pictures[0]().getpixel((0, 0)) == (2, 100, 0)
    assert loaded.items[2].reference["file"] == "10.png"
    assert loaded.dataset.id == tmp_path.name
    assert [item.id for item in UnifiedBench().load(folder(tmp_path), limit=2).items] == ["1", "2"]


def test_the_prompts(tmp_path):
    source = folder(tmp_path)
    uae = UnifiedBench().load(source).items[0].prompt
    assert uae.startswith("You are an expert vision-language model.\nYour task is: Given an input")
    assert uae.endswith("output the full description.")
    assert UnifiedBench(prompt="bare").load(source).items[0].prompt == CAPTION_QUESTION


@pytest.mark.parametrize("inner", ["Image", "images"])
def test_pictures_may_lie_in_a_folder_of_their_own(tmp_path, inner):
    folder(tmp_path / inner)
    (tmp_path / "README.md").write_text("pictures of mine")
    assert len(UnifiedBench().load(DataSource(root=tmp_path)).items) == 3


def test_other_files_twins_and_damaged_pictures(tmp_path):
    source = folder(tmp_path, ("1.png", "2.png", "2.jpg", "cat.png"))
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("hello")
    loaded = UnifiedBench().load(source)
    assert [item.id for item in loaded.items] == ["1", "2", "3", "cat"]
    assert loaded.skips.counts() == {"another file has this id": 1}
    with pytest.raises(CorruptImage):
        loaded.items[2].pictures[0]()


def test_the_fingerprint_covers_the_pictures(tmp_path):
    before = UnifiedBench().load(folder(tmp_path)).dataset.fingerprint
    picture(tmp_path / "2.png", (9, 9, 9))
    assert UnifiedBench().load(DataSource(root=tmp_path)).dataset.fingerprint != before


def test_a_table_of_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": picture(tmp_path / "a.png", (5, 6, 7)).read_bytes(), "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": cells}, features=features)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    loaded = UnifiedBench().load(DataSource(root=tmp_path / "data"))
    assert [item.id for item in loaded.items] == ["0"]
    assert loaded.items[0].pictures[0]().getpixel((0, 0)) == (5, 6, 7)
    assert loaded.skips.counts() == {"missing column image": 1}


def test_no_pictures(tmp_path):
    with pytest.raises(UserError, match="give a folder of numbered pictures with --data-root"):
        UnifiedBench().load(DataSource())
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds no pictures .*it holds notes.txt"):
        UnifiedBench().load(DataSource(root=tmp_path))
    with pytest.raises(UserError, match="no folder"):
        UnifiedBench().load(DataSource(root=tmp_path / "missing"))


# ---- scores --------------------------------------------------------------------------------------


def test_the_overall_is_the_mean_of_the_encoders_means_times_100(tmp_path):
    bench = UnifiedBench(encoders=four())
    items = bench.load(folder(tmp_path / "data")).items
    scored = bench.score(items, redrawn(items, tmp_path / "drawn"), tmp_path / "out")
    n = np.array([1, 2, 10])
    # (n, 100, 0) against (100, 100, 0); the second encoder sees red only, the third green and blue
    plain = 100 * float(np.mean((100 * n + 10_000) / np.hypot(n, 100) / np.hypot(100, 100)))
    found = values(scored)
    assert found == pytest.approx(
        {
            "overall": (2 * plain + 200) / 4,
            "cosine_one": plain,
            "cosine_two": 100,
            "cosine_three": 100,
            "cosine_four": plain,
        }
    )
    assert scored.metrics[0].name == "overall"
    assert scored.metrics[0].label == "UnifiedBench (one, two, three, four)"
    assert list(scored.scorer["encoders"]) == ["one", "two", "three", "four"]
    assert {unit.cluster for unit in scored.metrics[0].units} == {"1", "2", "10"}
    assert (scored.warnings, scored.unscored) == ([], {})


def test_fewer_than_four_encoders_are_never_called_unifiedbench(tmp_path):
    bench = UnifiedBench(encoders=four()[:3])
    items = bench.load(folder(tmp_path / "data")).items
    scored = bench.score(items, redrawn(items, tmp_path / "drawn"), tmp_path / "out")
    assert scored.metrics[0].name == "proxy_3_encoders"
    assert scored.metrics[0].label == "Proxy, not UnifiedBench (one, two, three)"
    assert "overall" not in values(scored)
    assert "3 encoders (one, two, three) is a proxy, not UnifiedBench" in scored.warnings[0]


def test_an_encoder_that_fails_everywhere_makes_it_a_proxy(tmp_path):
    encoders = [*four()[:3], Colour("four", (0, 0, 0))]  # zero vectors have no direction
    bench = UnifiedBench(encoders=encoders)
    items = bench.load(folder(tmp_path / "data")).items
    scored = bench.score(items, redrawn(items, tmp_path / "drawn"), tmp_path / "out")
    assert scored.metrics[0].name == "proxy_3_encoders"
    assert any("four gave no figure for 3 pictures" in line for line in scored.warnings)


def test_a_cosine_that_is_no_number_is_dropped_from_its_encoder_only(tmp_path):
    encoders = [*four()[:3], Colour("four", broken=[(10, 100, 0)])]
    bench = UnifiedBench(encoders=encoders)
    items = bench.load(folder(tmp_path / "data")).items
    scored = bench.score(items, redrawn(items, tmp_path / "drawn"), tmp_path / "out")
    assert scored.details["pairs"] == {"one": 3, "two": 3, "three": 3, "four": 2}
    n = np.array([1, 2])
    plain = 100 * float(np.mean((100 * n + 10_000) / np.hypot(n, 100) / np.hypot(100, 100)))
    found = values(scored)
    assert found["cosine_four"] == pytest.approx(plain)
    # The encoders weigh the same, however many pictures each of them has.
    means = [found[f"cosine_{label}"] for label in ("one", "two", "three", "four")]
    assert found["overall"] == pytest.approx(np.mean(means))
    assert scored.warnings == ["four gave no figure for 1 pictures; they were dropped"]
    rows = [json.loads(line) for line in (tmp_path / "out/cosines.jsonl").open()]
    assert {row["id"]: row["cosine"] for row in rows}["four/10"] is None


def test_missing_and_damaged_pictures_are_skipped_and_counted(tmp_path):
    source = folder(tmp_path / "data", [f"{i}.png" for i in range(1, 8)])
    (tmp_path / "data" / "7.png").write_bytes(b"no picture")
    bench = UnifiedBench(encoders=four())
    items = bench.load(source).items
    drawn = redrawn(items, tmp_path / "drawn")
    del drawn["1"]
    drawn["2"] = Prediction("2", error="corrupt image")
    drawn["3"] = Prediction("3", "a caption, and nothing drawn")
    drawn["4"].pictures[0].unlink()
    drawn["5"].pictures[0].write_bytes(b"no picture")
    scored = bench.score(items, drawn, tmp_path / "out")
    assert scored.unscored == {
        "1": "no picture was drawn",
        "2": "corrupt image",
        "3": "no picture was drawn",
        "4": "drawn picture: missing image",
        "5": "drawn picture: corrupt image",
        "7": "reference: corrupt image",
    }
    assert scored.details["pairs"] == {label: 1 for label in ("one", "two", "three", "four")}


def test_a_second_run_encodes_only_what_is_new(tmp_path):
    encoders = four()
    bench = UnifiedBench(encoders=encoders)
    items = bench.load(folder(tmp_path / "data")).items
    drawn = redrawn(items, tmp_path / "drawn")
    first = values(bench.score(items, drawn, tmp_path / "out"))
    assert [encoder.encoded for encoder in encoders] == [6] * 4
    assert values(bench.score(items, drawn, tmp_path / "out")) == first
    assert [encoder.encoded for encoder in encoders] == [6] * 4

    picture(drawn["2"].pictures[0], (0, 100, 50))  # another drawing
    assert values(bench.score(items, drawn, tmp_path / "out")) != first
    assert [encoder.encoded for encoder in encoders] == [8] * 4

    encoders[0].name = "one@other weights"
    bench.score(items, drawn, tmp_path / "out")
    assert [encoder.encoded for encoder in encoders] == [14, 8, 8, 8]


def test_cosine_of_vectors():
    one = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    two = np.array([[6.0, 8.0], [0.0, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosines.cosine(one, two), [1.0, 0.0, np.nan])


# ---- settings ------------------------------------------------------------------------------------


def test_the_record_names_encoders_preset_and_longest_caption():
    assert UnifiedBench().variant() == {
        "prompt": "uae",
        "parser": "cosine",
        "caption_tokens": 256,
        "encoders": ["clip", "siglip", "dinov2", "dreamsim"],
        "preset": "paper",
    }
    other = UnifiedBench(encoders="clip,dinov2", caption_tokens=1000)
    assert other.max_new_tokens == 1000
    assert other.variant()["caption_tokens"] == 1000
    assert other.variant()["preset"] == "custom"
    assert UnifiedBench(encoders="uae").variant()["preset"] == "uae"


def test_unknown_settings():
    with pytest.raises(UserError, match="unifiedbench has no prompt variant"):
        UnifiedBench(prompt="lmms_eval")
    with pytest.raises(UserError, match="caption_tokens is 0"):
        UnifiedBench(caption_tokens=0)
    with pytest.raises(UserError, match="encoder 'clap' is unknown"):
        UnifiedBench(encoders="clip,clap")


def test_prepare_finds_a_missing_encoder_before_anything_is_asked():
    with pytest.raises(UserError, match="nobody/nothing"):
        UnifiedBench(encoders=[str(tiny_scorers.clip()), "nobody/nothing"]).prepare()


def test_checkpoints_from_folders(tmp_path):
    builders = (tiny_scorers.clip, tiny_scorers.siglip, tiny_scorers.dinov2, tiny_scorers.dinov3)
    bench = UnifiedBench(encoders=[str(build()) for build in builders], device="cpu")
    bench.prepare()
    items = bench.load(folder(tmp_path / "data")).items
    drawn = redrawn(items, tmp_path / "drawn")
    drawn["1"] = Prediction("1", "itself", (tmp_path / "data" / "1.png",))
    scored = bench.score(items, drawn, tmp_path / "out")
    assert scored.metrics[0].name == "overall"
    for metric in scored.metrics[1:]:
        found = {unit.cluster: unit.counts[0] for unit in metric.units}
        assert found["1"] == pytest.approx(1.0, abs=1e-6)
        assert found["10"] < 1.0 - 1e-6
    assert all(encoder.checkpoint._model is None for _, encoder in bench._open())
