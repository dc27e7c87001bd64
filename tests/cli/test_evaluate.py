"""``unigame evaluate`` on a tiny model and a POPE of a few pictures, from files to the record."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

from tests.data.files import png, write
from tests.evaluation.scorers.judge_server import Answer, judge_server
from tests.tiny import shared_tiny_janus, stir_lora, tiny_backbone
from unigame import cli
from unigame.backbones.janus.model import JanusBackbone
from unigame.cli import processes
from unigame.errors import UserError
from unigame.evaluation.attacks.adversary import set_aside
from unigame.evaluation.bars import Bars
from unigame.evaluation.base import DataSource
from unigame.evaluation.examples import from_items
from unigame.evaluation.tasks.pope.task import POPE
from unigame.reports.weights import folder_sha256

SUBSETS = ("adversarial", "popular", "random")


@pytest.fixture(scope="module")
def pope(tmp_path_factory) -> Path:
    """Six questions in each subset, about three pictures, the last of which is damaged."""
    root = tmp_path_factory.mktemp("data")
    pictures = [png((200, 0, 0)), png((0, 200, 0)), b"damaged"]
    rows = [
        {
            "id": str(100 * s + q),
            "question_id": str(q + 1),
            "question": f"Is there a {'red circle' if q % 2 else 'square'} in the image?",
            "answer": ("yes", "no")[q % 2],
            "image_source": f"COCO_val2014_{q // 2:012d}",
            "image": {"bytes": pictures[q // 2], "path": None},
            "category": subset,
        }
        for s, subset in enumerate(SUBSETS)
        for q in range(6)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (root / "pope").mkdir()
    table.to_parquet(str(root / "pope" / "test-00000-of-00001.parquet"))
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def evaluate(*words: object) -> int:
    base = ["evaluate", "--model", shared_tiny_janus(), "--benchmarks", "pope"]
    return cli.main([str(word) for word in (*base, *words)])


def record(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def test_from_files_to_the_record_and_again_without_a_question(pope, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    assert evaluate("--data-root", pope, "--output", output) == 0
    shown = capsys.readouterr()
    assert "95 % interval" in shown.out and "unigame compare OTHER" in shown.out
    assert "6 corrupt image" in shown.out
    written = record(output)
    entry = written["benchmarks"]["pope"]
    assert entry["counts"]["items"] == 18 and entry["counts"]["scored"] == 12
    assert entry["counts"]["skipped"] == {"corrupt image": 6}
    assert entry["dataset"] | {"fingerprint": ""} == {
        "id": "pope",
        "split": "test",
        "config": entry["dataset"]["config"],
        "revision": "",
        "fingerprint": "",
    }
    model = written["model"]
    assert model["sha256"] == folder_sha256(shared_tiny_janus()) and model["adapter"] is None
    for metric in entry["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(JanusBackbone, "answer", refuse)
    assert evaluate("--data-root", pope, "--output", output) == 0
    again = record(output)["benchmarks"]["pope"]
    assert again["metrics"] == entry["metrics"] and again["counts"] == entry["counts"]


def test_the_data_root_may_be_the_benchmarks_own_folder(pope, tmp_path):
    assert evaluate("--data-root", pope / "pope", "--output", tmp_path / "a", "--limit", 2) == 0
    assert record(tmp_path / "a")["benchmarks"]["pope"]["counts"]["items"] >= 2


def test_a_smaller_limit_does_not_replace_a_fuller_record(pope, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    assert evaluate("--data-root", pope, "--output", output, "--limit", 6) == 0
    before = (output / "results.json").read_bytes()
    monkeypatch.setattr("unigame.cli.evaluate._load_model", pytest.fail)
    assert evaluate("--data-root", pope, "--output", output, "--limit", 3) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--limit 3" in said and "pope of 6 items, which 3 would replace" in said
    assert "give another --output, or leave --limit out" in said
    assert (output / "results.json").read_bytes() == before


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(pope, tmp_path, monkeypatch, capsys):
    answer, calls = JanusBackbone.answer, []

    def interrupted(self, *args, **options):
        calls.append(args[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, *args, **options)

    monkeypatch.setattr(JanusBackbone, "answer", interrupted)
    words = ["--data-root", pope, "--output", tmp_path / "out", "--batch-size", 4]
    assert evaluate(*words) == cli.EXIT_INTERRUPTED
    said = capsys.readouterr().err.strip().splitlines()[-1]
    kept = len((tmp_path / "out" / "pope" / "predictions.jsonl").read_text().splitlines())
    assert kept and f"Stopped; {kept} predictions are kept in {tmp_path / 'out'}" in said
    assert evaluate(*words) == 0
    asked = [question for number, call in enumerate(calls) if number != 1 for question in call]
    assert len(asked) == 12


def test_a_killed_process_loses_its_unfinished_batch_only(pope, tmp_path, monkeypatch, capsys):
    """A real process is killed with signal 9 as soon as it has written something."""
    command = sys.modules["unigame.cli.evaluate"]  # not the function of that name
    started, kept, asked = [], [], []
    popen, run, answer = processes.subprocess.Popen, command._run, JanusBackbone.answer

    def start(*args, **settings):
        started.append(popen(*args, **settings))
        return started[-1]

    def run_later(args, output, *rest, **told):
        """The first process asks nothing before the other one has begun, and is dead."""
        file, ends = output / "pope" / "predictions.rank1.jsonl", time.monotonic() + 300
        while not (file.exists() and b"\n" in file.read_bytes()):
            assert started[0].poll() is None and time.monotonic() < ends
            time.sleep(0.005)
        started[0].kill()
        started[0].wait()
        lines = file.read_bytes().split(b"\n")[:-1]
        kept.extend(row for line in lines if not (row := json.loads(line))["error"])
        return run(args, output, *rest, **told)

    def count(self, images, questions, **settings):
        asked.extend(questions)
        return answer(self, images, questions, **settings)

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of the other process
    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(command, "_run", run_later)
    monkeypatch.setattr(JanusBackbone, "answer", count)
    words = ["--data-root", pope, "--output", tmp_path / "out", "--batch-size", 1]
    assert evaluate(*words, "--processes", 2) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "killed" in line]
    assert len(warnings) == 1 and "process 1 was killed by signal 9" in warnings[0]
    assert record(tmp_path / "out")["benchmarks"]["pope"]["counts"]["scored"] == 12
    assert kept and len(asked) == 12 - len(kept)
    assert not list((tmp_path / "out").rglob("*.rank1.*"))


def test_an_adapter_is_another_model(pope, tmp_path, capsys):
    backbone = tiny_backbone().add_lora()
    stir_lora(backbone)
    backbone.save_pretrained(tmp_path / "adapter")
    words = ["--data-root", pope, "--limit", 2]
    assert evaluate(*words, "--adapter", tmp_path / "adapter") == 0
    output = Path("runs") / "evaluate" / f"{shared_tiny_janus().name}+adapter"
    assert record(output)["model"]["adapter"]["sha256"] == folder_sha256(tmp_path / "adapter")
    capsys.readouterr()
    assert evaluate(*words, "--output", output) == 2
    error = capsys.readouterr().err
    name, adapter = shared_tiny_janus(), tmp_path / "adapter"
    said = f"of '{name}' with adapter '{adapter}' in float32, and this is '{name}' in float32"
    assert f"another model: {said}; give another --output" in error.splitlines()[-1]


def test_one_split_of_one_benchmark(pope, tmp_path):
    words = ["--data-root", pope, "--output", tmp_path / "out", "--split", "pope=popular"]
    assert evaluate(*words) == 0
    counts = record(tmp_path / "out")["benchmarks"]["pope"]["counts"]
    assert counts["items"] == 6 and counts["scored"] == 4


def test_data_of_the_hub_are_asked_for_as_the_user_says(tmp_path, monkeypatch, capsys):
    asked = []

    def load_builder(path, name, *, revision):
        asked.append((path, name, revision))
        return SimpleNamespace(name="parquet", config=SimpleNamespace(data_files=None))

    def load_dataset(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    words = ["--split", "test", "--config", "pope=default", "--hub-id", "me/POPE"]
    assert evaluate(*words, "--revision", "v1", "--output", tmp_path / "out") == 2
    assert asked == [("me/POPE", "default", "v1"), ("me/POPE", "default", "test", "v1")]
    assert "me/POPE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmarks", "poope"], "did you mean pope?"),
        (["--data-root", "absent"], "--data-root absent is no folder"),
        (["--benchmarks", "pope,mmmu", "--data-root", "data"], "no folder 'mmmu'; it has pope"),
        (["--data-root", "odd"], "holds no parquet"),
        (["--prompt", "x", "--data-root", "data"], "--prompt 'x' is not known"),
        (["--parser", "mmmu=bagel", "--data-root", "data"], "mmmu is not among the benchmarks"),
        (["--split", "mmmu=dev", "--data-root", "data"], "--split mmmu=dev: mmmu is not among"),
        (["--hub-id", "a/b", "--data-root", "data"], "--hub-id and --revision are of data on"),
        (
            ["--split", "dev", "--data-root", "data"],
            "no files dev-*.parquet; it has the split test",
        ),
        (["--output", "file", "--data-root", "data"], "--output='file' is a file"),
        (["--limit", "0"], "0 is not in the range"),
        (["--benchmarks", "wise", "--data-root", "wise", "--judge", "x"], "no judge 'x'"),
        (["--benchmarks", "wise", "--rubric", "absent.txt"], "absent.txt"),
        (["--benchmarks", "wise", "--samples", "8"], "--samples 8 is of geneval and dpg, and --"),
        (["--benchmarks", "dpg", "--rubric", "f.txt"], "--rubric f.txt is of wise, and"),
        (["--judge", "hf:a/b"], "--judge hf:a/b is of dpg and wise, and --benchmarks has pope"),
        (["--detector", "a/b"], "--detector a/b is of geneval"),
        (["--temperature", "0.7", "--data-root", "data"], "--temperature 0.7 is of pictures"),
        (["--guidance-scale", "5"], "--guidance-scale 5 is of pictures"),
        (
            ["--robustness", "pgd", "--attack-recipe", "janus_nano", "--data-root", "data"],
            "--attack-recipe janus_nano is of the adversary, and --robustness pgd has none",
        ),
        (["--robustness", "pgx", "--attack-recipe", "janus_nano"], "unknown attack 'pgx'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    words, message, pope, tmp_path, monkeypatch, capsys
):
    def refuse(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("unigame.backbones.load_backbone", refuse)
    shutil.copytree(pope, "data")
    write(Path("odd") / "readme.md", "x")
    write(Path("file"), "x")
    Path("wise").mkdir()
    shared_tiny_janus()
    capsys.readouterr()  # the first test of a process makes the model, with bars
    assert evaluate(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_bundled_model_is_asked_about_its_own_world(tmp_path, capsys):
    words = ["evaluate", "--benchmarks", "naturalbench,wise,dpg", "--limit", "8"]
    words += ["--samples", "1"]
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    entries = record(tmp_path / "out")["benchmarks"]
    assert entries["dpg"]["metrics"]["dpg"]["value"] > 50
    assert entries["dpg"]["variant"] == {"prompt": "verbatim", "parser": "repaired", "samples": 1}
    assert entries["naturalbench"]["variant"]["prompt"] == "bare"
    assert "synthetic" in json.dumps(entries["wise"]["scorer"])
    assert all(entry["counts"]["scored"] >= 4 for entry in entries.values())
    assert entries["naturalbench"]["metrics"]["acc"]["value"] > 50
    assert "this small world only" in capsys.readouterr().out


def test_answers_that_are_judged_elsewhere_end_without_a_figure(capsys):
    with Bars({"vqav2": "VQAv2"}) as bars:
        bars.begin("vqav2", 2, 0)
        bars.end("vqav2", {"metrics": {}})
    assert "VQAv2: nothing scored here" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [(), ("--limit", 6)])
def test_the_adversary_practises_on_the_whole_data_whatever_the_limit(
    pope, tmp_path, monkeypatch, limit
):
    seen = []

    def stop(backbone, benchmark, loaded, config, *, practice, **options):
        seen.append((len(loaded.items), sorted(practice.pictures)))
        raise UserError("enough")

    monkeypatch.setattr("unigame.evaluation.attacks.robustness_record.robustness_entry", stop)
    words = ["--data-root", pope, "--robustness", "adversary", "--output", tmp_path / "out"]
    assert evaluate(*words, *limit) == 2
    ((measured, pictures),) = seen
    items = POPE().load(DataSource(root=pope / "pope")).items
    assert measured == (6 if limit else 18)
    assert pictures == sorted(set_aside(from_items(items), 64).pictures)


def test_what_cannot_be_attacked_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    """NaturalBench asks two questions about two pictures."""
    monkeypatch.setattr("unigame.cli.evaluate._load_model", pytest.fail)
    words = ["--benchmarks", "naturalbench", "--limit", 4, "--robustness", "corruptions"]
    assert evaluate("--data-root", "synthetic", *words, "--output", tmp_path / "out") == 2
    assert "naturalbench has none; add a benchmark that has" in capsys.readouterr().err


def test_an_adversary_that_would_leave_nothing_is_refused_before_a_model_is_loaded(
    pope, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("unigame.cli.evaluate._load_model", pytest.fail)
    monkeypatch.setattr("unigame.evaluation.attacks.adversary.MOST_SET_ASIDE", 1)
    words = ["--data-root", pope, "--robustness", "adversary", "--output", tmp_path / "out"]
    assert evaluate(*words) == 2
    assert "practises on all pictures of these 18" in capsys.readouterr().err


def test_one_benchmark_is_not_read_from_the_folder_of_another(pope, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/vqav2").mkdir()
    words = ["--benchmarks", "advqa", "--data-root", tmp_path / "data"]
    assert evaluate(*words, "--output", tmp_path / "out") == 2
    assert "has no folder 'advqa'; it has vqav2" in capsys.readouterr().err


def test_an_attack_that_does_not_fit_names_the_batch_size(pope, tmp_path, monkeypatch, capsys):
    asked: list[int] = []

    def full(backbone, benchmark, loaded, config, **options):
        asked.append(config.batch_size)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("unigame.evaluation.attacks.robustness_record.robustness_entry", full)
    words = ["--data-root", pope, "--limit", 1, "--robustness", "pgd", "--batch-size", 3]
    assert evaluate(*words, "--output", tmp_path / "out") == 2
    assert asked == [3]
    assert "3 pictures at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        Answer(307, headers={"Location": "http://127.0.0.1:9/v1/chat/completions"}),
        Answer(400, body=b"no"),
    ],
)
def test_a_judge_that_takes_nothing_is_found_before_anything_is_drawn(answer, tmp_path, capsys):
    words = ["evaluate", "--benchmarks", "wise", "--limit", "2", "--output", str(tmp_path / "out")]
    with judge_server(answer) as server:
        assert cli.main([*words, "--judge", f"openai:m@{server.url}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "judges no picture" in line
    assert not (tmp_path / "out/wise").exists()


def test_a_judge_that_scores_nothing_is_not_a_success(tmp_path, monkeypatch, capsys):
    """Here WISE on the bundled model's own world; its figures would all be missing."""
    monkeypatch.setattr("unigame.evaluation.scorers.judging.Retry.wait", lambda *_: 0.0)
    words = ["evaluate", "--benchmarks", "wise", "--limit", "2", "--output", str(tmp_path / "out")]
    with judge_server(Answer(content="I would rather not say.")) as server:
        assert cli.main([*words, "--judge", f"openai:m@{server.url}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "wise: nothing was scored (2 judge" in line
    assert record(tmp_path / "out")["benchmarks"]["wise"]["metrics"] == {}
