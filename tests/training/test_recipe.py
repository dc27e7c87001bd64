from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from unigame.errors import UserError
from unigame.training.recipe import build_recipe, load_recipe

GOOD: dict[str, Any] = {
    "model": "janus-nano",
    "data": [{"type": "synthetic", "size": 10}],
    "training": {"max_steps": 3, "use_cpu": True},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def test_overrides_reach_every_block(recipe: Path) -> None:
    words = ["--learning_rate", "1e-4", "--perturber-steps=2", "--model", "folder/model"]
    words += ["--data.0.size", "20", "--lora.r", "4", "--buffer", "false", "--cache_codes"]
    words += ["--eval_strategy", "no", "--run_name", "17"]
    made = load_recipe(recipe, words)
    assert made.model == "folder/model"
    assert made.data == [{"type": "synthetic", "size": 20}]
    assert made.lora == {"r": 4}
    config = made.lora_config()
    assert config is not None and config.r == 4
    training, game = made.training, made.settings_of("selfplay")
    assert (training.learning_rate, game.perturber_steps, training.max_steps) == (1e-4, 2, 3)
    assert (game.buffer, training.cache_codes, training.run_name) == (False, True, "17")
    assert training.eval_strategy.value == "no"
    assert training.output_dir == "runs/mine"


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ([], "float32"),
        (["--bf16"], "bfloat16"),
        (["--bf16", "--dtype", "float32"], "float32"),
        (["--dtype", "bfloat16"], "bfloat16"),
    ],
)
def test_weights_are_loaded_as_said_or_as_they_are_trained(
    recipe: Path, words: list[str], dtype: str
) -> None:
    assert load_recipe(recipe, words).weights_dtype == dtype


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "did you mean 'learning_rate'"),
        (["--resume", "true"], r"did you mean 'resume_from_checkpoint'\?"),  # and not resume_anyway
        (["--resume_anyways"], r"did you mean 'resume_anyway'\?"),
        (["--lora.rank_patern", "1"], "did you mean 'rank_pattern'"),
        (["--dataa.0.path", "x"], "did you mean 'data'"),
        (["--data.3.path", "x"], "list of 1"),
        (["--model.name", "x"], "nothing to set inside"),
        (["learning_rate", "1"], "--key value"),
        (["--max_steps", "many"], "max_steps='many' is not a valid int"),
        (["--max_steps", "2.5"], "max_steps=2.5"),
        (["--beta", "-3"], "beta=-3"),
        (["--buffer", "maybe"], "buffer='maybe'"),
        (["--lora.r", "0"], "lora.r=0"),
        (["--lora.lora_dropout", "2"], "lora_dropout=2"),
        (["--dtype", "float16"], "dtype='float16'"),
        (["--model", "null"], "names no checkpoint"),
        (["--data", "[]"], "data is empty"),
        (["--data", "vqa"], "no data at 'vqa'"),
        (["--training", "3"], "training=3"),
        (["--methods", "selfplya"], "did you mean selfplay"),
        (["--methods", "{selfplay: 3}"], "methods.selfplay=3"),
        (["--methods", "3"], "'3'"),
        (["--selfplay.betaa", "1"], "did you mean 'beta'"),
        (["--methods", "sft", "--selfplay.beta", "1"], "--methods sft,selfplay"),
        (["--methods", "sft", "--beta", "1"], "--methods sft,selfplay"),
        (["--challenge_every", "0"], r"methods: \[sft\]"),
    ],
)
def test_wrong_overrides_name_value_and_fix(recipe: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(recipe, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        ([], {"selfplay": 0.5}),
        (["--methods", "sft"], {"sft": None}),
        (["--methods", "[sft, selfplay]"], {"sft": None, "selfplay": 0.5}),
        (["--beta", "0.25", "--methods", "sft,selfplay"], {"sft": None, "selfplay": 0.25}),
        (["--selfplay.beta", "0.25"], {"selfplay": 0.25}),
        (["--methods.selfplay.beta=0.25"], {"selfplay": 0.25}),
        (["--methods", "{selfplay: {beta: 0.25}}"], {"selfplay": 0.25}),
    ],
)
def test_methods_are_listed_and_set(
    recipe: Path, words: list[str], methods: dict[str, float | None]
) -> None:
    made = load_recipe(recipe, words)
    found = {name: getattr(made.settings_of(name), "beta", None) for name in made.methods}
    assert found == methods
    assert [method.name for method in made.build_methods()] == list(methods)
    assert made.settings_of("other") is None


def test_names_of_methods_keep_what_the_recipe_says_of_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "methods": {"selfplay": {"beta": 0.3}, "sft": {}}}))
    for words in ("selfplay,reca", "[selfplay, reca]"):
        made = load_recipe(path, ["--methods", words, "--reca.share", "0.25"])
        assert list(made.methods) == ["selfplay", "reca"]
        assert made.settings_of("selfplay").beta == 0.3
        assert made.settings_of("reca").share == 0.25
    anew = load_recipe(path, ["--methods", "{selfplay: {}}"])  # a mapping says all of it
    assert anew.settings_of("selfplay").beta == 0.5
    shipped = load_recipe("janus_nano", ["--methods", "selfplay,reca"])
    own = load_recipe("janus_nano")
    assert shipped.settings_of("selfplay") == own.settings_of("selfplay")


def test_a_recipe_of_before_methods_says_what_to_write() -> None:
    tree = {**GOOD, "training": {"beta": 0.25, "use_cpu": True}}
    with pytest.raises(UserError, match=r"training.beta .*methods: \{selfplay: \{beta: 0.25\}\}"):
        build_recipe(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- a\n- b\n", "holds list"),
        ("", "holds NoneType"),
        ("model: janus-nano\ntrainning: {}\ndata: [{type: vqa}]", "did you mean 'training'"),
        ("model: janus-nano\ndata: [{type: vqa}]\ntraining: {betaa: 1}", "did you mean 'beta'"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ok.json", '[{"image": "a.png", "question": "q", "answer": "a"}]'),
        ("ok.json", '{"image": "a.png", "question": "q", "answer": "a"}'),
        ("ok.jsonl", '{"image": "a.png"}\n{"image": "b.png"}\n'),
        ("ok.csv", "image,question\na.png,what: is: it\n"),
        ("pictures", None),
    ],
)
def test_data_where_a_recipe_belongs_are_told_where_to_go(
    tmp_path: Path, name: str, content: str | None
) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)  # type: ignore[func-returns-value]
    with pytest.raises(UserError, match=f"data goes after --data: .*--data {path}$"):
        load_recipe(path)


def test_a_recipe_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD))
    assert load_recipe(path, ["--use_cpu"]).model == GOOD["model"]


def test_own_data_beside_the_recipes_held_out_rows_are_doubted(tmp_path: Path) -> None:
    table = tmp_path / "mine.jsonl"
    table.write_text('{"image": "a.png", "question": "q", "answer": "a"}\n')
    own = ["--data", str(table)]
    (line,) = load_recipe("janus_nano", own).doubts
    assert "'synthetic'" in line and "--eval_data FILE, or --eval_strategy no" in line
    assert load_recipe("janus_nano", ["--data.0.type", "hf", "--data.0.path", "x"]).doubts
    for words in (
        [*own, "--eval_data", str(table)],
        [*own, "--eval_strategy", "no"],
        ["--data.0.size", "10"],
        [],
    ):
        assert load_recipe("janus_nano", words).doubts == ()


def test_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="janus_pro_7b"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="janus_nano"):
        load_recipe("no_such_recipe")


SHIPPED = sorted(
    Path(str(item)).stem
    for item in (files("unigame") / "recipes").iterdir()
    if item.name.endswith(".yaml")
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name: str) -> None:
    made = load_recipe(name, ["--use_cpu", "--bf16", "false"])
    assert made.model
    assert made.training.output_dir == f"runs/{name}"


def test_the_expected_recipes_are_shipped() -> None:
    assert {"janus_nano", "janus_pro_1b", "janus_pro_7b", "sft_joint"} <= set(SHIPPED)


def test_the_steps_of_reca_go_on_from_each_other() -> None:
    words = ["--use_cpu", "--bf16", "false"]
    first, second = (load_recipe(name, words) for name in ("sft_joint", "janus_pro_reca"))
    third = load_recipe("janus_pro_reca_game", words)
    assert second.adapter == first.training.output_dir
    assert third.adapter == second.training.output_dir
    assert first.model == second.model == third.model and first.lora == second.lora == third.lora
    assert list(second.methods) == ["reca"] and list(third.methods) == ["selfplay"]
    assert set(load_recipe("janus_pro_all", words).methods) == {"reca", "selfplay"}


def test_paper_settings_of_the_7b_recipe() -> None:
    made = load_recipe("janus_pro_7b", ["--use_cpu", "--bf16", "false"])
    training, game = made.training, made.settings_of("selfplay")
    assert (game.perturber_learning_rate, training.learning_rate) == (5e-3, 2e-5)
    assert (game.eps_max, game.eps_init, game.eps_mode) == (0.02, 0.01, "absolute")
    assert (game.beta, game.hard_quantile, game.clip_floor) == (0.5, 0.6, 0.3)
    assert (training.max_steps, game.buffer_capacity) == (16000, 50)
    assert (made.lora["r"], made.lora["lora_alpha"], made.lora["lora_dropout"]) == (16, 32, 0.05)
    assert [source["type"] for source in made.data] == ["vqa", "captions"]


def test_passes_that_were_typed_take_the_place_of_the_recipes_steps(recipe: Path) -> None:
    made = load_recipe(recipe, ["--num_train_epochs", "2"])
    assert (made.training.max_steps, made.training.num_train_epochs) == (-1, 2)
    assert made.found == ("training: 2 passes over the data, not the recipe's max_steps=3",)
    for words in (["--max_steps", "5"], ["--num_train_epochs", "2", "--max_steps", "-1"]):
        assert load_recipe(recipe, words).found == ()
    with pytest.raises(UserError, match=r"--max_steps 5 and --num_train_epochs 2.*leave one"):
        load_recipe(recipe, ["--training.max_steps=5", "--num-train-epochs", "2"])


def test_passes_beside_steps_in_a_recipes_file_are_said_to_be_idle(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "training": {"max_steps": 3, "num_train_epochs": 2}}))
    assert load_recipe(path, ["--use_cpu"]).doubts == (
        "num_train_epochs=2 acts on nothing: max_steps=3 ends the run; leave one of them out of "
        "the recipe",
    )
    assert load_recipe(path, ["--use_cpu", "--num_train_epochs", "1"]).doubts == ()
    assert load_recipe(path, ["--use_cpu", "--max_steps", "1"]).doubts == ()
    assert load_recipe("sft_joint", ["--use_cpu", "--max_steps", "1"]).doubts == ()
