"""MMBench from parquet and tsv to CircularEval; rotations, pointers and parsers."""

from __future__ import annotations

import base64
import csv

import datasets
import pytest

from tests.data.files import BLUE, RED, color_of, png, write_jsonl
from tests.evaluation.tables import write_parquet
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.tasks.mmbench.rules import build_prompt, lmms_eval, vlmevalkit
from unigame.evaluation.tasks.mmbench.task import MMBench
from unigame.reports.metrics import value_of

ANIMALS = {"A": "teddy bear", "B": "rabbit", "C": "cat", "D": "dog"}
ROTATION = 1_000_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def question(base, options=("cat", "dog", "bird"), answer="cat", color=RED, **changes):
    """All rotations of one question, in the columns of ``lmms-lab/MMBench``."""
    rows = []
    for turn in range(len(options)):
        moved = options[-turn:] + options[:-turn] if turn else options
        cells = dict(zip("ABCD", moved, strict=False))
        rows.append(
            {
                "index": base + turn * ROTATION,
                "question": "What is it?",
                "hint": "nan",
                "answer": "ABCD"[moved.index(answer)],
                **{letter: cells.get(letter, "nan") for letter in "ABCD"},
                "category": "identity" if base % 2 else "scene",
                "image": {"bytes": png(color), "path": None},
                "source": "nan",
                "L2-category": "coarse_perception",
                "comment": "nan",
                "split": "dev",
                **changes,
            }
        )
    return rows


def dev_rows():
    """Rotations after all unrotated rows, as in the data."""
    rows = [*question(1), *question(2, ("yes", "no"), "no", BLUE), *question(3)]
    return sorted(rows, key=lambda row: row["index"])


def load(root, rows=None, limit=None, config=None, **variants):
    write_parquet(root / "dev-00000-of-00001.parquet", dev_rows() if rows is None else rows)
    return MMBench(**variants).load(DataSource(root=root, config=config), limit)


def score(loaded, reply, folder=None, **variants):
    said = {item.id: reply(item) for item in loaded.items}
    predictions = {id: Prediction(id, text) for id, text in said.items() if text is not None}
    return MMBench(**variants).score(loaded.items, predictions, folder)


def figures(scored):
    return {metric.name: value_of(metric) for metric in scored.metrics}


def right_letter(item):
    return item.reference["answer"]


# ---- from disk to scores -------------------------------------------------------------------------


def test_parquet_to_scores(tmp_path):
    loaded = load(tmp_path)
    ids = ["1", "2", "3", "1000001", "1000002", "1000003", "2000001", "2000003"]
    assert [item.id for item in loaded.items] == ids and loaded.skips.kept == 8
    assert (
        loaded.items[4].reference["base"] == 2 and color_of(loaded.items[4].pictures[0]()) == "blue"
    )
    assert loaded.items[1].prompt == (
        "What is it? There are several options:\nA. yes\nB. no\n\n"
        "Answer with the option's letter from the given choices directly."
    )

    def reply(item):
        """Right, but for the last rotation of question 3."""
        return "B" if item.id == "2000003" else f"({right_letter(item)})"

    scored = score(loaded, reply)
    assert figures(scored) == pytest.approx({"circular": 200 / 3, "vanilla": 100})
    assert scored.details["category"] == {"identity": 0.5, "scene": 1.0}
    assert scored.details["l2_category"] == {"coarse_perception": pytest.approx(2 / 3)}
    assert scored.unparsed == [] and scored.warnings == [] and scored.unscored == {}
    assert scored.scorer == {"matcher": "none"}


def test_a_liking_for_one_letter_earns_nothing(tmp_path):
    scored = score(load(tmp_path), lambda item: "A")
    assert figures(scored) == pytest.approx({"circular": 0, "vanilla": 200 / 3})
    assert scored.details["letters"] == {"A": 8}


def test_option_texts_are_read_too(tmp_path):
    bare = load(tmp_path, prompt="bare")
    assert {item.prompt for item in bare.items} == {"What is it?"}
    words = {"1": "a cat", "2": "no", "3": "cat"}
    assert figures(score(bare, lambda item: words[str(item.reference["base"])]))["circular"] == 100


def test_tsv_with_base64_pictures_and_pointers(tmp_path):
    rows = dev_rows()
    whole = base64.b64encode(png(BLUE)).decode()
    for row in rows:
        row["image"] = whole if row["index"] == 2 else "2"
        row["l2-category"] = row.pop("L2-category")
        row["hint"] = "" if row["index"] % ROTATION == 1 else 'Two\n"lines"'
        for letter in "CD":
            row[letter] = "" if row[letter] == "nan" else row[letter]
    (tmp_path / "mmbench").mkdir()
    with (tmp_path / "mmbench" / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    loaded = MMBench(prompt="vlmevalkit").load(DataSource(root=tmp_path / "mmbench"))
    assert len(loaded.items) == 8
    assert {color_of(item.pictures[0]()) for item in loaded.items} == {"blue"}
    assert loaded.items[0].prompt == (
        "Question: What is it?\nOptions:\nA. cat\nB. dog\nC. bird\n"
        "Please select the correct answer from the options above. \n"
    )
    assert loaded.items[1].prompt.startswith('Hint: Two\n"lines"\nQuestion: What is it?\n')
    scored = score(loaded, right_letter)
    assert figures(scored)["circular"] == 100
    assert scored.details["l2_category"] == {"coarse_perception": 1.0}


def test_indices_may_be_strings(tmp_path):
    rows = [{**row, "index": str(row["index"])} for row in dev_rows()]
    assert figures(score(load(tmp_path, rows), right_letter))["circular"] == 100


def test_options_may_be_whole_numbers(tmp_path):
    """They were left out, and with them the questions that count."""
    rows = [*question(1, ("a", "b"), "b"), *question(2, (2, 3), 3)]
    write_jsonl(tmp_path / "dev.jsonl", [{**row, "image": "1.png"} for row in rows])
    loaded = MMBench().load(DataSource(root=tmp_path))
    assert len(loaded.items) == 4 and not loaded.skips.skipped
    assert loaded.items[2].reference["options"] == {"A": "2", "B": "3"}


def test_limit_keeps_whole_questions(tmp_path):
    assert [item.reference["base"] for item in load(tmp_path, limit=4).items] == [1, 2, 1, 2, 1]
    assert {item.reference["base"] for item in load(tmp_path, limit=1).items} == {1}


def test_questions_about_one_picture_share_their_luck(tmp_path):
    loaded = load(tmp_path)
    of_base = {item.reference["base"]: item.cluster for item in loaded.items}
    assert of_base[1] == of_base[3] != of_base[2]
    for metric in score(loaded, right_letter).metrics:
        assert {unit.id: unit.cluster for unit in metric.units} == {
            str(base): cluster for base, cluster in of_base.items()
        }


def test_a_single_reply_is_judged_by_the_letter_that_is_read(tmp_path):
    item = load(tmp_path).items[0]
    bench, letter = MMBench(), right_letter(item)
    said = [f"{letter}. cat", f"({letter})", "", "the"]
    assert [bench.right(item, reply) for reply in said] == [1, 1, 0, 0]


@pytest.mark.parametrize(("name", "config"), [("DEV_EN", "cn"), ("DEV_CN", None), ("cc", "en")])
def test_a_table_named_after_another_configuration_is_refused(tmp_path, name, config):
    table = tmp_path / f"MMBench_{name}.tsv"
    table.write_text("index\tquestion\tA\tB\tanswer\timage\n")
    other = name[-2:].lower()
    with pytest.raises(UserError, match=rf"after configuration '{other}'.*mmbench={other}"):
        MMBench().load(DataSource(root=tmp_path, config=config))


def test_a_question_without_all_replies_is_left_out(tmp_path):
    scored = score(load(tmp_path), lambda i: None if i.id == "1000001" else right_letter(i))
    assert [unit.id for unit in scored.metrics[0].units] == ["2", "3"]
    assert [unit.id for unit in scored.metrics[1].units] == ["2", "3"]
    assert scored.unscored == dict.fromkeys(
        ["1", "2000001"], "another rotation of its question has no reply"
    )


def test_unparsed_replies_are_wrong_and_reported(tmp_path):
    scored = score(load(tmp_path), lambda i: "hm" if i.id == "1000001" else right_letter(i))
    assert figures(scored) == pytest.approx({"circular": 200 / 3, "vanilla": 100})
    assert scored.unparsed == ["1000001"] and scored.details["unparsed_rate"] == 1 / 8
    assert scored.warnings[0].startswith("1 of 8 replies name no option")


def test_questions_asked_only_once_are_pointed_out(tmp_path):
    scored = score(load(tmp_path, [question(1)[0], question(3)[0]]), right_letter)
    assert figures(scored)["circular"] == 100
    assert scored.warnings[0].startswith("2 of 2 questions have fewer rotations than options")


# ---- prompts -------------------------------------------------------------------------------------


def test_prompts_by_configuration():
    def ask(variant, config):
        return build_prompt("问?", {"A": "是", "B": "否"}, "看。", variant, config)

    chinese = "请直接使用所提供的选项字母作为答案回答。"
    assert ask("lmms_eval", "cn") == (
        f"看。 问? There are several options:\nA. 是\nB. 否\n\n{chinese}"
    )
    assert ask("lmms_eval", "cc") == f"问? There are several options:\nA. 是\nB. 否\n\n{chinese}"
    assert ask("bagel", "cn") == "看。\n问?\nA. 是\nB. 否\n请直接回答选项字母。"
    assert ask("bagel", "en").endswith(
        "\nAnswer with the option's letter from the given choices directly."
    )


def test_configurations_choose_folder_split_and_language(tmp_path):
    write_parquet(tmp_path / "cn" / "dev-00000-of-00001.parquet", question(1))
    write_parquet(tmp_path / "cc" / "test-00000-of-00001.parquet", question(5))
    for config, base, split in (("cn", "1", "dev"), ("cc", "5", "test")):
        loaded = MMBench().load(DataSource(root=tmp_path, config=config))
        assert loaded.items[0].id == base and loaded.dataset.split == split
        assert loaded.dataset.config == config and "请" in loaded.items[0].prompt
    with pytest.raises(UserError, match="no configuration 'de'; choose from en, cn, cc"):
        MMBench().load(DataSource(root=tmp_path, config="de"))


# ---- bad rows ------------------------------------------------------------------------------------


def test_a_bad_rotation_costs_its_question(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [row for base in range(1, 10) for row in question(base)]
    for row in rows:
        row["image"] = "a.png"
    at = {row["index"]: row for row in rows}
    at[1]["answer"] = "D"
    at[1_000_002].pop("question")
    at[3]["B"] = at[3]["C"] = "nan"
    at[2_000_004]["image"] = "77"
    at[5]["image"] = 12
    at[6]["C"] = 2.5
    at[7]["index"] = "seven"
    at[8]["answer"] = "nan"
    (tmp_path / "mm").mkdir()
    rows += [dict(at[9]), 5]
    write_jsonl(tmp_path / "mm" / "dev.jsonl", rows)
    (tmp_path / "mm" / "a.png").write_bytes(png())
    loaded = MMBench().load(DataSource(root=tmp_path / "mm"))
    assert [item.id for item in loaded.items] == ["9", "1000009", "2000009"]
    assert loaded.skips.skipped["1"] == "answer is not the letter of an option"
    assert loaded.skips.skipped["1000002"] == "missing column question"
    assert loaded.skips.skipped["3"] == "fewer than two options"
    assert loaded.skips.skipped["2000004"] == "missing image"
    assert loaded.skips.skipped["5"] == "image is int, expected a picture"
    assert loaded.skips.skipped["6"] == "C is float, expected str"
    assert loaded.skips.skipped["1000007"] == "its question's first rotation is missing"
    assert loaded.skips.skipped["8"] == "no answer"
    counts = loaded.skips.counts()
    assert counts["another rotation of its question is unusable"] == 14
    assert counts["duplicate index"] == 1 and counts["index is str, expected int"] == 1
    assert counts["row is not an object"] == 1
    assert len(loaded.skips.skipped) == len(rows) - 3 == 26


def test_a_split_without_answers_says_so(tmp_path):
    rows = question(1, split="test")
    for row in rows:
        del row["answer"]
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    with pytest.raises(UserError, match="'test', has no answers.*--split dev.*V11.tsv"):
        MMBench().load(DataSource(root=tmp_path, split="test"))


def test_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match="no column 'index', 'A', 'B'.*it has question, image"):
        load(tmp_path, [{"question": "?", "image": "a.png"}])


def test_nothing_usable_is_an_error(tmp_path):
    rows = question(1)
    rows[0]["answer"] = "D"
    with pytest.raises(UserError, match="no usable question.*1 answer is not the letter"):
        load(tmp_path, rows)


# ---- parsers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "lmms", "vlmkit"),
    [
        ("B is right, but I hesitate a lot", "B", None),  # not among the last four tokens
        ("I hesitate a lot, but it is B", "B", "B"),
        ("A is what I see here", None, None),  # an article, and not at the end
        ("A is right", "A", "A"),
        ("A is quite right", None, "A"),  # of four tokens, an article
        ("B is right, isn't it", "B", None),  # the fifth from the end
        ("it is what I see here: A", None, "A"),
        ("(B).", "B", "B"),
        (":C)", "C", "C"),
        ("**D**", None, "D"),  # only VLMEvalKit looks through the stars
        ("E", "E", None),  # no such option, but a letter to lmms-eval
        ("B. or C.", None, None),
        ("B C.", "B", None),
        ("Cannot determine the answer, a cat?", "C", "Z"),
        ("Z", None, "Z"),
        ("a CAT " + "indeed " * 6, "C", None),  # longer than twice all options
        ("Failed to obtain answer via API B", None, None),
        ("", None, None),
    ],
)
def test_parsers(reply, lmms, vlmkit):
    assert (lmms_eval(reply, ANIMALS), vlmevalkit(reply, ANIMALS)) == (lmms, vlmkit)
