"""The synthetic benchmarks are in the real schemas, and their answers are true.

An oracle that reads the pixels and works out each question from its words must get full marks from
the benchmarks' own loaders, parsers and metrics.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.synthetic.test_questions import solve
from unigame.errors import UserError
from unigame.evaluation.base import Benchmark, DataSource, Item, Prediction, Scored
from unigame.evaluation.scorers.stand_ins import (
    LayoutEncoder,
    ObjectEncoder,
    ReaderColours,
    SyntheticDetector,
    SyntheticJudge,
)
from unigame.evaluation.tasks.advqa.task import AdVQA
from unigame.evaluation.tasks.dpg.task import DPG
from unigame.evaluation.tasks.geneval.rules import TAGS, countable, judge
from unigame.evaluation.tasks.geneval.task import GenEval
from unigame.evaluation.tasks.mmbench.task import MMBench
from unigame.evaluation.tasks.mmmu.task import MMMU
from unigame.evaluation.tasks.naturalbench.task import NaturalBench
from unigame.evaluation.tasks.pope.task import POPE
from unigame.evaluation.tasks.unifiedbench.task import UnifiedBench
from unigame.evaluation.tasks.vqav2.task import VQAv2
from unigame.evaluation.tasks.wise.task import WISE
from unigame.reports.metrics import value_of
from unigame.synthetic.benchmarks import NAMES, write_benchmarks
from unigame.synthetic.benchmarks.dpg import holds
from unigame.synthetic.benchmarks.write import tree_sha256
from unigame.synthetic.dataset import SyntheticDataset, to_pil
from unigame.synthetic.knowledge import facts
from unigame.synthetic.reader import read
from unigame.synthetic.world import Scene, Thing, parse_caption

SIZE = 96
KNOWN = {fact.prompt: (fact.cell, fact.colour, fact.shape) for fact in facts()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"), size=SIZE, seed=1)


# ---- an oracle instead of a model ----------------------------------------------------------------
def seen(image: Image.Image) -> Scene:
    found = read(np.asarray(image, np.float32) / 255)
    return Scene(()).with_things([Thing(*triple) for triple in found])


def answer(item: Item) -> str:
    """Look at the picture that the question is about, and work the question out."""
    text, asked = item.prompt.lower(), 1
    if mark := re.search(r"in <image (\d)>", text):
        asked = int(mark.group(1))
    text = re.sub(r"(in )?<image \d>:?", "", text).strip()
    return solve(seen(item.pictures[asked - 1]()), text)


def draw(item: Item) -> Image.Image:
    """The scene of a caption, or of a prompt that takes knowledge."""
    triples = [KNOWN[item.prompt]] if item.prompt in KNOWN else parse_caption(item.prompt)
    return to_pil(Scene(()).with_things([Thing(*triple) for triple in triples]))


def predict(item: Item, folder: Path) -> Prediction:
    if not item.prompt or item.pictures and item.reference.get("sha256"):  # redraw
        pictures = [item.pictures[0]()]
    elif item.pictures:
        return Prediction(item.id, text=answer(item))
    else:
        pictures = [draw(item)] * item.samples
    files = []
    for i, picture in enumerate(pictures):
        files.append(folder / f"{item.id.replace('/', '-')}-{i}.png")
        picture.save(files[-1])
    return Prediction(item.id, pictures=tuple(files))


def run(benchmark: Benchmark, root: Path, folder: Path) -> tuple[list[Item], Scored]:
    loaded = benchmark.load(DataSource(root=root / benchmark.name))
    assert not loaded.skips.counts()
    predictions = {item.id: predict(item, folder) for item in loaded.items}
    scored = benchmark.score(loaded.items, predictions, folder)
    assert not scored.unparsed and not scored.unscored
    return loaded.items, scored


BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    "vqav2": lambda: VQAv2(prompt="bare"),
    "mmmu": lambda: MMMU(prompt="bare", parser="text"),
    "mmbench": lambda: MMBench(prompt="bare"),
    "pope": lambda: POPE(prompt="bare"),
    "geneval": lambda: GenEval(detector=SyntheticDetector(), colours=ReaderColours()),
    "dpg": lambda: DPG(judge=SyntheticJudge()),
    "wise": lambda: WISE(judge=SyntheticJudge()),
    "unifiedbench": lambda: UnifiedBench(
        prompt="bare", encoders=[ObjectEncoder(), LayoutEncoder()]
    ),
    "naturalbench": lambda: NaturalBench(prompt="bare"),
    "advqa": lambda: AdVQA(prompt="bare"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_gets_full_marks_from_the_real_code(
    name: str, root: Path, tmp_path: Path
) -> None:
    items, scored = run(BENCHMARKS[name](), root, tmp_path)
    headline = scored.metrics[0]
    assert value_of(headline) == pytest.approx(headline.scale)
    asked = sum(item.samples * (2 if name == "unifiedbench" else 1) for item in items)
    assert abs(asked - SIZE) <= 0.2 * SIZE


@pytest.mark.parametrize("name", ["vqav2", "mmmu", "mmbench", "pope", "naturalbench", "advqa"])
def test_one_answer_to_everything_is_far_from_full_marks(
    name: str, root: Path, tmp_path: Path
) -> None:
    benchmark = BENCHMARKS[name]()
    items = benchmark.load(DataSource(root=root / name)).items
    predictions = {item.id: Prediction(item.id, text="yes") for item in items}
    scored = benchmark.score(items, predictions, tmp_path)
    ceiling = 0.7 if name == "pope" else 0.6  # F1 of always yes is 2/3
    assert value_of(scored.metrics[0]) < ceiling * scored.metrics[0].scale


# ---- the real schemas ----------------------------------------------------------------------------
def parquet(root: Path, name: str, split: str) -> datasets.Dataset:
    (file,) = (root / name).glob(f"{split}-*.parquet")
    return datasets.Dataset(pq.read_table(file))


def test_vqav2_columns_and_ten_answers(root: Path) -> None:
    rows = parquet(root, "vqav2", "validation")
    assert isinstance(rows.features["image"], datasets.Image)
    assert {k: v.dtype for k, v in rows.features.items() if isinstance(v, datasets.Value)} == {
        **dict.fromkeys(("question_id", "image_id"), "int64"),
        **dict.fromkeys(("question", "question_type", "answer_type"), "string"),
        "multiple_choice_answer": "string",
    }
    disagreeing = 0
    for row in rows:
        said = Counter(each["answer"] for each in row["answers"])
        assert [each["answer_id"] for each in row["answers"]] == list(range(1, 11))
        assert said.total() == 10
        assert row["answer_type"] in ("yes/no", "number", "other")
        if row["answer_type"] != "number":  # numbers may be written as words
            assert said[row["multiple_choice_answer"]] >= 7
            disagreeing += len(said) > 1
    assert 0 < disagreeing < len(rows) / 2
    assert len(set(rows["question_id"])) == len(rows)


def test_mmmu_options_are_texts_of_lists_and_marks_name_the_pictures(root: Path) -> None:
    rows = parquet(root, "mmmu", "validation")
    kinds = Counter(rows["question_type"])
    assert set(kinds) == {"multiple-choice", "open"} and kinds["open"] <= len(rows) / 6
    pictures = Counter()
    for row in rows:
        assert isinstance(row["options"], str)
        shown = [k for k in range(1, 8) if row[f"image_{k}"] is not None]
        assert shown == [k for k in range(1, 8) if f"<image {k}>" in row["question"]]
        pictures[len(shown)] += 1
    assert pictures[2] and pictures[1] > 4 * pictures[2]


def test_mmbench_rotations_move_the_options_and_the_answer(root: Path) -> None:
    rows = datasets.load_dataset(
        "csv",
        data_files=str(root / "mmbench" / "dev.tsv"),
        sep="\t",
        split="train",
        keep_default_na=False,
    )
    questions: dict[int, dict[int, dict[str, Any]]] = {}
    for row in rows:
        questions.setdefault(row["index"] % 1_000_000, {})[row["index"] // 1_000_000] = row
    for rotations in questions.values():
        first = rotations[0]
        options = [str(first[k]) for k in "ABCD" if str(first[k]) != "nan"]
        assert sorted(rotations) == list(range(len(options)))
        for turn, row in rotations.items():
            assert [str(row[k]) for k in "ABCD"][: len(options)] == (
                options[turn:] + options[:turn]
            )
            assert str(row[row["answer"]]) == str(first[first["answer"]])
            assert (len(row["image"]) > 64) == (turn == 0)


def test_pope_subsets_are_balanced_and_adversarial_negatives_swap_bindings(root: Path) -> None:
    rows = parquet(root, "pope", "test")
    counts = Counter(zip(rows["category"], rows["answer"], strict=True))
    assert len(set(counts.values())) == 1 and len(counts) == 6
    swapped = Counter()
    for row in rows:
        if row["answer"] == "no":
            colour, shape = re.findall(r"\w+", row["question"])[3:5]
            things = seen(row["image"].convert("RGB")).things
            here = colour in {t.colour for t in things} and shape in {t.shape for t in things}
            swapped[row["category"]] += here
    assert swapped["adversarial"] == counts["adversarial", "no"] > swapped["random"]


def test_genevals_prompts_draw_what_their_tags_ask_for(tmp_path: Path) -> None:
    """More prompts than the oracle draws above, so that every relation is among them."""
    write_benchmarks(tmp_path, size=1600, names=["geneval"])
    lines = (tmp_path / "geneval" / "evaluation_metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert set(rows[0]) == {"tag", "include", "prompt"}
    tags = Counter(row["tag"] for row in rows)
    assert set(tags) == set(TAGS) and max(tags.values()) < 2 * min(tags.values())
    relations = set()
    for row in rows:
        image = to_pil(Scene(()).with_things([Thing(*t) for t in parse_caption(row["prompt"])]))
        objects = countable(SyntheticDetector().detect([image])[0], row["tag"])
        relations |= {each["position"][0] for each in row["include"] if "position" in each}

        def colours(name: str, found: Any, image: Image.Image = image) -> list[str]:
            return ReaderColours().classify(image, found, name)

        assert judge(row, objects, colours).correct, row
    assert relations == {"left of", "right of", "above", "below"}


def test_dpgs_columns_are_the_originals_and_every_picture_of_a_prompt_has_all_yes(
    root: Path,
) -> None:
    lines = (root / "dpg" / "dpg_bench.csv").read_text().splitlines()
    assert lines[0].split(",") == [
        *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"),
        *("category_detailed", "tuple", "question_natural_language"),
    ]
    items = DPG().load(DataSource(root=root / "dpg")).items
    depths, kinds = set(), set()
    for item in items:
        things = [Thing(*triple) for triple in parse_caption(item.prompt)]
        shown = {(t.cell, t.colour, t.shape) for t in things}
        depth: dict[int, int] = {}
        for each in item.reference["questions"]:
            depth[each["id"]] = 1 + max((depth[p] for p in each["parents"]), default=0)
            kinds.add(each["category"])
            text = each["text"]
            assert holds(text, shown) is True, text
            # An empty picture has no yes but to nothing, so no question is idle.
            assert holds(text, []) is False, text
            # A question is never true of a picture of which its parents are not.
            for one in shown:
                if any(not holds(_text(item, p), shown - {one}) for p in each["parents"]):
                    assert not holds(text, shown - {one})
        depths.add(max(depth.values()))
    assert depths == {3} and len(kinds) == 4
    assert holds("is there a moon", shown) is None


def _text(item: Item, id: int) -> str:
    (text,) = [each["text"] for each in item.reference["questions"] if each["id"] == id]
    return str(text)


def test_wise_has_legacy_ids_and_only_prompts_that_are_not_taught(root: Path) -> None:
    known = {fact.prompt: fact for fact in facts()}
    rows = [
        row
        for name in ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
        for row in json.loads((root / "wise" / f"{name}.json").read_text())
    ]
    assert all(
        list(r) == ["Prompt", "Explanation", "Category", "Subcategory", "prompt_id"] for r in rows
    )
    assert len({row["Prompt"] for row in rows}) == len(rows)
    firsts = {row["prompt_id"] for row in rows} & {1, 401, 568, 701, 801, 901}
    assert len(firsts) == 6
    assert not any(known[row["Prompt"]].taught for row in rows)


def test_the_largest_wise_keeps_the_proportions_and_is_not_taken_for_the_real_one(
    tmp_path: Path,
) -> None:
    write_benchmarks(tmp_path, size=1000, names=["wise"])
    items = WISE(judge=SyntheticJudge()).load(DataSource(root=tmp_path / "wise")).items
    assert Counter(item.reference["category"] for item in items) == {
        **{"culture": 100, "time": 42, "space": 33},
        **dict.fromkeys(("biology", "physics", "chemistry"), 25),
    }


# ---- writing -------------------------------------------------------------------------------------
def test_a_seed_fixes_every_byte_and_another_seed_none_of_the_scenes(
    root: Path, tmp_path: Path
) -> None:
    again = write_benchmarks(tmp_path / "again", size=SIZE, seed=1)
    other = write_benchmarks(tmp_path / "other", size=SIZE, seed=2)
    for name in NAMES:
        assert tree_sha256(again / name) == tree_sha256(root / name)
        assert tree_sha256(other / name) != tree_sha256(root / name)


def test_no_training_scene_is_in_a_test_set(root: Path) -> None:
    trained = {to_pil(s).tobytes() for s in SyntheticDataset("train", 3000, seed=1).scenes}
    tested = {row["image"].convert("RGB").tobytes() for row in parquet(root, "vqav2", "validation")}
    assert not trained & tested


def test_one_benchmark_is_the_same_whatever_else_is_written(root: Path, tmp_path: Path) -> None:
    write_benchmarks(tmp_path, size=SIZE, seed=1, names=["pope"])
    assert tree_sha256(tmp_path / "pope") == tree_sha256(root / "pope")
    assert not (tmp_path / "vqav2").exists()


def test_what_is_complete_is_kept_and_what_is_damaged_is_written_again(tmp_path: Path) -> None:
    names = ["advqa", "geneval"]
    write_benchmarks(tmp_path, size=16, names=names)
    questions = next((tmp_path / "advqa").glob("*questions.json"))
    prompts = tmp_path / "geneval" / "evaluation_metadata.jsonl"
    before = [questions.stat().st_mtime_ns, prompts.stat().st_mtime_ns, prompts.read_bytes()]
    prompts.write_bytes(prompts.read_bytes()[:50])  # as if it had been cut off
    (tmp_path / ".geneval.partial").mkdir()
    write_benchmarks(tmp_path, size=16, names=names)
    assert questions.stat().st_mtime_ns == before[0]
    assert prompts.read_bytes() == before[2]
    write_benchmarks(tmp_path, size=16, seed=9, names=names)
    assert questions.stat().st_mtime_ns != before[0]


def test_an_interruption_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unigame.synthetic.benchmarks import write

    def stop(folder: Path, size: int, rng: Any) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(write.WRITERS, "geneval", stop)
        with pytest.raises(KeyboardInterrupt):
            write_benchmarks(tmp_path, size=16, names=["geneval"])
    assert not (tmp_path / "geneval").exists()
    write_benchmarks(tmp_path, size=16, names=["geneval"])
    assert [p.name for p in (tmp_path / "geneval").iterdir()] == ["evaluation_metadata.jsonl"]


def test_somebody_elses_data_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "real.parquet").write_text("real")
    with pytest.raises(UserError, match="not written by unigame"):
        write_benchmarks(tmp_path, names=["vqav2", "pope"])
    assert [p.name for p in tmp_path.iterdir()] == ["pope"]
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no manifest"):
        write_benchmarks(tmp_path, names=["vqav2"])


def test_bad_arguments_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown benchmark 'popr'; choose from vqav2"):
        write_benchmarks(tmp_path, names=["popr"])
    with pytest.raises(UserError, match="size is 3; give 8 to 10000"):
        write_benchmarks(tmp_path, size=3)
