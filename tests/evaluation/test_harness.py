"""Asking once, in any order and any batch; going on after a stop; refusing to mix what differs."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.data.files import png
from tests.evaluation.fakes import (
    Copy,
    Easel,
    FakeBackbone,
    OneByOneBackbone,
    Quiz,
    prompts,
    questions,
)
from tests.evaluation.tables import write_parquet
from tests.tiny import shared_tiny_janus
from tests.tiny_bagel import shared_tiny_bagel
from unigame.backbones import load_backbone
from unigame.backbones.common.seeded import draw_seeded
from unigame.data.pictures import TableCell
from unigame.errors import UserError
from unigame.evaluation.ask import Drawing, cut, picture_name
from unigame.evaluation.bars import Bars
from unigame.evaluation.base import DataSource, Item, Scored
from unigame.evaluation.batching import (
    BatchSize,
    automatic_size,
    in_batches,
    in_order,
    numbers_of_a_token,
)
from unigame.evaluation.run import evaluate
from unigame.evaluation.running import asked
from unigame.evaluation.source import picture
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.pope.task import POPE
from unigame.reports.record_text import print_record


def run(backbone: FakeBackbone, output: Path, *benchmarks: Quiz, **options: Any) -> dict[str, Any]:
    return evaluate(backbone, benchmarks, sources={}, output=output, **options)


def texts(output: Path, name: str = "quiz") -> dict[str, str]:
    store = JsonlStore(output / name / "predictions.jsonl")
    return {id: row["text"] for id, row in store.items()}


def drawings(output: Path, name: str = "easel") -> dict[str, bytes]:
    folder = output / name / "pictures"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


# ---- the record ----------------------------------------------------------------------------------


def test_every_item_is_asked_once_and_the_record_says_what_was_done(tmp_path):
    backbone, items = FakeBackbone(), questions(10, bad=[4])
    record = run(backbone, tmp_path, Quiz(items, prompt="bare"), batch_size=4)
    assert sorted(backbone.asked) == sorted(item.prompt for item in items if item.id != "q4")
    assert json.loads((tmp_path / "results.json").read_text()) == record
    entry = record["benchmarks"]["quiz"]
    assert entry["counts"] == {
        "items": 10,
        "scored": 9,
        "unparsed": 0,
        "skipped": {"missing column question": 1, "corrupt image": 1},
        "unscored": {},
    }
    metric = entry["metrics"]["accuracy"]
    assert metric["value"] == 100 and metric["n"] == 9 and metric["headline"] is True
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert entry["variant"] == {"prompt": "bare", "parser": "plain"}
    assert entry["dataset"]["id"] == "quiz-data" and len(entry["dataset"]["fingerprint"]) == 64
    assert entry["generation"] == {
        "decoding": "greedy",
        "max_new_tokens": 16,
        "stop": ["\n\n"],
        "max_images": 3,
    }
    assert record["model"]["family"] == "fake" and len(record["model"]["sha256"]) == 64
    assert record["format"] == "unigame-evaluation/1"
    row = JsonlStore(tmp_path / "quiz" / "predictions.jsonl")["q4"]
    assert row["error"] == "corrupt image" and row["text"] == ""


def test_the_mode_of_the_model_is_restored(tmp_path):
    backbone = FakeBackbone().train()
    run(backbone, tmp_path, Quiz(questions(2)))
    assert backbone.training


def test_scorers_are_prepared_before_anything_is_asked(tmp_path):
    class Broken(Quiz):
        name = "broken"

        def prepare(self) -> None:
            raise UserError("no such judge")

    backbone = FakeBackbone()
    with pytest.raises(UserError, match="no such judge"):
        run(backbone, tmp_path, Quiz(questions(2)), Broken(questions(2)))
    assert not backbone.rows and not tmp_path.joinpath("results.json").exists()


def test_a_benchmark_that_cannot_be_scored_leaves_the_others_alone(tmp_path):
    class Unlucky(Quiz):
        name = "unlucky"

        def score(self, *_: Any) -> Scored:
            raise UserError("the judge is gone")

    backbone = FakeBackbone()
    with pytest.raises(UserError, match="unlucky: the judge is gone"):
        run(backbone, tmp_path, Unlucky(questions(2)), Quiz(questions(2)))
    assert list(json.loads((tmp_path / "results.json").read_text())["benchmarks"]) == ["quiz"]
    assert len(texts(tmp_path, "unlucky")) == 2, "its predictions are kept"


def test_an_item_without_its_picture_counts_as_skipped_and_not_as_unscored_too(tmp_path):
    class Thorough(Quiz):
        def score(self, items, predictions, folder) -> Scored:
            scored = super().score(items, predictions, folder)
            scored.unscored = {"q0": "the judge was silent", "q1": "no drawing"}
            return scored

    record = run(FakeBackbone(), tmp_path, Thorough(questions(4, bad=[1])))
    counts = record["benchmarks"]["quiz"]["counts"]
    assert counts["scored"] == 2 and counts["skipped"]["corrupt image"] == 1
    assert counts["unscored"] == {"the judge was silent": 1}


def test_a_benchmark_without_a_readable_picture_is_an_error(tmp_path):
    said = r"quiz: no item was scored: all 2 skipped, 2 corrupt image \(first: q0: .+\)"
    with pytest.raises(UserError, match=said):
        run(FakeBackbone(), tmp_path, Quiz(questions(2, bad=[0, 1])))


def test_the_record_has_an_example_of_each_reason_that_something_was_skipped_for(tmp_path):
    record = run(FakeBackbone(), tmp_path, Quiz(questions(4, bad=[1, 2])))
    entry = record["benchmarks"]["quiz"]
    wrong = "q1: no kind of picture that Pillow knows"
    assert entry["examples"] == {"missing column question": "row 9", "corrupt image": wrong}
    said = io.StringIO()
    print_record(record, ["quiz"], Console(file=said, width=200))
    assert "1 missing column question (first: row 9)" in said.getvalue()
    assert f"2 corrupt image (first: {wrong})" in said.getvalue()


def test_further_benchmarks_are_added_to_the_record_of_the_same_model(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(2)))
    record = run(FakeBackbone(), tmp_path, Easel(prompts(2)))
    assert list(record["benchmarks"]) == ["quiz", "easel"]
    with pytest.raises(UserError, match=r"another model: .* sha256 was .*give another --output"):
        run(FakeBackbone(weight=1.0), tmp_path, Copy(questions(2)))


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "items"), [(Quiz, questions(11)), (Easel, prompts(11, 2))])
def test_a_stopped_run_goes_on_and_never_asks_again(tmp_path, kind, items):
    whole = FakeBackbone()
    expected = run(whole, tmp_path / "whole", kind(items), batch_size=4)
    first, second = FakeBackbone(stop_after=2), FakeBackbone()
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "parts", kind(items), batch_size=4)
    assert first.asked + first.drawn
    record = run(second, tmp_path / "parts", kind(items), batch_size=4)
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    assert sorted(first.drawn + second.drawn) == sorted(whole.drawn)
    name = kind.name
    assert texts(tmp_path / "parts", name) == texts(tmp_path / "whole", name)
    assert drawings(tmp_path / "parts", name) == drawings(tmp_path / "whole", name)
    assert record["benchmarks"][name]["metrics"] == expected["benchmarks"][name]["metrics"]
    third = FakeBackbone()
    run(third, tmp_path / "parts", kind(items), batch_size=4)
    assert not third.rows


def test_a_larger_limit_asks_only_for_the_rest(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(10)), limit=4)
    more = FakeBackbone()
    record = run(more, tmp_path, Quiz(questions(10)), limit=7)
    assert len(more.asked) == 3
    assert record["benchmarks"]["quiz"]["counts"]["items"] == 7
    again = run(FakeBackbone(stop_after=0), tmp_path, Quiz(questions(10)), limit=7)
    assert again["benchmarks"]["quiz"]["metrics"] == record["benchmarks"]["quiz"]["metrics"]


def test_a_smaller_limit_does_not_replace_a_fuller_record(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(10)))
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(UserError, match="quiz of 10 items, which 2 would replace; give another"):
        run(FakeBackbone(stop_after=0), tmp_path, Quiz(questions(10)), limit=2)
    assert (tmp_path / "results.json").read_bytes() == before
    run(FakeBackbone(), tmp_path, Easel(prompts(2)), limit=2)  # another benchmark is added
    fewer = run(FakeBackbone(), tmp_path, Quiz(questions(8)))  # no limit: the data are fewer
    assert fewer["benchmarks"]["quiz"]["counts"]["items"] == 8


def test_a_row_that_is_left_out_is_said_however_few(tmp_path, caplog):
    run(FakeBackbone(), tmp_path, Quiz(questions(10)))
    assert "Quiz: 1 rows are left out and 10 items kept" in caplog.text
    assert "1 missing column question (row 9)" in caplog.text


def test_one_picture_gives_no_interval(tmp_path):
    one = [replace(item, cluster="a.png") for item in questions(4)]
    record = run(FakeBackbone(), tmp_path, Quiz(one))
    entry = record["benchmarks"]["quiz"]
    assert entry["metrics"]["accuracy"]["clusters"] == 1
    assert "no interval for accuracy" in entry["warnings"][0]
    assert "one picture or group" in entry["warnings"][0]
    record = run(FakeBackbone(), tmp_path / "several", Quiz(questions(4)))
    assert record["benchmarks"]["quiz"]["warnings"] == []


def test_a_picture_that_was_mended_is_asked_about_and_one_still_damaged_is_not(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(4, bad=[1, 2])))
    backbone, items = FakeBackbone(), questions(4, bad=[2])
    run(backbone, tmp_path, Quiz(items))
    assert backbone.asked == [items[1].prompt]
    lines = (tmp_path / "quiz" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 5, "nothing new about q2 is written"


def test_a_lost_drawing_is_drawn_again(tmp_path):
    run(FakeBackbone(), tmp_path, Easel(prompts(3)))
    before = drawings(tmp_path)
    (tmp_path / "easel" / "pictures" / "00001.png").unlink()
    backbone = FakeBackbone()
    run(backbone, tmp_path, Easel(prompts(3)))
    assert len(backbone.drawn) == 1 and drawings(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"drawing": Drawing(seed=1)}, "seed was 0 and is now 1"),
        ({"drawing": Drawing(guidance_scale=2.0)}, "guidance_scale was 5.0 and is now 2.0"),
        ({"variants": {"prompt": "bare"}}, 'prompt was "plain" and is now "bare"'),
        ({"items": prompts(3, samples=2)}, "samples was 1 and is now 2"),
    ],
)
def test_other_settings_are_refused_before_anything_is_asked(tmp_path, options, what):
    run(FakeBackbone(), tmp_path, Easel(prompts(3)))
    backbone = FakeBackbone()
    items, variants = options.pop("items", prompts(3)), options.pop("variants", {})
    with pytest.raises(UserError, match=rf"{what}.*; give another --output"):
        run(backbone, tmp_path, Quiz(questions(2)), Easel(items, **variants), **options)
    assert not backbone.rows


def test_other_pictures_under_the_old_names_are_other_items(tmp_path):
    old, new = (
        [Item(id="1", prompt="describe", reference={"sha256": digest})] for digest in ("aa", "bb")
    )
    run(FakeBackbone(), tmp_path, Easel(old))
    with pytest.raises(UserError, match="another item '1': the data have changed"):
        run(FakeBackbone(), tmp_path, Easel(new))


def test_another_parser_scores_again_without_asking(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(3)))
    record = run(FakeBackbone(stop_after=0), tmp_path, Quiz(questions(3), parser="strict"))
    assert record["benchmarks"]["quiz"]["variant"]["parser"] == "strict"


def test_predictions_of_unknown_origin_are_refused(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(3)))
    (tmp_path / "quiz" / "run.json").unlink()
    with pytest.raises(UserError, match="no run.json beside it"):
        run(FakeBackbone(), tmp_path, Quiz(questions(3)))


# ---- order and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", [Quiz, Easel, Copy])
def test_results_do_not_depend_on_order_or_batch_size(tmp_path, benchmark):
    items = prompts(9, 2) if benchmark is Easel else questions(9)
    found = []
    for number, (given, size) in enumerate([(items, 1), (items[::-1], 4), (items, 64)]):
        output = tmp_path / str(number)
        run(FakeBackbone(), output, benchmark(given), batch_size=size)
        found.append((texts(output, benchmark.name), drawings(output, benchmark.name)))
    assert found[0] == found[1] == found[2]
    assert any(found[0])


def test_two_samples_and_two_prompts_differ_and_a_seed_is_repeated(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(FakeBackbone(), tmp_path / name, Easel(prompts(3, 2)), drawing=Drawing(seed=seed))
    one, same, other = (drawings(tmp_path / name) for name in "abc")
    assert list(one)[:2] == ["00000/samples/0000.png", "00000/samples/0001.png"]
    assert len(set(one.values())) == 6
    assert one == same and not set(one.values()) & set(other.values())


@pytest.mark.parametrize(("asked", "drawn"), [(None, 3.0), (Drawing(guidance_scale=2.0), 2.0)])
def test_where_nothing_is_asked_the_family_says_how_it_is_guided(tmp_path, asked, drawn):
    backbone, found = FakeBackbone(), []
    backbone.facts = replace(backbone.facts, guidance_scale=3.0)
    generate = backbone.generate

    def told(prompts, *, seeds, guidance_scale, **rest):
        found.append(guidance_scale)
        return generate(prompts, seeds=seeds, guidance_scale=guidance_scale, **rest)

    backbone.generate = told
    run(backbone, tmp_path, Easel(prompts(1)), drawing=asked)
    draw_seeded(backbone, ["a"], [0], guidance_scale=asked and asked.guidance_scale)
    assert found == [drawn, drawn]


def test_pictures_are_decoded_once_where_questions_share_them(tmp_path):
    backbone = FakeBackbone()
    run(backbone, tmp_path, Quiz(questions(12, per_picture=4)), batch_size=64)
    assert backbone.decoded == 3 and backbone.pictures == [3]


def test_clusters_stay_together_and_short_prompts_go_first():
    items = [
        Item("long", "x" * 50),
        Item("a2", "x" * 30, cluster="a"),
        Item("short", "x"),
        Item("a1", "x" * 3, cluster="a"),
        Item("middle", "x" * 20),
    ]
    assert [item.id for item in in_order(items)] == ["short", "middle", "a1", "a2", "long"]
    assert [item.id for item in in_order(items[::-1])] == ["short", "middle", "a1", "a2", "long"]


def test_a_batch_ends_where_a_cluster_begins_unless_it_fills_the_batch():
    items = [
        Item(f"{c}{i}", "", cluster=c) for c, n in (("a", 2), ("b", 2), ("c", 5)) for i in range(n)
    ]
    batches = [[item.id for item in batch] for batch in in_batches(items, BatchSize(3))]
    assert batches == [["a0", "a1"], ["b0", "b1"], ["c0", "c1", "c2"], ["c3", "c4"]]
    alone = [Item(str(i), "") for i in range(5)]
    assert [len(batch) for batch in in_batches(alone, BatchSize(2))] == [2, 2, 1]


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "items"), [(Quiz, questions(20)), (Easel, prompts(20)), (Copy, questions(20))]
)
def test_a_batch_that_does_not_fit_is_halved_and_stays_so(tmp_path, benchmark, items):
    small, large = FakeBackbone(fits=5), FakeBackbone()
    run(large, tmp_path / "large", benchmark(items), batch_size=16)
    run(small, tmp_path / "small", benchmark(items), batch_size=16)
    name = benchmark.name
    assert [rows for rows in small.rows if rows > 5] == [16, 8], "tried once each, never again"
    assert sorted(small.asked) == sorted(large.asked) and sorted(small.drawn) == sorted(large.drawn)
    assert texts(tmp_path / "small", name) == texts(tmp_path / "large", name)
    assert drawings(tmp_path / "small", name) == drawings(tmp_path / "large", name)


def test_a_row_that_does_not_fit_is_the_users_to_know_and_other_errors_are_faults(tmp_path):
    with pytest.raises(UserError, match="quiz: out of memory with a batch of one"):
        run(FakeBackbone(fits=0), tmp_path / "a", Quiz(questions(3)))

    class Faulty(FakeBackbone):
        def answer(self, *_: Any, **__: Any) -> list[str]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(Faulty(), tmp_path / "b", Quiz(questions(3)))


def test_the_automatic_batch_shrinks_with_the_model_and_never_below_one():
    small = FakeBackbone()
    assert automatic_size(small, "answer") == 64 and automatic_size(small, "draw") == 32
    huge = FakeBackbone()
    huge.facts = replace(
        small.facts, num_parameters=7 * 10**9, hidden_size=4096, num_image_tokens=10**6
    )
    assert automatic_size(huge, "answer") == 1


def test_the_automatic_batch_counts_the_layers_and_the_heads_that_are_cached(monkeypatch):
    """By hand, in bfloat16, with 192 tokens of text; half of what the weights leave may be used.

    BAGEL caches 2 * 28 layers * 4 heads * 128 = 28,672 numbers a token, and there are two of them;
    6 * 3584 + 3 * 18944 = 78,336 pass a layer: 135,680 numbers. A row of 1024 + 192 tokens takes
    330 MB; 80 GiB less 29.4 GB of weights leave 56.5 GB, half of which has 85 of them: 64.

    Janus-Pro-7B caches 2 * 30 * 32 * 128 = 245,760; 2 * that + 6 * 4096 + 3 * 11008 = 549,120. A
    row of 576 + 192 tokens takes 843 MB; 80 GiB less 14.8 GB leave 71.1 GB, half of which has 42:
    32, which is 27 GB. By the rule of twelve H^2 it was 16.
    """

    def size(weights: int, image_tokens: int, **config: Any) -> tuple[int, int]:
        model = FakeBackbone()
        model.facts = replace(
            model.facts,
            num_parameters=weights,
            hidden_size=config["hidden_size"],
            num_image_tokens=image_tokens,
            dtype=torch.bfloat16,
        )
        model.language_model = torch.nn.Module()
        model.language_model.config = SimpleNamespace(**config)
        left = 80 * 2**30 - 2 * weights
        monkeypatch.setattr("unigame.evaluation.batching._free_bytes", lambda device: left)
        return automatic_size(model, "answer"), automatic_size(model, "draw")

    bagel = {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    bagel |= {"hidden_size": 3584, "intermediate_size": 18944}
    assert size(14_700_000_000, 1024, **bagel) == (64, 32)
    janus = {"num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 32}
    janus |= {"hidden_size": 4096, "intermediate_size": 11008, "head_dim": 128}
    assert size(7_420_000_000, 576, **janus) == (32, 16)
    of_each_layer = {"hidden_size": 4096, "num_key_value_heads": [8, 4], "intermediate_size": None}
    assert size(7_420_000_000, 576, **of_each_layer)[0] in (16, 32), "what there is"


@pytest.mark.parametrize("checkpoint", [shared_tiny_bagel, shared_tiny_janus])
def test_families_show_the_config_of_their_language_model(checkpoint):
    backbone = load_backbone(checkpoint(), device="cpu")
    known = numbers_of_a_token(backbone)
    config = backbone.language_model.config
    config.num_hidden_layers += 1
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    assert numbers_of_a_token(backbone) == known + 4 * width


# ---- pictures ------------------------------------------------------------------------------------


def test_further_pictures_are_dropped_and_counted(tmp_path):
    pictures = tuple(
        picture(png(c)) for c in [(9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 0, 1), (9, 1, 0)]
    )
    item = Item("many", "which", pictures=pictures)
    record = run(FakeBackbone(), tmp_path / "model", Quiz([item]))
    assert texts(tmp_path / "model") == {"many": "red+green+blue which"}
    assert record["benchmarks"]["quiz"]["details"] == {"images_dropped": 2}
    record = run(FakeBackbone(), tmp_path / "user", Quiz([item]), max_images=1)
    assert texts(tmp_path / "user") == {"many": "red which"}
    assert record["benchmarks"]["quiz"]["details"] == {"images_dropped": 4}


def test_a_backbone_without_shared_pictures_or_seeds_gives_the_same(tmp_path):
    items = questions(6)
    for name, backbone in (("new", FakeBackbone()), ("old", OneByOneBackbone())):
        run(backbone, tmp_path / name, Copy(items), batch_size=4)
    assert texts(tmp_path / "new", "copy") == texts(tmp_path / "old", "copy")
    assert drawings(tmp_path / "new", "copy") == drawings(tmp_path / "old", "copy")


def test_redrawing_is_from_the_caption_alone(tmp_path):
    backbone = FakeBackbone()
    run(backbone, tmp_path, Copy(questions(4, bad=[0])))
    assert sorted(backbone.drawn) == sorted(texts(tmp_path, "copy")[f"q{i}"] for i in (1, 2, 3))


def test_replies_end_at_the_stop_strings():
    assert cut("yes\n\nbecause", ["\n\n"]) == "yes"
    assert cut("a. b, c", [",", "."]) == "a"
    assert cut(" as it is ", ["\n"]) == " as it is "


def test_names_of_pictures_are_safe_and_never_collide():
    names = [picture_name(Item(id, ""), 0) for id in ("7", "a/b", "a_b", "..", "", "x" * 300)]
    assert names[0] == "7.png" and len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    run(FakeBackbone(), tmp_path, Quiz(questions(4)))
    file = tmp_path / "quiz" / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20])
    backbone = FakeBackbone()
    run(backbone, tmp_path, Quiz(questions(4)))
    assert len(backbone.asked) == 1 and len(texts(tmp_path)) == 4


# ---- an answer belongs to its picture ------------------------------------------------------------


def shown_as(cell: Any, root: Path | None = None) -> list[Item]:
    return [
        Item("one", "what colour", pictures=(picture(cell, root),)),
        Item("two", "what colour, too", pictures=(picture(png((0, 0, 250))),)),
    ]


def cells(folder: Path, colour: tuple[int, int, int]) -> dict[str, Any]:
    """A picture of one colour in every form in which a cell may hold it."""
    data = png(colour)
    (folder / "1.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    image.load()
    loaded = TableCell([{"image": {"bytes": data, "path": None}}], 0)
    return {"path": "1.png", "bytes": data, "lazy": loaded, "image": image,
            "base64": base64.b64encode(data).decode()}  # fmt: skip


@pytest.mark.parametrize("form", ["path", "bytes", "lazy", "image", "base64"])
def test_a_picture_that_was_repaired_is_asked_about_again(tmp_path, form):
    run(
        FakeBackbone(),
        tmp_path / "out",
        Quiz(shown_as(cells(tmp_path, (250, 0, 0))[form], tmp_path)),
    )
    assert texts(tmp_path / "out")["one"] == "red what colour"
    repaired = Quiz(shown_as(cells(tmp_path, (0, 250, 0))[form], tmp_path))
    backbone = FakeBackbone()
    record = run(backbone, tmp_path / "out", repaired)
    assert texts(tmp_path / "out")["one"] == "green what colour"
    assert backbone.asked == ["what colour"], "the other picture is the same"
    entry = record["benchmarks"]["quiz"]
    assert any("1 items had changed" in line for line in entry["warnings"])
    again = run(FakeBackbone(stop_after=0), tmp_path / "out", repaired)["benchmarks"]["quiz"]
    assert again["warnings"] == [] and again["pictures"] == entry["pictures"]


def test_the_same_picture_in_another_place_is_not_asked_about_again(tmp_path):
    first = cells(tmp_path, (250, 0, 0))
    run(FakeBackbone(), tmp_path / "out", Quiz(shown_as(first["path"], tmp_path)))
    run(FakeBackbone(stop_after=0), tmp_path / "out", Quiz(shown_as(first["bytes"])))


def test_a_picture_that_is_lost_takes_its_answer_with_it(tmp_path):
    item = shown_as(cells(tmp_path, (250, 0, 0))["path"], tmp_path)
    run(FakeBackbone(), tmp_path / "out", Quiz(item))
    (tmp_path / "1.png").unlink()
    counts = run(FakeBackbone(), tmp_path / "out", Quiz(item))["benchmarks"]["quiz"]["counts"]
    assert counts["scored"] == 1 and counts["skipped"]["missing image"] == 1


def test_a_picture_that_only_a_function_knows_has_a_digest(tmp_path):
    def item(colour: str) -> Item:
        return Item("1", "describe", pictures=(lambda: Image.new("RGB", (4, 4), colour),))

    assert asked(item("red")) == asked(item("red")) != asked(item("blue"))


def test_predictions_that_do_not_say_what_they_saw_are_refused(tmp_path):
    """As earlier versions wrote them: their digest was of the words alone."""
    items = questions(3)
    run(FakeBackbone(), tmp_path, Quiz(items))
    file = tmp_path / "quiz" / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["asked"] = row.pop("request")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    backbone = FakeBackbone()
    with pytest.raises(UserError, match=r"earlier version.*'q0'.*give another --output"):
        run(backbone, tmp_path, Quiz(items))
    assert not backbone.rows


def test_old_drawings_from_words_alone_are_still_good(tmp_path):
    run(FakeBackbone(), tmp_path, Easel(prompts(3)))
    file = tmp_path / "easel" / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row.pop("request") == row["asked"] for row in rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(FakeBackbone(stop_after=0), tmp_path, Easel(prompts(3)))


@pytest.mark.parametrize("line", ['{"id": "q0"}', '{"id": "q0", "text": "x", "asked": "y"}'])
def test_a_prediction_without_its_parts_is_named(tmp_path, line):
    run(FakeBackbone(), tmp_path, Quiz(questions(2)))
    with (tmp_path / "quiz" / "predictions.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"no whole prediction for item 'q0'"):
        run(FakeBackbone(), tmp_path, Quiz(questions(2)))


# ---- replies that no rule reads ------------------------------------------------------------------


class Mumbling(Quiz):
    """A quiz of which some replies cannot be read."""

    unreadable = 0

    def score(self, items, predictions, folder) -> Scored:
        scored = super().score(items, predictions, folder)
        scored.unparsed = [item.id for item in items[: self.unreadable]]
        return scored


@pytest.mark.parametrize(("unreadable", "warned"), [(0, False), (2, False), (3, True), (20, True)])
def test_above_a_tenth_unparsed_is_a_warning_in_record_and_table(
    tmp_path, monkeypatch, capsys, unreadable, warned
):
    monkeypatch.setattr(Mumbling, "unreadable", unreadable)
    record = run(FakeBackbone(), tmp_path, Mumbling(questions(20)))
    with Bars({"quiz": "Quiz"}) as bars:
        bars.end("quiz", record["benchmarks"]["quiz"])
    print_record(record, ["quiz"])
    shown, warnings = capsys.readouterr(), record["benchmarks"]["quiz"]["warnings"]
    for text in (shown.out, shown.err, "\n".join(warnings)):
        assert (f"{unreadable} of 20" in text or f"{unreadable} (" in text) == warned
    assert f"{unreadable} of 20 replies are unparsed" in shown.out or not warned
    assert len(warnings) == warned


def test_a_benchmark_that_parses_nothing_is_shown(tmp_path, capsys):
    """As robustness: none of its replies can be unparsed."""
    record = run(FakeBackbone(), tmp_path, Quiz(questions(20)))
    del record["benchmarks"]["quiz"]["counts"]["unparsed"]
    print_record(record, ["quiz"])
    assert re.search(r"Quiz +20 +20 +- ", capsys.readouterr().out)


def test_replies_that_pope_cannot_read_are_a_warning(tmp_path):
    """The fake model answers with a colour."""
    rows = [
        {"question_id": i, "question": "Dog?", "answer": "no", "category": "popular",
         "image": {"bytes": png((250, 0, 0)), "path": None}} for i in range(12)
    ]  # fmt: skip
    write_parquet(tmp_path / "test.parquet", rows)
    source = {"pope": DataSource(root=tmp_path)}
    record = evaluate(FakeBackbone(), [POPE()], sources=source, output=tmp_path / "out")
    assert record["benchmarks"]["pope"]["warnings"][0].startswith("12 of 12 replies are unparsed")
