"""What this machine does not have is one line, by its setting's name, before weights are read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import unigame.backbones
from tests.training.helpers import Records
from unigame import cli
from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import adversary_for
from unigame.system.writable import require_writable
from unigame.training import config, trackers
from unigame.training.recipe import load_recipe
from unigame.training.run import main

Train = Callable[..., None]


@pytest.fixture
def recipe(tiny_path: Path, tmp_path: Path) -> Path:
    rows = []
    for item in Records(4).items:
        item["image"].save(tmp_path / f"{item['id']}.png")
        rows.append({**item, "image": f"{item['id']}.png"})
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    source = {"type": "vqa", "path": str(table)}
    training = {
        "max_steps": 1,
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    tree = {"model": str(tiny_path), "data": [source], "eval_data": [source], "lora": {"r": 2}}
    path.write_text(yaml.safe_dump({**tree, "methods": ["sft"], "training": training}))
    return path


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(unigame.backbones, "load_backbone", load)


def refused(recipe: Path, words: list[str], *fragments: str) -> None:
    with pytest.raises(UserError) as caught:
        main(recipe, words)
    message = str(caught.value)
    assert "\n" not in message, message
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--eval_data", "null"], ["eval_strategy", "eval_data"]),
        (["--eval_data", "[]", "--eval_strategy", "epoch"], ["eval_strategy", "eval_data"]),
        (
            ["--eval_data", "null", "--eval_strategy", "no", "--eval_on_start"],
            ["eval_on_start", "eval_data"],
        ),
        (["--eval_data.0.path", "gone.jsonl"], ["eval_data", "gone.jsonl", "--eval_strategy no"]),
        (["--data.0.path", "gone.jsonl"], ["data: ", "gone.jsonl"]),
        (["--report_to", "no_such"], ["report_to", "no_such"]),
        (["--metric_for_best_model", "accuracy"], ["metric_for_best_model", "accuracy"]),
        (["--save_strategy", "best"], ["save_strategy='best'", "add --metric_for_best_model loss"]),
        (
            "--save_strategy best --metric_for_best_model loss --eval_strategy no".split(),
            ["save_strategy='best'", "--eval_strategy steps"],
        ),
        (["--torch_compile_backend", "fast"], ["torch_compile_backend", "fast"]),
        (["--optim", "lomo"], ["optim", "lomo"]),
        (["--optim", "galore_adamw"], ["optim", "galore_adamw"]),
        (["--optim_args", "fast"], ["optim_args", "fast"]),
        (
            ["--methods=selfplay", "--similarity", "clip", "--similarity_model", "gone/clip/x"],
            ["similarity_model", "gone/clip/x"],
        ),
        (
            "--methods selfplay --label_weight 1 --label_similarity clip "
            "--similarity_model ./gone".split(),
            ["similarity_model", "./gone"],
        ),
    ],
)
def test_what_is_missing_is_found_before_weights(
    recipe: Path, words: list[str], fragments: list[str]
) -> None:
    refused(recipe, words, *fragments)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("words", [["wandb"], ["tensorboard"], ["[wandb, clearml]"], ["neptune"]])
def test_a_tracker_that_is_not_installed(
    recipe: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["mlflow"])
    refused(recipe, ["--report_to", *words], "report_to", "mlflow")


@pytest.mark.usefixtures("unloaded")
def test_the_hub_that_cannot_be_reached(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        def create_repo(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("the network\nis down")

    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    refused(recipe, ["--push_to_hub", "--hub_model_id", "me/mine"], "push_to_hub", "me/mine")
    assert not (recipe.parent / "run").exists()


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_damaged_clip_folder(recipe: Path, tmp_path: Path, damage: str) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 1}
    vision = {**small, "image_size": 8, "patch_size": 4}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8}
    folder = tmp_path / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 8}')
    words = ["--methods", "selfplay", "--similarity", "clip", "--similarity_model", str(folder)]
    with pytest.raises(AssertionError, match="weights were loaded"):  # whole, it passes
        main(recipe, words)
    (folder / damage).write_text("{")
    refused(recipe, words, "similarity_model", str(folder))
    (folder / damage).unlink()
    refused(recipe, words, "similarity_model", str(folder))


# ---- evaluation that is not wanted ---------------------------------------------------------------


def test_eval_strategy_no_leaves_the_eval_files_closed(recipe: Path) -> None:
    words = ["--eval_strategy", "no", "--eval_data.0.path", "gone.jsonl"]
    assert load_recipe(recipe, words).eval_data == []
    main(recipe, words)
    assert (recipe.parent / "run" / "adapter_model.safetensors").is_file()


def test_eval_data_without_a_strategy_is_used_at_the_end(recipe: Path) -> None:
    tree = yaml.safe_load(recipe.read_text())
    del tree["training"]["eval_strategy"]
    recipe.write_text(yaml.safe_dump(tree))
    assert len(load_recipe(recipe).eval_data) == 1


# ---- a source of another type --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "source"),
    [
        ("--data.0.path x --data.0.type webdataset", {"type": "webdataset", "path": "x"}),
        ("--data.0.type hf --data.0.path x", {"type": "hf", "path": "x"}),
        ("--data.0.path x.jsonl", {"type": "vqa", "path": "x.jsonl"}),
        ("--data.0.type synthetic", {"type": "synthetic"}),
        (
            "--data.0.path x.jsonl --data.0.images pics",
            {"type": "vqa", "path": "x.jsonl", "images": "pics"},
        ),
        (
            "--data.0.columns.image pic --data.0.path x.jsonl",
            {"type": "vqa", "path": "x.jsonl", "columns": {"image": "pic"}},
        ),
    ],
)
def test_a_new_type_or_path_leaves_nothing_of_the_old_rows(
    words: str, source: dict[str, Any]
) -> None:
    made = load_recipe("janus_pro_7b", ["--use_cpu", *words.split()])
    assert made.data[0] == {**source, "weight": 0.8}
    assert made.data[1]["type"] == "captions" and made.data[1]["limit"] == 100_000


def test_a_change_within_the_same_files_keeps_the_rest() -> None:
    words = ["--use_cpu", "--data.0.images", "pics", "--data.0.questions", "q.json"]
    source = load_recipe("janus_pro_7b", words).data[0]
    assert source["annotations"].endswith("annotations.json")
    assert (source["images"], source["questions"]) == ("pics", "q.json")


def test_a_table_takes_the_place_of_questions_and_back(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m\ndata: [{type: vqa, path: t.csv, images: i, columns: {image: a}, limit: 3}]\n"
    )
    made = load_recipe(path, ["--data.0.questions", "q.json"]).data[0]
    assert made == {"type": "vqa", "questions": "q.json", "limit": 3}


def test_a_key_of_another_type_names_the_types_that_have_it() -> None:
    with pytest.raises(UserError, match=r"data.0 \(synthetic\).*'path'.*vqa.*type"):
        load_recipe("janus_nano", ["--data.0.path", "x.jsonl"])


# ---- hardware ------------------------------------------------------------------------------------


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("laptop")
def test_a_recipe_for_another_machine_can_be_looked_at() -> None:
    with pytest.raises(UserError, match="bf16") as caught:
        load_recipe("janus_pro_7b")
    assert "--use_cpu" in str(caught.value)
    plan = load_recipe("janus_pro_7b", here=False)
    assert plan.lacks and "bf16" in plan.lacks
    assert plan.training.bf16 and plan.training.per_device_train_batch_size == 4
    assert load_recipe("janus_nano", here=False).lacks is None
    assert (
        adversary_for(load_recipe("janus_pro_7b", here=False).settings_of("selfplay")).eps_max
        == 0.02
    )


@pytest.mark.usefixtures("laptop")
def test_doctor_estimates_a_recipe_that_cannot_run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from unigame.backbones.janus.size import pro_config, size_of_config
    from unigame.doctor import report as doctor

    size = size_of_config("folder", pro_config("1B"))
    monkeypatch.setattr(doctor, "_check_bundled_model", lambda: (True, "it loads"))
    monkeypatch.setattr(doctor, "size_of", lambda name: replace(size, name=name))
    monkeypatch.setattr(doctor, "published_sizes", lambda: [size])
    assert cli.main(["doctor", "--recipe", "janus_pro_7b"]) == 0
    shown = capsys.readouterr().out
    assert "This recipe" in shown and "cannot be trained here" in shown and "bf16" in shown


@pytest.mark.usefixtures("laptop")
@pytest.mark.parametrize("words", [["--bf16_full_eval", "--bf16", "false"], ["--tf32", "true"]])
def test_other_settings_of_gpus_are_named_too(words: list[str]) -> None:
    with pytest.raises(UserError, match=words[0].removeprefix("--")):
        load_recipe("janus_pro_7b", words if "tf32" not in words[0] else [*words, "--bf16=false"])


# ---- the output folder ---------------------------------------------------------------------------


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "folder",
    [
        "/proc/nowhere/x",
        "{file}",
        "{file}/below",
        "{long}",
        "{dangling}",
        "{loop}/x",
        "/dev/null/x",
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_weights(
    recipe: Path, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = {name: str(tmp_path / name) for name in ("file", "dangling", "loop")}
    folder = folder.format(**names, long="x" * 300)
    refused(recipe, ["--output_dir", folder], "output_dir", folder)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("unloaded")
def test_a_full_disk_is_found_before_weights(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(recipe, [], "output_dir", "No space left")
    assert not (recipe.parent / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UserError, match="closed"):
        require_writable(closed / "run", "output_dir")


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", "output_dir")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("kept")
    require_writable(tmp_path / "a", "output_dir")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["run #1", "[/foo]", "[bold]x", ":fire:", "a b", "é漢", "-x", "'"])
def test_a_run_in_an_odd_folder_ends_and_names_it(
    recipe: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{tmp_path}/odd/{name}"
    assert cli.main(["train", str(recipe), "--output_dir", folder]) == 0
    shown = capsys.readouterr()
    assert f"are in {folder}" in shown.out and f"--adapter {shlex.quote(folder)}" in shown.out
    assert (Path(folder) / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "runs/x/model.safetensors"),
        OSError(30, "Read-only file system", "runs/x"),
        PermissionError(13, "Permission denied", "runs/x"),
        RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed"),
        MemoryError("Unable to allocate 3 TiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_a_disk_or_memory_that_ends_in_training_is_one_line(
    recipe: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ends(*args: Any) -> None:
        raise error

    monkeypatch.setattr("unigame.training.run.run_recipe", ends)
    (recipe.parent / "run" / "checkpoint-3").mkdir(parents=True)
    assert cli.main(["train", str(recipe)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Traceback" not in shown
    assert "checkpoint-3" in shown  # what was kept


def test_safetensors_on_a_full_disk_is_one_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import SafetensorError

    def ends(*args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("unigame.training.run.run_recipe", ends)
    assert cli.main(["train", str(recipe)]) == 2
    assert "No space left" in capsys.readouterr().err


def test_a_programming_mistake_keeps_its_traceback(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*args: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("unigame.training.run.run_recipe", ends)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["train", str(recipe)])


def test_a_current_folder_that_was_deleted_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        "import os, shutil, sys; from unigame import cli; "
        "os.chdir(sys.argv[1]); shutil.rmtree(sys.argv[1]); sys.exit(cli.main(['train', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(gone)], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "current folder" in done.stderr
    shutil.rmtree(gone, ignore_errors=True)


# ---- the list of settings ------------------------------------------------------------------------


def test_help_of_a_recipe_lists_every_setting_in_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dataclasses import fields

    assert cli.main(["train", "janus_nano", "--beta", "0.125", "--help"]) == 0
    shown = capsys.readouterr().out
    for item in fields(config.UniGameConfig):
        if item.init and item.name not in config.UNSUPPORTED:
            assert f"--{item.name} " in shown, item.name
    for setting in ("--model janus-nano", "--lora.r 16", "--data.0.size 3000"):
        assert setting in shown
    assert "--selfplay.beta 0.125" in shown
    assert shown.index("Method selfplay") < shown.index("--selfplay.challenge_every")
    assert "learned | random | none" in shown and "Weight of the hard samples" in shown


@pytest.mark.usefixtures("laptop")
def test_help_of_a_recipe_for_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "janus_pro_7b", "-h"]) == 0
    assert "--data.0.questions" in capsys.readouterr().out
