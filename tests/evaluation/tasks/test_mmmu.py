"""MMMU from its layouts on disk to scores; the parsers' surprises."""

from __future__ import annotations

import datasets
import pytest

from tests.data.files import BLUE, GREEN, RED, color_of, png, write_jsonl
from tests.evaluation.tables import write_parquet
from unigame.data.images import CorruptImage
from unigame.errors import UserError
from unigame.evaluation.base import DataSource, Prediction
from unigame.evaluation.tasks.mmmu import task as module
from unigame.evaluation.tasks.mmmu.rules import (
    DOMAINS,
    SUBJECTS,
    open_correct,
    parse_choice,
    parse_open,
    summarise,
)
from unigame.evaluation.tasks.mmmu.task import MMMU
from unigame.reports.metrics import value_of

ANIMALS = ["cat", "dog", "bird", "fish"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def cell(color=RED):
    return {"bytes": png(color), "path": None}


def row(id, answer="B", question="What is <image 1>?", options=ANIMALS, pictures=1, **changes):
    kind = "multiple-choice" if options else "open"
    colors = (RED, GREEN, BLUE)
    images = {f"image_{k}": cell(colors[k - 1]) if k <= pictures else None for k in range(1, 8)}
    return {
        "id": id,
        "question": question,
        "options": str(options),
        "explanation": "",
        **images,
        "img_type": "['Diagrams']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": kind,
        "subfield": "",
        **changes,
    }


ROWS = [
    row("validation_Art_1"),
    row("validation_Art_2", answer="C"),
    row("validation_Art_Theory_1", answer="8", options=[]),
    row("validation_Math_1", question="<image 2> or <image 1>?", pictures=2),
    row("validation_Math_2", options=["<image 3>", "<image 1>"], question="Which?", pictures=3),
]


def load(root, rows=ROWS, limit=None, name="validation-00000-of-00001.parquet", **variants):
    write_parquet(root / name, rows)
    return MMMU(**variants).load(DataSource(root=root), limit)


def score(loaded, replies, **variants):
    said = zip(loaded.items, replies, strict=True)
    predictions = {item.id: Prediction(item.id, text) for item, text in said}
    return MMMU(**variants).score(loaded.items, predictions, None)


# ---- from disk to scores -------------------------------------------------------------------------


def test_the_merged_set_to_scores(tmp_path):
    loaded = load(tmp_path / "mmmu")
    assert loaded.skips.counts() == {} and loaded.skips.kept == 5
    assert loaded.dataset.split == "validation" and len(loaded.dataset.fingerprint) == 64
    assert loaded.items[0].prompt == (
        "What is <image 1>?\nA. cat\nB. dog\nC. bird\nD. fish\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    scored = score(loaded, ["B", "C.", "It is 8", "(A)", "Answer: B"])
    assert value_of(scored.metrics[0]) == pytest.approx(80)
    assert scored.unparsed == [] and scored.details["random_letters"] == 0
    assert scored.details["overall_acc"] == 0.8
    assert scored.details["domains"] == {
        "Art and Design": {"acc": 1.0, "num": 3},
        "Science": {"acc": 0.5, "num": 2},
    }
    assert scored.details["subjects"]["Art_Theory"] == {"acc": 1.0, "num": 1}
    assert scored.details["question_types"]["open"] == {"acc": 1.0, "num": 1}
    assert scored.warnings == ["27 of MMMU's 30 subjects were not asked about"]


def test_pictures_are_those_marked_in_question_and_options_by_number(tmp_path):
    items = load(tmp_path).items
    shown = [[color_of(picture()) for picture in item.pictures] for item in items]
    assert shown == [["red"], ["red"], ["red"], ["red", "green"], ["red", "blue"]]
    scored = score(load(tmp_path), ["A"] * 5)
    assert scored.details["several_pictures"] == 2


def test_a_folder_for_each_subject(tmp_path):
    write_parquet(tmp_path / "Art" / "validation-00000-of-00001.parquet", ROWS[:2])
    write_parquet(tmp_path / "Math" / "validation-00000-of-00001.parquet", ROWS[3:])
    loaded = MMMU().load(DataSource(root=tmp_path))
    assert [item.reference["subject"] for item in loaded.items] == ["Art", "Art", "Math", "Math"]
    assert loaded.dataset.config == "all subjects"
    one = MMMU().load(DataSource(root=tmp_path, config="Math"))
    assert len(one.items) == 2 and one.dataset.config == "Math"


@pytest.mark.parametrize(
    ("source", "configs"),
    [
        (DataSource(), [None]),
        (DataSource(hub_id="MMMU/MMMU"), list(SUBJECTS)),
        (DataSource(hub_id="MMMU/MMMU", config="Math"), ["Math"]),
    ],
)
def test_which_configurations_are_read_from_the_hub(tmp_path, monkeypatch, source, configs):
    asked = []
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", ROWS[:1])

    def read_rows(source, *, hub_id, config, **rest):
        asked.append((source.hub_id or hub_id, config))
        return real(DataSource(root=tmp_path), hub_id=None, config=None, **rest)

    real = module.read_rows
    monkeypatch.setattr(module, "read_rows", read_rows)
    MMMU().load(source)
    assert asked == [(source.hub_id or "lmms-lab/MMMU", config) for config in configs]


def test_the_30_subjects_are_in_six_domains():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 30 and len(DOMAINS) == 6


def test_whole_numbers_are_their_text(tmp_path):
    """Rows with options or answers such as 8 were left out."""
    asked = {"question": "How many?", "image_1": None}
    rows = [
        {**row("validation_Art_1"), **asked, "options": [8, 9]},
        {**row("validation_Art_2", options=[]), **asked, "answer": 8},
        {**row("validation_Art_3", options=[]), **asked, "answer": [8, "eight"]},
        {**row("validation_Art_4"), **asked, "options": "[8, 9]"},
    ]
    for each in rows:
        each |= {f"image_{number}": None for number in range(1, 8)}
    write_jsonl(tmp_path / "validation.jsonl", rows)
    loaded = MMMU().load(DataSource(root=tmp_path))
    assert not loaded.skips.skipped
    assert [item.reference["answer"] for item in loaded.items] == ["B", "8", ["8", "eight"], "B"]
    assert loaded.items[0].reference["options"] == loaded.items[3].reference["options"]
    assert loaded.items[0].reference["options"] == ["8", "9"]


def test_limit_takes_the_first(tmp_path):
    assert [i.id for i in load(tmp_path, limit=2).items] == ["validation_Art_1", "validation_Art_2"]


# ---- prompts -------------------------------------------------------------------------------------


def test_prompt_variants(tmp_path):
    spaced = [row("validation_Art_1", question=" What is <image 1>? ", options=["cat ", " dog"])]
    torchumm, bare = (
        load(tmp_path, spaced, prompt=p).items[0].prompt for p in ("torchumm", "bare")
    )
    assert torchumm == (
        "What is <image 1>?\nA. cat\nB. dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert bare == " What is <image 1>? "
    with pytest.raises(UserError, match="mmmu has no prompt variant 'plain'; choose from lmms_ev"):
        MMMU(prompt="plain")


def test_open_questions_have_no_options(tmp_path):
    assert load(tmp_path).items[2].prompt == (
        "What is <image 1>?\n\nAnswer the question using a single word or phrase."
    )


# ---- bad rows ------------------------------------------------------------------------------------


def test_bad_rows_are_counted_by_reason(tmp_path):
    good = row("validation_Art_1")
    bad = [
        row("validation_Art_2", options="cat or dog", question_type="multiple-choice"),
        row("validation_Art_3", options=["cat"]),
        row("validation_Art_4", answer="E"),
        row("validation_Art_5", answer="?"),
        row("validation_Art_11", answer="AB"),
        row("validation_Art_12", answer=["A", ["B"]]),
        row("validation_Art_13", answer=[]),
        row("validation_Art_6", pictures=0),
        row("validation_Art_7", question_type="essay"),
        row("Art", options=["cat", "dog"]),
        row("validation_Art_8", question=None),
        row("validation_Art_1", answer="A"),
        {**row("validation_Art_9"), "question": 3},
        {**row("validation_Art_10"), "image_1": 7},
    ]
    for each in (good, *bad):
        image = each["image_1"]
        each["image_1"] = "a.png" if isinstance(image, dict) else image
    (tmp_path / "a.png").write_bytes(png())
    write_jsonl(tmp_path / "validation.jsonl", [good, *bad])
    loaded = MMMU().load(DataSource(root=tmp_path))
    assert [item.id for item in loaded.items] == ["validation_Art_1"]
    assert loaded.items[0].reference["answer"] == "B"
    assert len(loaded.skips.skipped) == len(bad)
    reasons = set(loaded.skips.counts())
    assert reasons >= {
        "options is not a list of strings",
        "options are not 2 to 26",
        "answer is not the letter of an option",
        "no answer",
        "answer is not a list of strings",
        "missing image",
        "question_type is neither multiple-choice nor open",
        "id is not split_Subject_number",
        "missing column question",
        "question is int, expected str",
        "image_1 is int, expected a picture",
    }


def test_a_corrupt_picture_is_found_when_it_is_asked_for(tmp_path):
    damaged = {"bytes": b"no picture", "path": None}
    [item] = load(tmp_path, [row("validation_Art_1", image_1=damaged)]).items
    with pytest.raises(CorruptImage, match="corrupt image"):
        item.pictures[0]()


def test_a_split_without_answers_says_so(tmp_path):
    rows = [row("test_Art_1", answer="?"), row("test_Art_2", answer="?")]
    write_parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    with pytest.raises(UserError, match="split 'test', has no answers.*--split validation"):
        MMMU().load(DataSource(root=tmp_path, split="test"))


def test_another_layout_is_named(tmp_path):
    write_parquet(tmp_path / "validation.parquet", [{"question": "?", "choices": "[]"}])
    with pytest.raises(UserError, match="no column 'id', 'options'.*it has question, choices"):
        MMMU().load(DataSource(root=tmp_path))


def test_an_unknown_subject_is_named():
    with pytest.raises(UserError, match="no configuration 'Maths'.*Marketing"):
        MMMU().load(DataSource(hub_id="MMMU/MMMU", config="Maths"))


# ---- scoring -------------------------------------------------------------------------------------


def test_items_without_a_reply_enter_no_average(tmp_path):
    loaded = load(tmp_path)
    first, second = loaded.items[:2]
    predictions = {
        first.id: Prediction(first.id, "B"),
        second.id: Prediction(second.id, error="corrupt image"),
    }
    scored = MMMU().score(loaded.items, predictions, None)
    assert value_of(scored.metrics[0]) == 100 and len(scored.metrics[0].units) == 1


def test_random_letters_are_counted_and_depend_on_the_id_alone(tmp_path):
    rows = [row(f"validation_Art_{i}") for i in range(40)]
    loaded = load(tmp_path, rows)
    scored = score(loaded, ["no idea"] * 40)
    assert len(scored.unparsed) == scored.details["random_letters"] == 40
    right = {unit.id for unit in scored.metrics[0].units if unit.counts[0]}
    assert 2 <= len(right) <= 20  # a quarter on average

    loaded.items.reverse()
    again = score(loaded, ["no idea"] * 20 + ["B"] * 20)
    drawn = {unit.id for unit in again.metrics[0].units[:20] if unit.counts[0]}
    assert drawn == right & {item.id for item in loaded.items[:20]}


def test_bagel_draws_nothing(tmp_path):
    scored = score(load(tmp_path), ["DOG", "", "8", "b", "x"], parser="bagel")
    # D is taken from "DOG"; the empty reply counts as C, which is right here.
    assert [unit.counts[0] for unit in scored.metrics[0].units] == [0, 1, 1, 0, 0]
    assert scored.details["random_letters"] == 0
    assert scored.unparsed == ["validation_Art_2", "validation_Math_1", "validation_Math_2"]


def test_answers_with_several_forms(tmp_path):
    rows = [row("validation_Art_1", answer="['0.5', 'half']", options=[])]
    for parser, right in (("official", 1), ("lmms_eval", 0)):
        loaded = load(tmp_path, rows, parser=parser)
        assert score(loaded, ["half"], parser=parser).metrics[0].units[0].counts == (right,)


@pytest.mark.parametrize(
    ("reply", "official", "lmms_eval"),
    [
        ("A,.", "RANDOM", "RANDOM"),  # each mark is stripped once: the comma stays
        ("B\n", "RANDOM", "RANDOM"),  # only a blank ends a letter
        ("It must be option C, not D.", "D", "D"),
        ("I see (B) and C", "B", "B"),  # brackets go first
        ("VISTA is B here", "B", "B"),
        ("MEDIA is what they call it", "RANDOM", "A"),
        ("C. or A. perhaps?", "RANDOM", "A"),  # no " X " anywhere: the first letter
        ("there are a bird and then a dog", "B", "B"),  # the text that is said last
        ("a bird and a dog", "RANDOM", "RANDOM"),  # not more than five words
        ("now there is a dog here", "B", "B"),
    ],
)
def test_multiple_choice_surprises(reply, official, lmms_eval):
    for variant, expected in (("official", official), ("lmms_eval", lmms_eval)):
        choice = parse_choice(reply, ANIMALS, variant, "id")
        assert ("RANDOM" if choice.random else choice.letter) == expected
        assert choice.parsed != choice.random and choice.letter in "ABCD"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("2", "B"),
        ("c", None),
        ("(C).", "C"),
        ("It is 2", "B"),
        ("12", None),
        ("1 or 2", None),
        ("Red, I think", "D"),
        ("", None),
    ],
)
def test_text_variant(reply, letter):
    choice = parse_choice(reply, ["1", "2", "3", "red"], "text", "id")
    assert (choice.letter if choice.parsed else None) == letter and not choice.random


@pytest.mark.parametrize(
    ("reply", "candidates"),
    [
        ("So the answer is 5,012.", [12.0, 5012.0]),  # the last three digits count twice
        ("It is 3. Final answer 4", [4.0]),  # ". " never splits
        ("x = 3\ny = 4", [4.0]),  # "=" counts in the last line only
        ("answer :", ["answer :"]),  # a tail of one mark is no answer
        ("so a", [" a", "a "]),
        (" A Dog.. ", ["a dog"]),
        ("-1.5e-3 or .25", [-3.0, -1.0, 0.0, 0.25, "-1.5e-3 or .25"]),
    ],
)
def test_open_candidates(reply, candidates):
    assert parse_open(reply) == candidates


def test_open_answers():
    assert open_correct(["12", "twelve"], parse_open("they are twelve"))
    assert not open_correct("a", parse_open("banana"))  # one letter needs a blank
    assert open_correct("3.141", parse_open("roughly 3.1416"))


def test_overall_is_weighted_by_questions():
    summary = summarise([("Art", True), ("Art", True), ("Math", False), ("Cooking", False)])
    assert summary["overall_acc"] == 0.5 and summary["domains"]["other"]["num"] == 1
