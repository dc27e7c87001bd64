"""A word for a text setting stays that word; a number is what people write as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from unigame.errors import UserError
from unigame.settings.yaml_words import read_yaml_file
from unigame.training.recipe import Recipe, build_recipe, load_recipe

# What YAML would read as a number, a date, a switch, nothing, or a part of itself.
WORDS = [
    "run #2",
    "#2",
    "007",
    "7.10",
    "1e5",
    "1_000",
    "0x1F",
    "0o17",
    "010",
    "12:30",
    "1:2:3",
    "2014-05-01",
    "2014-05-01 10:00:00",
    "yes",
    "no",
    "on",
    "Off",
    "True",
    "false",
    "null",
    "Null",
    "None",
    "NULL",
    "~x",
    ".inf",
    ".nan",
    "nan",
    "a: b",
    "a:",
    "[a]",
    "[a",
    "{a: 1}",
    "{a",
    "'quoted'",
    '"quoted"',
    "*star",
    "&and",
    "!bang",
    "%cent",
    "@at",
    "`tick",
    "- dash",
    "? key",
    "| bar",
    "> more",
    "<<",
    "=",
    "a\\nb",
    " spaced ",
    "é 漢字",
    "-",
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: janus-nano\n"
        "data: [{type: vqa, path: x.jsonl}, {type: hf, path: y}]\n"
        "training: {max_steps: 3, use_cpu: true}\n"
    )
    return path


def set_by(recipe: Path, key: str, word: str) -> Recipe:
    """By both ways to write an override, which must agree."""
    one = load_recipe(recipe, [f"--{key}={word}"])
    if not word.startswith("--"):
        other = load_recipe(recipe, [f"--{key}", word])
        assert other.data == one.data and other.adapter == one.adapter
        assert other.training.output_dir == one.training.output_dir
    return one


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_a_text_stays_that_word(recipe: Path, word: str) -> None:
    assert set_by(recipe, "output_dir", word).training.output_dir == word
    assert set_by(recipe, "run_name", word).training.run_name == word
    assert set_by(recipe, "training.run_name", word).training.run_name == word
    assert set_by(recipe, "data.1.path", word).data[1]["path"] == word
    assert set_by(recipe, "data.1.split", word).data[1]["split"] == word
    assert set_by(recipe, "data.0.columns.image", word).data[0]["columns"] == {"image": word}
    if word != "null":  # which takes a setting back that may be without a value
        assert set_by(recipe, "data.0.path", word).data[0]["path"] == word
        assert set_by(recipe, "adapter", word).adapter == word
        assert set_by(recipe, "model", word).model == word
        game = set_by(recipe, "similarity_model", word).settings_of("selfplay")
        assert game.similarity_model == word


@pytest.mark.parametrize(
    "word", ["007", "12:30", "no", "1e5", "2014-05-01", "1_000", "0x1F", "7.10", "True"]
)
def test_an_unquoted_word_of_a_file_stays_it_too(tmp_path: Path, word: str) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(
        f"model: {word}\ndata: [{{type: captions, path: {word}, columns: {{image: {word}}}}}]\n"
        f"training: {{output_dir: {word}, use_cpu: true}}\n"
    )
    made = load_recipe(path)
    assert (made.model, made.training.output_dir) == (word, word)
    assert made.data == [{"type": "captions", "path": word, "columns": {"image": word}}]


def test_null_takes_back_what_may_be_without_a_value(recipe: Path) -> None:
    recipe.write_text(
        recipe.read_text() + "adapter: mine\neval_data: [{type: synthetic}]\nlora: {r: 4}\n"
    )
    words = ["--adapter", "null", "--eval_data", "null", "--lora", "null"]
    made = load_recipe(recipe, [*words, "--similarity_model", "null", "--hard_batch_size", "null"])
    assert (made.adapter, made.eval_data, made.lora) == (None, [], {})
    game = made.settings_of("selfplay")
    assert game.similarity_model is None and game.hard_batch_size is None


@pytest.mark.parametrize(
    ("word", "value"),
    [("1e2", 100), ("010", 10), ("007", 7), ("1_000", 1000), ("0x10", 16), ("5.0", 5), ("+3", 3)],
)
def test_a_whole_number_in_every_spelling(recipe: Path, word: str, value: int) -> None:
    made = load_recipe(recipe, ["--max_steps", word]).training.max_steps
    assert made == value and isinstance(made, int)


@pytest.mark.parametrize(
    ("word", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("2", 2)]
)
def test_a_number_in_every_spelling(recipe: Path, word: str, value: float) -> None:
    assert load_recipe(recipe, ["--learning_rate", word]).training.learning_rate == value


@pytest.mark.parametrize("word", ["12:30", "2014-05-01", "yes", "true", "null", "~", "", "1 2"])
def test_a_word_is_no_number(recipe: Path, word: str) -> None:
    for name in ("max_steps", "learning_rate"):
        with pytest.raises(UserError, match=name):
            load_recipe(recipe, [f"--{name}={word}"])


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "1"])
def test_a_switch_in_every_spelling(recipe: Path, word: str) -> None:
    assert load_recipe(recipe, ["--cache_codes", word]).training.cache_codes is True


def test_a_text_setting_needs_a_word(recipe: Path) -> None:
    """``--output_dir --bf16`` made a folder named true."""
    for words in (["--output_dir"], ["--output_dir", "--use_cpu"], ["--data.0.path"]):
        with pytest.raises(UserError, match=words[0]):
            load_recipe(recipe, words)
    for name in ("output_dir", "run_name", "adapter", "model", "data.0.path"):
        with pytest.raises(UserError, match=name):
            load_recipe(recipe, [f"--{name}="])


def test_switches_and_resuming_stand_alone(recipe: Path) -> None:
    words = ["--cache_codes", "--resume_from_checkpoint", "--data.1.hub", "--lora.use_rslora"]
    made = load_recipe(recipe, words)
    assert made.training.cache_codes is True
    assert made.training.resume_from_checkpoint == "true"
    assert made.data[1]["hub"] is True and made.lora["use_rslora"] is True


def test_lists_and_mappings_on_the_command_line(recipe: Path) -> None:
    words = ["--data", "[{type: captions, path: 007, weight: 2}]", "--train_parts", "connector"]
    words += ["--lora.target_modules", "[q_proj, v_proj]", "--lora.rank_pattern", "{q_proj: 8}"]
    words += ["--lr_scheduler_type", "cosine_with_min_lr"]
    words += ["--lr_scheduler_kwargs", '{"min_lr": 1e-6}', "--methods", "sft"]
    words += ["--generation_weight", "1", "--report_to", "none"]
    made = load_recipe(recipe, words)
    assert made.data == [{"type": "captions", "path": "007", "weight": 2}]
    assert made.lora == {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 8}}
    assert made.training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert made.training.train_parts == ["connector"] and made.training.report_to == []


def test_python_values_are_taken_as_they_are() -> None:
    tree: dict[str, Any] = {
        "model": "m",
        "data": [{"type": "captions", "path": "007", "weight": 0.5}],
        "training": {"max_steps": 3, "use_cpu": True, "run_name": "no", "save_strategy": False},
    }
    made = build_recipe(tree)
    assert made.data == tree["data"]
    assert made.training.run_name == "no" and made.training.save_strategy == "no"


# ---- the YAML itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "model: a\nmodel: b\n",
        "training: {beta: 1, beta: 2}\n",
        "data: [{type: vqa, type: hf}]\n",
        "a: " + "[" * 40 + "]" * 40,
        "a: " + "[" * 100_000,
        "a:\n" + "".join(f"{' ' * i}- \n" for i in range(1, 60)),
        "a: " + "{b: " * 5_000 + "}" * 5_000,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
        "a: *nowhere\n",
        'a: "\\uD800"\n',
        'a: "\\0"\n',
        '"\\uD800": 1\n',
        "a: !!python/object/apply:os.system [ls]\n",
        "a: !!int x\n",
        "a: !!timestamp 2014-99-99\n",
        "? [a, b]\n: 1\n",
        "? {a: b}\n: 1\n",
        "a: 1\n---\nb: 2\n",
        "a: \x07\n",
        "\t- a\n",
        "a: 'x\n",
        "%YAML 9.9\n---\na: 1\n",
    ],
    ids=range(24),
)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="odd.yaml") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    str(caught.value).encode()  # a terminal can print it


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("model: m\ntraining:\n  beta: 1\n  anchor: 2\n  beta: 3\n")
    with pytest.raises(UserError, match=r"'beta' comes twice.*line 5"):
        load_recipe(path)


@pytest.mark.parametrize("data", [b"model: \xff\xfe\n", b"\xff\xfem\0o\0", b"\x80", b"\0\0\0"])
def test_bytes_that_are_no_text_are_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match="bytes.yaml") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read_as_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_text("# x\n" * 400_000)
    with pytest.raises(UserError, match="bytes"):
        load_recipe(path)


def test_anchors_and_merge_keys_still_work(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text("base: &base {a: 1, b: 007}\nmine: {<<: *base, a: 2}\nempty:\nnone: ~\n")
    read = read_yaml_file(path)
    assert read["mine"] == {"a": "2", "b": "007"}
    assert read["empty"] is None and read["none"] is None


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\n")
    assert read_yaml_file(path) == {"model": "m"}


@pytest.mark.parametrize("word", ["a\udcff", "\ud800", "a\0b"])
@pytest.mark.parametrize("key", ["output_dir", "model", "adapter", "data.0.path", "run_name"])
def test_words_that_are_no_text_are_one_line(recipe: Path, key: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [f"--{key}", word])
    str(caught.value).encode()


def test_a_recipe_is_plain_yaml_to_other_readers(recipe: Path) -> None:
    """Nothing of ours is needed to read one."""
    assert yaml.safe_load(recipe.read_text())["training"]["max_steps"] == 3


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, ""])
def test_a_recipe_that_no_file_can_be_named_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="no recipe"):
        load_recipe(name)


def test_a_recipe_that_may_not_be_read_is_one_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        load_recipe(recipe)
