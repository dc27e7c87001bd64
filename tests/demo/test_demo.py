"""The demo end to end on a tiny random model: what it writes, and how it goes on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import unigame
from tests.tiny import make_tiny_janus
from unigame.demo import arms
from unigame.demo import run as demo
from unigame.demo.folder import finished_arms
from unigame.errors import UserError
from unigame.evaluation import world
from unigame.reports.compare import Cell, Comparison, Grid, compare
from unigame.reports.metrics import Difference
from unigame.reports.page.write import write_report
from unigame.reports.records import read_record
from unigame.synthetic.knowledge import knowledge_words
from unigame.synthetic.questions import vocabulary
from unigame.synthetic.world import Scene, Thing, render

TINY = arms.Sizes(answers=12, drawings=8, ood=12, attack=8, attack_steps=2, captions=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_tiny_janus(folder, image_size=48, vocab_words=[*vocabulary(), *knowledge_words()])


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """Two steps of four samples an arm, a handful of questions."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        yield monkeypatch


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo.load_recipe
    short = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "data.0.size": 60,
        "warmup_steps": 0,
    }
    words = [w for name, value in short.items() for w in (f"--{name}", str(value))]
    game = ["--hard_batch_size", "2", "--buffer_min_size", "2"]

    def load(name: str, extra: list[str]) -> Any:
        return whole(name, [*words, *([] if "--methods" in extra else game), *extra])

    monkeypatch.setattr(demo, "load_recipe", load)
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(arms, "QUICK_SHARE", 1)
    # A random model reads nothing of what it draws: let every drawing be confirmed.
    for method in ("verify", "imagine"):
        recipe, own = arms.METHODS[method]
        few = {**own, "captions": 2, "first_captions": 2, "rows": 2, "verifier": "none"}
        monkeypatch.setitem(arms.METHODS, method, (recipe, few))
    # A random model draws nothing that the reader knows: let every attacked picture count.
    monkeypatch.setattr(world, "read", lambda image: SAME)
    monkeypatch.setattr(world, "truth", lambda scene: SAME)


SAME: set[Any] = {(0, "red", "disc")}


@dataclass(frozen=True)
class Done:
    """A finished demo of all arms: what it found, wrote and said, also until each arm began."""

    found: Comparison
    output: Path
    said: str
    heard: dict[str, str]

    def do(self, job: Any, *rest: Any) -> None:
        """In the place of ``_run_arm``, for tests of the folder: this demo's arm once more."""
        shutil.copytree(self.output / "arms" / job.arm, job.output / "arms" / job.arm)


def run_demo(output: Path, **options: Any) -> Comparison:
    """In this process, whose parts a test has changed."""
    return demo.run_demo(output, quick=True, workers=1, **options)


@pytest.fixture(scope="module")
def done(model: Path, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Done:
    output, stream, run_arm = tmp_path_factory.mktemp("done") / "demo", io.StringIO(), demo._run_arm
    heard: dict[str, str] = {}

    def listening(job: Any, *rest: Any) -> Any:
        heard[job.arm] = stream.getvalue()
        return run_arm(job, *rest)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stream):
        patch.setattr(demo, "_run_arm", listening)
        found = run_demo(output, seed=3, model=str(model))
    return Done(found, output, stream.getvalue(), heard)


def test_every_arm_is_trained_measured_and_written(done: Done, model: Path) -> None:
    found, output = done.found, done.output
    assert found.labels == LABELS
    assert found.labels[found.baseline] == "SFT"
    assert [column for grid in found.tables for column in grid.columns] == COLUMNS
    for grid in found.tables:
        for label, cells in zip(grid.rows, grid.cells, strict=True):
            for column, cell in zip(grid.columns, cells, strict=True):
                figure = cell.figure
                assert figure is not None and figure["low"] <= figure["value"] <= figure["high"]
                assert bool(cell.gap or cell.reason) == (label != "SFT"), (label, column)
    assert any("(seed 3)" in note for note in found.notes)
    (cost,) = [note for note in found.notes if note.startswith("Training: ")]
    assert "base 0 understanding steps" in cost and "UniGame 2 understanding steps" in cost
    config = json.loads((output / "config.json").read_text())
    assert config["seed"] == 3
    assert config["arms"]["sft_equal_samples"]["per_device_train_batch_size"] == 6
    assert list(config["arms"]["verify"]["methods"]) == ["verify"]
    assert config["arms"]["imagine"]["methods"]["imagine"]["texts"] == "captions.jsonl"
    assert len(config["arms"]["reca"]["methods"]["reca"]["templates"]) == 8
    for arm, figure in (("verify", "store"), ("imagine", "store"), ("reca", "redrawn_rows")):
        log = json.loads((output / "arms" / arm / "log.json").read_text())
        assert any(name.endswith(figure) for entry in log for name in entry), arm
    short = {"max_steps": 2, "warmup_steps": 0}
    assert config["arms"]["round_trip"] == {"perturbation": "none", **short}
    assert config["arms"]["imagine"]["max_steps"] == 4, "as many rows, in batches of half the size"
    assert config["arms"]["imagine"]["per_device_train_batch_size"] == 2
    for name in ("gallery.png", "curves.png", "compare.md", "compare.csv", "compare.tex"):
        assert (output / name).stat().st_size > 0
    assert (output / "adapter" / "adapter_model.safetensors").exists()
    assert not (output / "INCOMPLETE").exists()
    assert "UniGame" in done.said and found.verdict[:20] in done.said
    # Every arm's record is one that `unigame compare` takes.
    records = [read_record(output / "arms" / arm / "evaluation") for arm in demo.ARMS]
    assert records[0].weights != records[1].weights
    again = compare(records, found.labels, baseline=1)
    assert again.tables == found.tables
    assert f"arms/*/evaluation --baseline {sorted(demo.ARMS).index('sft') + 1}" in done.said
    told = [note for note in found.notes if note.startswith("Health of imagine: rehearsal cut")]
    assert len(told) == 1 and "Health of imagine" in (output / "compare.md").read_text()
    page = write_report([output]).read_text(encoding="utf-8")
    assert "Path of the LoRA weights in two dimensions. From step 0 to 2" in page
    assert "Health of imagine" in page and "What G drew and U confirmed" in page
    assert "8 clean, 8 candidates" in page and f"unigame demo --model {model} --seed 4" in page


LABELS = (
    *("base", "SFT", "SFT, equal samples", "round trip", "UniGame"),
    *("verify", "imagine", "RecA"),
)
COLUMNS = [
    *("VQAv2", "MMMU", "MMBench", "POPE", "overall"),
    *("GenEval", "DPG", "UnifiedBench", "WISE", "consistency", "NaturalBench", "AdVQA"),
    *("out of distribution", "OOD without counting"),
    *("redrawn without attack", "under a fresh attack", "new task"),
]


def judged(gaps: dict[str, float]) -> Comparison:
    """What the demo says of arms with these differences on one benchmark, +-0.1."""
    cells = []
    for label in demo.ARMS:
        value = gaps.get(label, 0.0)
        gap = Difference(value=value, low=value - 0.1, high=value + 0.1, n=99, clusters=99)
        cells.append((Cell("accuracy", "accuracy", gap=None if label == "sft" else gap),))
    labels = tuple(demo.DEMO_LABELS.get(arm, arm) for arm in demo.ARMS)
    grid = Grid("Understanding", ("POPE",), labels, tuple(cells))
    return demo.judged_demo(Comparison(labels, 1, (grid,), {}, ("last",)), seed=7)


def test_a_gain_that_a_control_shares_is_not_credited_to_the_attack() -> None:
    found = judged({"unigame": 0.5, "round_trip": 0.5, "verify": 0.5})
    assert found.verdict.splitlines() == [
        "UniGame beat SFT on: POPE.",
        "verify beat SFT on: POPE.",
        *(
            f"{name} did not beat SFT on any figure; no measurable difference on: POPE."
            for name in ("imagine", "RecA")
        ),
    ]
    assert any("without any attack beat SFT as well on: POPE" in note for note in found.notes)
    assert "seed 7" in found.notes[0] and found.notes[-1] == "last"
    for gaps in ({"unigame": 0.5, "base": 0.5, "verify": 0.5}, {"round_trip": 0.5}):
        assert not any("without any attack" in note for note in judged(gaps).notes)
    assert judged({"unigame": -0.5}).verdict.splitlines()[0].endswith("worse than SFT on: POPE.")


def test_an_interrupted_demo_keeps_finished_arms_and_goes_on(
    model: Path, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run_arm, finished = tmp_path / "demo", demo._run_arm, []
    monkeypatch.setattr(demo, "ARMS", ("base", "sft"))

    def stop_at_second(job: Any, *rest: Any) -> None:
        if finished:
            (output / "arms" / job.arm / "evaluation").mkdir(parents=True)
            (output / "arms" / job.arm / "evaluation" / "results.json").write_text("half done")
            raise KeyboardInterrupt
        finished.append(job.arm)
        done.do(job)

    monkeypatch.setattr(demo, "_run_arm", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run_demo(output, seed=3, model=str(model))
    assert finished_arms(output) == (output, ["sft"])
    again: list[str] = []
    monkeypatch.setattr(
        demo, "_run_arm", lambda job, *rest: (again.append(job.arm), run_arm(job, *rest))[1]
    )
    run_demo(output, seed=3, model=str(model))
    assert again == ["base"]
    # A finished demo starts afresh.
    again.clear()
    monkeypatch.setattr(demo, "ARMS", ("sft",))
    monkeypatch.setattr(
        demo, "_run_arm", lambda job, *rest: (again.append(job.arm), done.do(job))[1]
    )
    run_demo(output, seed=3, model=str(model))
    assert again == ["sft"]


def test_a_demo_into_a_pipe_says_where_it_is_as_it_goes(done: Done) -> None:
    before = done.heard["sft"]
    assert "round_trip: measuring" in before, "nothing was said of the arms before this one"
    during = done.heard["base"].removeprefix(before)
    assert "sft: training: 1 of 2" in during and "sft: training: 2 of 2" in during


def test_a_finished_demo_stays_until_all_arms_of_a_rerun_are_there(
    model: Path, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "demo"
    monkeypatch.setattr(demo, "ARMS", ("sft",))
    monkeypatch.setattr(demo, "_run_arm", done.do)
    run_demo(output, model=str(model))
    first = output / "arms" / "sft" / "first"
    first.touch()

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run_arm", stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(output, model=str(model))
    assert first.exists() and (output / "compare.md").exists()
    with pytest.raises(UserError, match="seed was 0 and is now 1.*--overwrite"):
        run_demo(output, seed=1, model=str(model))
    monkeypatch.setattr(demo, "_run_arm", done.do)
    run_demo(output, seed=1, model=str(model), overwrite=True)
    assert not first.exists()
    assert json.loads((output / "config.json").read_text())["seed"] == 1
    left = {file.name for file in output.iterdir()}
    assert "rerun" not in left and "INCOMPLETE" not in left and ".replaced" not in left


def test_a_wrong_model_leaves_the_output_folder_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run_demo(tmp_path / "demo", model=str(tmp_path / "nowhere"))
    assert not (tmp_path / "demo").exists()


def test_a_model_that_draws_in_latents_draws_at_full_noise() -> None:
    recipe = arms.load_recipe("janus_nano", [], here=False)
    for latents, wanted in ((False, 0.3), (True, 1.0)):
        for arm in ("verify", "imagine"):
            own = arms.changes(recipe, arm, False, latents)["methods"][arm]
            assert own["temperature"] == wanted
        assert "temperature" not in arms.changes(recipe, "reca", False, latents)["methods"]["reca"]


def test_an_unfinished_demo_is_not_judged(done: Done, tmp_path: Path) -> None:
    for arm in ("round_trip", "verify", "imagine"):
        shutil.copytree(done.output / "arms" / arm, tmp_path / "arms" / arm)
    shutil.copy(done.output / "config.json", tmp_path)
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert "This demo is not finished: SFT and UniGame missing" in page
    assert "beat SFT" not in page


def test_two_runs_beside_each_other_are_judged_by_the_last(done: Done, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    shutil.copytree(done.output / "arms" / "verify" / "evaluation", other)
    page = write_report([done.output, other], tmp_path / "page.html").read_text(encoding="utf-8")
    said = page.partition('id="verdict">')[2].partition("</h1>")[0]
    assert "mine" in said and "UniGame" not in said


def test_the_example_writes_what_imagine_reads(tmp_path: Path) -> None:
    from unigame.methods.drawings.texts import read_texts

    script = Path(unigame.__file__).parents[1] / "examples" / "captions_of_a_new_task.py"
    words = [sys.executable, str(script), "mine.jsonl", "--captions", "6"]
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    texts = read_texts(tmp_path / "mine.jsonl")
    assert len(texts) == 6 and all(text.questions for text in texts)
    assert "--imagine.texts mine.jsonl" in said


def test_redrawings_that_show_something_else_are_known():
    scene = Scene((Thing(0, "red", "disc"),))
    other = render(Scene((Thing(0, "green", "disc"),)))
    row = {"clean": render(scene), "drawn": render(scene), "adversarial": other, "styled": other}
    assert demo._changed(row, scene) == {"adversarial"}
