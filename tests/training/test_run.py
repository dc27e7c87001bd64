"""``unigame train``: from a YAML file to an adapter, and no weight loaded before all is checked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import unigame.backbones
from tests.training.helpers import Records
from unigame import cli
from unigame.errors import UserError
from unigame.training.run import RunResult, main
from unigame.training.trainer import UniGameTrainer


@pytest.fixture
def recipe(tiny_path: Path, tmp_path: Path) -> Path:
    return write_recipe(tiny_path, tmp_path)


def write_recipe(model: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rows = []
    for item in Records(6, captions=True).items:
        item["image"].save(folder / f"{item['id']}.png")
        rows.append({**item, "image": f"{item['id']}.png"})
    table = folder / "rows.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    source = {"type": "vqa", "path": str(table)}
    settings: dict[str, Any] = {
        "max_steps": 2,
        "use_cpu": True,
        "save_steps": 1,
        "per_device_train_batch_size": 3,
        "generation_weight": 0.5,
        "disable_tqdm": True,
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    tree = {"model": str(model), "data": [source], "eval_data": [source], "lora": {"r": 2}}
    path.write_text(yaml.safe_dump({**tree, "training": settings}))
    return path


def test_a_run_leaves_an_adapter_and_says_what_to_do_next(
    recipe: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent / "run"
    main(recipe, ["--learning_rate", "1e-3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Trained 2 steps" in said and "held-out loss" in said
    assert f"--model {tiny_path} --adapter {folder}" in said
    unigame.backbones.load_backbone(tiny_path, device="cpu", adapter=folder)
    assert json.loads((folder / "unigame_config.json").read_text())["learning_rate"] == 1e-3
    with pytest.raises(UserError, match="already has 2 of 2 steps"):
        main(recipe, ["--resume_from_checkpoint", "true"])
    more = ["--learning_rate", "1e-3", "--max_steps", "3"]
    main(recipe, [*more, "--resume_from_checkpoint", str(folder / "checkpoint-1")])
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize(
    ("words", "evaluations"),
    [
        ([], 1),  # by default one, at the end
        (["--eval_strategy", "steps", "--eval_steps", "1"], 2),
        (["--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end"], 3),
        (["--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "3"], 2),
    ],
)
def test_the_trained_model_is_evaluated_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], evaluations: int
) -> None:
    evaluate, losses = UniGameTrainer.evaluate, []

    def counted(self: UniGameTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        losses.append(evaluate(self, *args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(UniGameTrainer, "evaluate", counted)
    result = main(recipe, words)
    assert result is not None and len(losses) == evaluations
    assert result.metrics["eval_loss"] == losses[-1]["eval_loss"]


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_what_to_type_next_loads_the_base_as_it_was_trained(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    done = RunResult(recipe.parent / "run", steps=2, loss=1.0, metrics={})
    monkeypatch.setattr("unigame.training.run.run_recipe", lambda recipe: done)
    main(recipe, ["--quantization", kind])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("--quantization nf4") == (2 if kind == "nf4" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "-1"], "beta=-1"),
        (["--no_such_key", "1"], "unknown setting"),
        (["--data.0.path", "gone.jsonl"], "gone.jsonl"),
        (["--data.0.type", "vqaa"], "vqaa"),
        (["--eval_data.0.colour", "red"], "unknown key 'colour'"),
    ],
)
def test_mistakes_are_found_before_any_weight_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(unigame.backbones, "load_backbone", load)
    with pytest.raises(UserError, match=message):
        main(recipe, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "janus-nan"], "'janus-nan': no such folder"),
        (["--adapter", "/nowhere"], "adapter folder '/nowhere' has no"),
        (["--lora.target_modules", "[q_proj, foo]"], "'foo' is no linear layer"),
    ],
)
def test_a_model_that_is_not_there_is_found_before_any_data_are_opened(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr("unigame.data.build_dataset", _refuse)
    with pytest.raises(UserError, match=message):
        main(recipe, words)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "red<begin_of_image>", "'<begin_of_image>' in its answer"),
        ("answer", "red " * 600, "too many tokens"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_before_any_weight_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: str, message: str
) -> None:
    _edit_rows(recipe, lambda number: {column: value})
    monkeypatch.setattr(unigame.backbones, "load_backbone", _refuse)
    with pytest.raises(UserError, match=f"^data: .*{message}"):
        main(recipe, [])


def test_the_folder_of_a_run_is_no_checkpoint_and_names_its_newest(
    recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "before"
    for step in (2, 10):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    with pytest.raises(UserError, match=f"give {folder}/checkpoint-10, or true") as caught:
        main(recipe, ["--resume_from_checkpoint", str(folder)])
    assert "resume_anyway" not in str(caught.value)


def test_own_data_are_not_said_to_be_judged_by_the_recipes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unigame.backbones, "load_backbone", _refuse)
    with pytest.raises(AssertionError):
        main(recipe, ["--data", str(recipe.parent / "rows.jsonl")])
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: the data are your own") == 1, said


def test_rows_are_looked_at_once(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    _edit_rows(recipe, lambda number: {"answer": "red " * 600} if number == 0 else {}, times=4)
    main(recipe, ["--max_steps", "1", "--methods", "sft"])
    said = [record.getMessage() for record in caplog.records if "too many" in record.getMessage()]
    assert len(said) == 2 and said[0].startswith("unigame: warning: data: 23 rows, 1 skipped"), said
    assert said[1].startswith("unigame: warning: eval_data: 23 rows, 1 skipped")


def _edit_rows(recipe: Path, change: Callable[[int], dict[str, str]], times: int = 1) -> None:
    """Change rows of the table by their number, after writing it so many times over."""
    table = recipe.parent / "rows.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] * times
    changed = ({**row, "id": str(at), **change(at)} for at, row in enumerate(rows))
    table.write_text("\n".join(json.dumps(row) for row in changed))


@pytest.fixture(scope="module")
def whole_run(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, its recipe and rows, to be copied."""
    recipe = write_recipe(tiny_path, tmp_path_factory.mktemp("whole") / "work")
    main(recipe, [])
    return Path(shutil.copytree(recipe.parent, recipe.parent.parent / "kept"))


@pytest.fixture
def finished(whole_run: Path) -> Path:
    """The folder of that run, where it was trained, as it was at its end."""
    work = whole_run.parent / "work"
    shutil.rmtree(work)
    shutil.copytree(whole_run, work)
    return work / "run"


def test_a_run_is_not_written_over_without_being_asked(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = finished.parent / "recipe.yaml"
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(unigame.backbones, "load_backbone", _refuse)
        with pytest.raises(UserError, match=r"run'.*resume_from_checkpoint.*overwrite_output_dir"):
            main(recipe, ["--beta", "0.1"])
        with pytest.raises(UserError, match="resume_from_checkpoint='true' with overwrite"):
            main(recipe, ["--overwrite_output_dir", "--resume_from_checkpoint", "true"])
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before
    main(recipe, ["--overwrite_output_dir", "--beta", "0.1", "--max_steps", "1"])
    run = json.loads((finished / "run.json").read_text())
    assert run["methods"]["selfplay"]["beta"] == 0.1
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-1"}
    assert not (finished / "_replaced").exists()


def test_the_old_run_is_there_until_the_new_one_is_done(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = finished.parent / "recipe.yaml"
    adapter = (finished / "adapter_model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(UniGameTrainer, "training_step", _refuse)
        with pytest.raises(AssertionError):
            main(recipe, ["--overwrite_output_dir", "--seed", "5"])
    assert (finished / "_replaced" / "adapter_model.safetensors").read_bytes() == adapter
    assert (finished / "_replaced" / "checkpoint-2").is_dir()
    assert not (finished / "trainer_state.json").exists()


def test_a_checkpoint_of_elsewhere_does_not_open_a_folder_that_is_taken(
    finished: Path, tmp_path: Path
) -> None:
    recipe = finished.parent / "recipe.yaml"
    other = shutil.copytree(finished / "checkpoint-1", tmp_path / "other" / "checkpoint-1")
    with pytest.raises(UserError, match="already holds a run"):
        main(recipe, ["--resume_from_checkpoint", str(other)])


def test_a_run_that_was_stopped_before_it_saved_its_result_is_finished(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, save = recipe.parent / "run", UniGameTrainer.save_model

    def only_checkpoints(self: UniGameTrainer, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("_internal_call"):
            raise KeyboardInterrupt
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(UniGameTrainer, "save_model", only_checkpoints)
        with pytest.raises(KeyboardInterrupt):
            main(recipe, [])
    main(recipe, ["--resume_from_checkpoint", "true"])
    assert "Trained 2 steps" in capsys.readouterr().out
    for name in ("adapter_model.safetensors", "perturber.safetensors"):
        assert (folder / name).read_bytes() == (folder / "checkpoint-2" / name).read_bytes()
    with pytest.raises(UserError, match="already has 2 of 2 steps"):
        main(recipe, ["--resume_from_checkpoint", "true"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora.r", "3"], "lora.r: 2 there, 3 here"),
        (["--data.0.limit", "5"], "data.0.limit: None there, 5 here"),
        (["--seed", "1"], "seed: 42 there, 1 here"),
        (["--methods", "sft"], "methods: selfplay there, sft here"),
    ],
)
def test_another_recipe_is_not_resumed_and_no_weight_loaded(
    finished: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
) -> None:
    recipe = finished.parent / "recipe.yaml"
    monkeypatch.setattr(unigame.backbones, "load_backbone", _refuse)
    more = ["--max_steps", "3", "--resume_from_checkpoint", "true"]
    with pytest.raises(UserError, match=named):
        main(recipe, [*words, *more])


def test_which_checkpoint_is_resumed_is_said_before_the_model_is_loaded(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = finished.parent / "recipe.yaml"
    (finished / "checkpoint-2" / "optimizer.pt").unlink()
    main(recipe, ["--max_steps", "3", "--resume_from_checkpoint", "true"])
    said = capsys.readouterr().out
    assert f"Resuming from {finished / 'checkpoint-1'}" in said
    assert "checkpoint-2: optimizer.pt is missing" in said


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this must not be reached")


def test_a_done_run_that_is_started_once_more_is_no_mistake(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unigame.backbones, "load_backbone", _refuse)
    words = ["train", str(finished.parent / "recipe.yaml"), "--resume_from_checkpoint", "auto"]
    assert cli.main(words) == 0
    assert "Nothing left to do" in capsys.readouterr().out
    assert cli.main([*words, "--seed", "1"]) == 2  # another run
    assert cli.main([*words, "--max_steps", "1"]) == 2  # shorter than what is there
    with pytest.raises(AssertionError, match="not be reached"):
        cli.main([*words, "--max_steps", "3"])  # goes on
    (finished / "trainer_state.json").unlink()
    with pytest.raises(AssertionError, match="not be reached"):
        cli.main(words)  # its result was not saved


def test_the_same_command_begins_and_after_a_signal_goes_on(recipe: Path, monkeypatch) -> None:
    """With ``auto``, as a scheduler starts it; the result is the unbroken run's, bit for bit."""
    stepped = UniGameTrainer.training_step
    calls: list[int] = []

    def preempted(self: UniGameTrainer, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGHUP)
        return stepped(self, *args)

    words = ["train", str(recipe), "--eval_strategy", "no", "--resume_from_checkpoint", "auto"]
    unbroken, folder = recipe.parent / "unbroken", recipe.parent / "run"
    assert cli.main([*words, "--output_dir", str(unbroken)]) == 0
    monkeypatch.setattr(UniGameTrainer, "training_step", preempted)
    assert cli.main(words) == 128 + signal.SIGHUP
    assert len(calls) == 1 and (folder / "checkpoint-1").is_dir()
    assert cli.main(words) == 0
    assert len(calls) == 2
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_signal_in_the_last_step_costs_no_closing_line_and_no_report(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stepped = UniGameTrainer.training_step

    def stopped(self: UniGameTrainer, *args: Any) -> Any:
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stepped(self, *args)

    def closing() -> str:
        said = " ".join(capsys.readouterr().out.split())
        return said[said.index("Trained") : said.index("Adapter")]

    words = ["train", str(recipe), "--methods", "verify,reca", "--resume_from_checkpoint", "auto"]
    words += ["--verify.verifier", "none", "--verify.every", "1", "--verify.captions", "1"]
    words += [
        "--verify.drawings",
        "1",
        "--verify.guidance_scale",
        "1.0",
        "--generation_weight",
        "0",
    ]
    unbroken, folder = recipe.parent / "unbroken", recipe.parent / "run"
    assert cli.main([*words, "--output_dir", str(unbroken)]) == 0
    expected = closing()
    assert "confirmed 2 of 2" in expected and "RecA: 0 times" not in expected
    with monkeypatch.context() as patch:
        patch.setattr(UniGameTrainer, "training_step", stopped)
        assert cli.main(words) == 128 + signal.SIGTERM
    assert (folder / "checkpoint-2").is_dir() and not (folder / "about.json").exists()
    assert cli.main(words) == 0
    assert closing() == expected
    shown = "drawings/verify.json"
    assert (folder / shown).read_bytes() == (unbroken / shown).read_bytes()
    abouts = [json.loads((one / "about.json").read_text()) for one in (unbroken, folder)]
    for part in ("steps", "findings", "said", "not_recorded"):
        assert abouts[0][part] == abouts[1][part]


def test_auto_does_not_begin_anew_beside_damaged_checkpoints(recipe: Path) -> None:
    (recipe.parent / "run" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint-1"):
        main(recipe, ["--resume_from_checkpoint", "auto"])


@pytest.mark.parametrize(("code", "requeued"), [(129, "17"), (143, ""), (1, ""), (0, "")])
def test_a_job_is_requeued_when_its_time_was_up(code: int, requeued: str) -> None:
    script = Path(__file__).parents[2] / "examples" / "cluster" / "requeue.sh"
    environment = {**os.environ, "SLURM_JOB_ID": "17", "REQUEUE": "echo"}
    done = subprocess.run(
        [script, "bash", "-c", f"exit {code}"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code and done.stdout.strip() == requeued


def test_a_rank_of_a_slurm_step_is_told_what_torchrun_tells() -> None:
    script = Path(__file__).parents[2] / "examples" / "cluster" / "rank.sh"
    numbers = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "NNODES": "2"}
    environment = os.environ | {f"SLURM_{name}": number for name, number in numbers.items()}
    command = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE"
    words = [script, "bash", "-c", command]
    assert subprocess.check_output(words, env=environment, text=True).split() == [
        "5",
        "8",
        "1",
        "4",
    ]
