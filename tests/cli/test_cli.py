"""Exit codes and endings of the command line; what commands call is replaced by recorders."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.reports.run_files import write_run
from unigame import __version__, cli
from unigame.cli.app import app
from unigame.cli.endings import fault_line
from unigame.errors import UserError


def stand_in(monkeypatch, module, **functions):
    """Put a module with these functions where a command imports it from; returns their calls."""
    calls = []

    def recorder(name, behaviour):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return behaviour(*args, **kwargs) if callable(behaviour) else behaviour

        return call

    fake = types.ModuleType(module)
    for name, behaviour in functions.items():
        setattr(fake, name, recorder(name, behaviour))
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


def one_line(capsys):
    """What went to stderr, which must be one line and no traceback."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


class FakeBackbone:
    """Draws pictures of the seed's brightness and answers with what it was asked."""

    device = torch.device("cpu")
    text_rules = None  # of no text is anything known
    facts = SimpleNamespace(guidance_scale=3.5)

    def generate(self, prompts, **settings):
        self.settings = settings
        return torch.full((len(prompts), 3, 4, 4), 0.1 * (settings["seed"] % 10))

    def preprocess(self, pictures):
        return torch.stack([torch.zeros(3, 4, 4) for _ in pictures])

    def answer(self, images, questions, **settings):
        return [f"[{question}] {images.shape[0]}" for question in questions]


def test_the_installed_command_answers_help_and_mistakes():
    command = Path(sys.executable).with_name("unigame")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for name in ("demo", "train", "generate", "answer", "doctor"):
        assert name in shown.stdout
    wrong = subprocess.run([command, "demo", "--sed", "3"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1 and "--sed" in wrong.stderr


def test_help_and_bad_arguments_import_nothing_heavy():
    program = (
        "import sys; from unigame import cli; code = cli.main(['generate', 'x', '--seed', 'q']);"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


@pytest.mark.parametrize("name", [*app.commands])
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_every_command_has_a_help(name, word, capsys):
    assert cli.main([name, word]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: unigame {name}") and not shown.err


def test_help_has_the_options_in_their_groups(capsys):
    cli.main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    places = [shown.index(word) for word in ("Options:", "--seed", "Data;", "--split")]
    assert places == sorted(places)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"unigame {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([], ["command"]),
        (["trian"], ["trian", "train"]),
        (["demo", "--quik"], ["--quik", "'--quick'", "unigame demo --help"]),
        (["demo", "extra"], ["extra", "unigame demo --help"]),
        (["compose", "a", "--language", "b"], ["--denoiser"]),
        (["demo", "--seed", "-1"], ["--seed", "-1"]),
        (["generate"], ["PROMPT", "unigame generate --help"]),
        (["generate", "  "], ["PROMPT", "empty"]),
        (["generate", "a", "--num-images", "0"], ["--num-images", "0 is not", "1<=x"]),
        (["generate", "a", "--num-images", "9999999999"], ["9999999999 is not", "10000"]),
        (["generate", "a", "--temperature", "1e-300"], ["--temperature", "1e-300 is"]),
        (["generate", "a", "--guidance-scale", "1e400"], ["--guidance-scale", "1e400 is not"]),
        (["generate", "a\udcff"], ["not valid text"]),
        (["answer", "x.png", "what\udcff?"], ["not valid text"]),
        (["generate", "a", "--output", "/proc/x/a.png"], ["--output", "/proc/x"]),
        (["demo", "--output", "/proc/x"], ["--output", "/proc/x"]),
        (["compare", "a", "b", "--output", "/proc/x"], ["--output", "/proc/x"]),
        (["evaluate", "--benchmarks", "pope", "--output", "/proc/x"], ["--output", "/proc/x"]),
        (["convert", "a", "/proc/x"], ["output", "/proc/x"]),
        (["generate", "a", "--num-images", "two"], ["--num-images", "'two' is not"]),
        (["generate", "a", "--temperature", "-1"], ["--temperature", "-1 is"]),
        (["generate", "a", "--temperature", "nan"], ["--temperature", "nan is"]),
        (["generate", "a", "--guidance-scale", "nan"], ["nan is not from 1"]),
        (["generate", "a", "--guidance-scale", "0.5"], ["0.5 is not from 1"]),
        (["generate", "a", "--dtype", "float16"], ["float16", "bfloat16"]),
        (["generate", "a", "--output", "picture.xyz"], ["picture.xyz", "picture file"]),
        (["answer", "none.png", "what ?"], ["no picture at none.png"]),
        (["answer", "none.png", ""], ["QUESTION", "empty"]),
        (["generate", "a", "--model", "no-such-folder"], ["no-such-folder", "Hub id"]),
    ],
)
def test_user_mistakes_are_one_line_and_exit_code_2(argv, fragments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    line = one_line(capsys)
    assert line.startswith("unigame: error: ")
    for fragment in fragments:
        assert fragment in line


def test_a_file_that_is_not_a_picture_is_named(tmp_path, capsys):
    path = tmp_path / "notes.png"
    path.write_text("not pixels")
    assert cli.main(["answer", str(path), "what ?"]) == 2
    assert "is not a picture" in one_line(capsys)
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    path.write_bytes(whole.read_bytes()[:900])
    assert cli.main(["answer", str(path), "what ?"]) == 2
    assert "damaged" in one_line(capsys)


def test_demo_passes_its_arguments_on_and_says_what_to_do_next(tmp_path, capsys, monkeypatch):
    calls = stand_in(monkeypatch, "unigame.demo.run", run_demo={})
    out = write_run(tmp_path / "out")
    assert cli.main(["demo", "--quick", "--seed", "3", "--output", str(out), "--workers", "1"]) == 0
    settings = {"output": out, "quick": True, "seed": 3, "workers": 1}
    settings |= {"model": "janus-nano", "overwrite": False}
    assert calls == [("run_demo", (), settings)]
    said = "".join(capsys.readouterr().out.split())  # a terminal wraps
    assert f"Report:{out}/report.html" in said and (out / "report.html").is_file()
    assert said.index("Next:") < said.index(f"open{out}/report.htmlinabrowser")


def test_demo_refuses_an_output_that_is_a_file_before_it_starts(tmp_path, capsys, monkeypatch):
    calls = stand_in(monkeypatch, "unigame.demo.run", run_demo={})
    (tmp_path / "out").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert "is a file" in one_line(capsys)
    assert not calls


def test_user_errors_from_anywhere_become_one_line(capsys, monkeypatch):
    stand_in(monkeypatch, "unigame.demo.run", run_demo=raising(UserError("beta=-1\nis impossible")))
    assert cli.main(["demo"]) == 2
    assert one_line(capsys) == "unigame: error: beta=-1 is impossible\n"


def test_our_own_faults_keep_their_traceback(monkeypatch):
    stand_in(monkeypatch, "unigame.demo.run", run_demo=raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["demo"])


def test_ctrl_c_in_the_demo_names_what_was_kept(tmp_path, capsys, monkeypatch):
    stand_in(monkeypatch, "unigame.demo.run", run_demo=raising(KeyboardInterrupt()))
    assert cli.main(["demo", "--output", str(tmp_path / "none")]) == 130
    assert "no arm was finished yet" in capsys.readouterr().err
    for arm in ("base", "sft", "unigame"):
        (tmp_path / "arms" / arm).mkdir(parents=True)
    for arm in ("base", "sft"):
        (tmp_path / "arms" / arm / "DONE").touch()
    assert cli.main(["demo", "--output", str(tmp_path)]) == 130
    assert f"kept in {tmp_path}: base, sft. Run" in capsys.readouterr().err


def test_train_hands_over_the_recipe_and_every_override(monkeypatch):
    calls = stand_in(monkeypatch, "unigame.training.run", main=None)
    words = ["--learning_rate", "1e-4", "--lora.r", "8", "--bf16"]
    assert cli.main(["train", "janus_nano", *words]) == 0
    assert calls == [("main", ("janus_nano", words), {})]


def test_ctrl_c_in_training_says_how_to_resume(tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: janus-nano\ndata: [{type: synthetic}]\n"
        f"training: {{output_dir: {tmp_path}/run}}\n"
    )
    stand_in(monkeypatch, "unigame.training.run", main=raising(KeyboardInterrupt()))
    assert cli.main(["train", str(recipe)]) == 130
    assert "no checkpoint was due yet" in capsys.readouterr().err
    for step in (90, 200):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    words = ["--beta", "0.3", "--resume_from_checkpoint", "old"]
    assert cli.main(["train", str(recipe), *words]) == 130
    line = capsys.readouterr().err.strip()
    newest = tmp_path / "run" / "checkpoint-200"
    assert f"kept {newest}" in line
    assert line.endswith(f"unigame train {recipe} --beta 0.3 --resume_from_checkpoint {newest}")


@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_run_that_lost_a_process_is_one_line_on_each_rank(rank, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "mine.yaml"
    folder = tmp_path / "run"
    recipe.write_text(
        "model: janus-nano\ndata: [{type: synthetic}]\n"
        f"training: {{output_dir: {folder}, use_cpu: true}}\n"
    )
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [::1]:7")
    stand_in(monkeypatch, "unigame.training.run", main=raising(gone))
    with pytest.raises(RuntimeError):  # nobody launched several
        cli.main(["train", str(recipe)])
    capsys.readouterr()
    monkeypatch.setenv("RANK", rank)

    def checkpoints(folder):
        os.kill(os.getpid(), signal.SIGTERM)  # from the launcher, which has seen it too
        return [folder / "checkpoint-3"]

    monkeypatch.setattr("unigame.training.run_folder.checkpoints", checkpoints)
    assert cli.main(["train", str(recipe)]) == 2
    line = one_line(capsys)
    assert f"process {rank} lost another" in line and "Connection closed by peer" in line
    assert line.endswith(f"--resume_from_checkpoint {folder / 'checkpoint-3'}\n")


def test_generate_writes_every_picture_and_suggests_a_question(tmp_path, capsys, monkeypatch):
    backbone = FakeBackbone()
    monkeypatch.setattr("unigame.backbones.load_backbone", lambda *args, **settings: backbone)
    out = tmp_path / "new" / "cat.png"
    argv = ["generate", "a red circle", "--num-images", "5", "--seed", "3", "--temperature", "0"]
    assert cli.main([*argv, "--output", str(out)]) == 0
    files = sorted(path.name for path in out.parent.iterdir())
    assert files == [f"cat-{i}.png" for i in range(1, 6)]
    # The fifth comes from a second batch, which must not repeat the first batch's seed.
    first, fifth = (Image.open(out.parent / f"cat-{i}.png").getpixel((0, 0)) for i in (1, 5))
    assert first == (76, 76, 76) and fifth != first
    assert backbone.settings["guidance_scale"] == 3.5, "the usual one of the family"
    assert backbone.settings["do_sample"] is False and backbone.settings["temperature"] > 0
    shown = capsys.readouterr().out
    assert "cat-5.png" in shown and "Next:" in shown and "unigame answer" in shown


def test_answer_prints_the_answer_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unigame.backbones.load_backbone", lambda *args, **settings: FakeBackbone())
    Image.new("L", (9, 9)).save(tmp_path / "grey.png")
    assert cli.main(["answer", str(tmp_path / "grey.png"), "how [many] ?"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("[how [many] ?] 1\n")  # brackets are not markup
    assert "Next:" in shown


def test_running_out_of_memory_names_what_each_kind_of_run_can_lower():
    line = fault_line(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    settings = ("batch size", "challenge_micro_batch", "draw_batch", "gradient_checkpointing")
    assert "\n" not in line and all(setting in line for setting in settings)
    assert fault_line(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
