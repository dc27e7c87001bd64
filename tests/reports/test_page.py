"""The page of a run: what stands on it, read as a browser would parse it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.reports.record_files import four, record, write
from tests.reports.run_files import QUESTION, log, write_drawings, write_run
from unigame import cli
from unigame.errors import UserError
from unigame.reports.page import charts, verdict
from unigame.reports.page.runs import read_run
from unigame.reports.page.write import compared, write_report
from unigame.reports.weights import folder_sha256
from unigame.training import run_folder

VOID = {"meta", "link", "img", "input", "br", "line", "circle", "path", "polyline", "rect"}


class Page(HTMLParser):
    """Tags with attributes, whether they nest, and the text of each heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open[-1:]:
            self.text.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*runs: Path) -> tuple[Page, str]:
    text = write_report(runs).read_text(encoding="utf-8")
    return Page(text), text


def test_a_run_alone(tmp_path: Path) -> None:
    page, text = page_of(write_run(tmp_path / "game"))
    (verdict,) = page.text["h1"]
    assert "120 steps" in verdict and "fell from" in verdict and "no evaluation" in verdict
    assert "No symptom" in text and "unigame train janus_nano --seed 3" in text
    kinds = [attrs["data-kind"] for attrs in page.all("li") if "data-kind" in attrs]
    assert kinds == ["broken", "redrawn", "held", "wrong"]  # successes of the attack first
    assert QUESTION in page.text["h3"] and "<b>colour" not in text  # texts of data are texts
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [str(attrs["href"])[1:] for attrs in page.all("a")]
    assert set(targets) <= set(ids)


def test_it_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, text = page_of(write_run(tmp_path / "game"))
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "data"):
            assert str(attrs.get(name) or "#").startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?://", text)
    pictures = page.all("img")
    assert len(pictures) == 4 * 6 and all("alt" in attrs for attrs in pictures)


def test_every_control_has_a_name(tmp_path: Path) -> None:
    page, _ = page_of(write_run(tmp_path / "game"))
    for attrs in page.all("input"):
        assert attrs["type"] == "radio" or attrs["aria-label"]
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))


def test_findings_with_their_knob(tmp_path: Path) -> None:
    finding = {"symptom": "C dead", "says": "rate is 0", "knob": "raise it", "figures": {}}
    _, text = page_of(write_run(tmp_path / "game", findings=[finding]))
    assert "C dead" in text and "Raise it." in text and "No symptom" not in text


def test_evaluations_give_a_verdict_with_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game")
    for name, right, adapter in (("base", 0.4, None), ("game", 0.8, "unigame")):
        benchmarks, summary = four(right)
        content = record(benchmarks, adapter=adapter, summary=summary)
        if name == "game":
            (run / "evaluation").mkdir()
            (run / "evaluation" / "results.json").write_text(json.dumps(content))
        else:
            write(tmp_path, name, content)
    page, text = page_of(tmp_path / "base", run)
    assert "another seed" in text and any(c.startswith("unigame merge") for c in commands(page))
    (verdict,) = page.text["h1"]
    assert "game is better than base on VQAv2 (+" in verdict and " to +" in verdict
    assert 'class="gap better"' in text and "(baseline)" in text
    assert write_report([tmp_path / "base", run]) == tmp_path / "base" / "report.html"


def test_a_demo_is_its_arms(tmp_path: Path) -> None:
    write_run(tmp_path / "arms" / "unigame")
    (tmp_path / "config.json").write_text(json.dumps({"arms": {"sft": {}, "unigame": {}}}))
    for arm, right in (("base", 0.4), ("sft", 0.5), ("unigame", 0.9)):
        benchmarks, summary = four(right)
        folder = tmp_path / "arms" / arm
        write(folder, "evaluation", record(benchmarks, sha=arm, summary=summary))
    page, _ = page_of(tmp_path)
    assert page.text["h1"][0].startswith("UniGame is better than SFT")
    assert len([attrs for attrs in page.all("li") if "data-kind" in attrs]) == 4


def demo(folder: Path, seed: int, rights: dict[str, float]) -> Path:
    write_run(folder / "arms" / "unigame", examples=0)
    config = {"arms": {arm: {} for arm in rights if arm != "base"}, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    for arm, right in rights.items():
        benchmarks, summary = four(right)
        content = record(benchmarks, sha=f"{folder.name} {arm}", summary=summary)
        write(folder / "arms" / arm, "evaluation", content)
    return folder


def test_two_demos_stand_side_by_side(tmp_path: Path) -> None:
    one = demo(tmp_path / "demo", 0, {"base": 0.4, "sft": 0.5, "unigame": 0.9})
    two = demo(tmp_path / "demo-seed1", 1, {"base": 0.4, "sft": 0.8, "unigame": 0.3})
    comparison = compared([read_run(folder, folder.name) for folder in (one, two)])
    assert comparison is not None
    arms = ("base", "SFT", "UniGame")
    assert comparison.labels == tuple(f"{d.name}: {arm}" for d in (one, two) for arm in arms)
    assert comparison.labels[comparison.baseline] == "demo: SFT"
    page, text = page_of(one, two)
    (title,) = page.text["h1"]
    better, worse = title.split("demo-seed1: ")
    assert better.startswith("demo: UniGame is better than SFT") and "UniGame is worse" in worse
    assert "demo: One training run per arm (seed 0)." in text
    assert "demo-seed1: One training run per arm (seed 1)." in text
    assert commands(page)[0] == "unigame demo --seed 2 --output runs/demo-seed2"
    assert commands(page)[1].startswith("unigame train janus_nano --beta")
    config = json.loads((two / "config.json").read_text())
    for model, again, own in (
        ("bagel-nano", " --model bagel-nano", ""),
        ("my model", " --model 'my model'", " --model 'my model'"),
    ):
        changed = config | {"model": model, "recipe": "bagel_nano"}
        (two / "config.json").write_text(json.dumps(changed))
        first, second, *_ = commands(page_of(one, two)[0])
        assert first == f"unigame demo{again} --seed 2 --output runs/demo-seed2"
        assert second.startswith(f"unigame train bagel_nano{own} --beta")


def test_a_run_beside_a_demo_is_compared_with_its_sft(tmp_path: Path) -> None:
    one = demo(tmp_path / "demo", 0, {"base": 0.4, "sft": 0.5, "unigame": 0.9})
    benchmarks, summary = four(0.9)
    write(tmp_path, "mine", record(benchmarks, sha="mine", summary=summary))
    page, _ = page_of(one, tmp_path / "mine")
    assert page.text["h1"][0].startswith("mine is better than demo: SFT")
    assert any(line.startswith("demo: UniGame beat SFT") for line in page.text["strong"])


def test_evaluations_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("game", "game (base)"):
        for part in ("base", "evaluation") if name == "game" else (".",):
            write(tmp_path / name, part, record(four(0.5)[0], sha=part))
    with pytest.raises(UserError, match=r"'game \(base\)'"):
        write_report([tmp_path / "game", tmp_path / "game (base)"])


# ---- evaluations of other weights ----------------------------------------------------------------
def measured_run(folder: Path) -> Path:
    """A finished run with evaluations of its base and of its adapter."""
    run = write_run(folder, examples=0)
    (run / "adapter_model.safetensors").write_bytes(b"first")
    for name, right, digest in (("base", 0.4, None), ("evaluation", 0.9, folder_sha256(run))):
        benchmarks, summary = four(right)
        content = record(benchmarks, summary=summary)
        content["model"]["adapter"] = digest and {"id": str(run), "sha256": digest}
        write(run, name, content)
    return run


def test_what_was_measured_before_a_run_was_trained_anew_is_no_verdict_on_it(
    tmp_path: Path,
) -> None:
    run = measured_run(tmp_path / "game")
    page, text = page_of(run)
    assert "game (evaluation) is better than game (base)" in page.text["h1"][0]
    assert "Left out" not in text
    log = (run / "trainer_state.json").read_text()
    run_folder.set_aside(run)
    (run / "adapter_model.safetensors").write_bytes(b"second")
    (run / "trainer_state.json").write_text(log)
    run_folder.drop_replaced(run)
    page, text = page_of(run)
    (title,) = page.text["h1"]
    assert "better" not in title and f"Left out: {run / 'evaluation'} is of other" in title
    assert "game (evaluation)" not in text and "game (base)" in text
    # The command that it names can be run: the old record's folder takes no other model.
    assert any(f"--output {run / 'evaluation-2'}" in line for line in commands(page))


def test_without_its_own_evaluation_nothing_is_known_of_a_run(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "game")
    (run / "base" / "results.json").unlink()
    (run / "adapter_model.safetensors").write_bytes(b"second")
    page, _ = page_of(run)
    (title,) = page.text["h1"]
    assert "Left out" in title and "nothing is known of its accuracy" in title
    assert "no evaluation lies" not in title


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_that_is_not_finished_has_the_weights_of_its_checkpoints(
    checkpoint: bool, tmp_path: Path
) -> None:
    run = measured_run(tmp_path / "game")
    run_folder.set_aside(run)
    if checkpoint:
        for step, content in ((9, b"second"), (10, b"first")):
            (run / f"checkpoint-{step}").mkdir()
            (run / f"checkpoint-{step}" / "adapter_model.safetensors").write_bytes(content)
    found = read_run(run, "game")
    assert list(found.evaluations) == ["game (base)", "game (evaluation)"][: 1 + checkpoint]
    assert found.left_out == (() if checkpoint else (run / "evaluation",))


def test_a_run_in_progress_is_shown_by_its_newest_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "game"
    for step in (20, 100):  # by number, and not by name
        state = {"global_step": step, "max_steps": 120, "log_history": log(step // 10)}
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    recipe = {"methods": {"sft": {}}, "recipe": {"model": "janus-nano"}}
    (run / "checkpoint-100" / "run.json").write_text(json.dumps(recipe))
    page, text = page_of(run)
    said = "is stopped or in progress at step 100 of 120"
    assert f"game {said}." in page.text["h1"][0] and "janus-nano" in text
    assert any(f"--adapter {run / 'checkpoint-100'} " in line for line in commands(page))
    assert cli.main(["report", str(run)]) == 0
    assert f"{run} {said}." in capsys.readouterr().out.replace("\n", "")
    assert f"{run / 'checkpoint-20'} is" not in text
    page, _ = page_of(run / "checkpoint-20")
    assert "checkpoint-20 is stopped or in progress at step 20 of 120." in page.text["h1"][0]
    state = {"global_step": 120, "max_steps": 120, "log_history": log()}
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert "in progress" not in page_of(run)[0].text["h1"][0]
    assert "a checkpoint at step 20 of 120" in page_of(run / "checkpoint-20")[0].text["h1"][0]


def test_a_checkpoint_before_the_first_log_is_a_run_in_progress(tmp_path: Path) -> None:
    place = tmp_path / "game" / "checkpoint-2"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 40}')
    assert "in progress at step 2 of 40" in page_of(tmp_path / "game")[0].text["h1"][0]


# ---- runs that were saved in Python --------------------------------------------------------------
def saved_run(folder: Path, steps: int, *, about: int, weights: str = "adapter_model") -> Path:
    """A run with a checkpoint at so many steps of 60, and no state of its own."""
    run = write_run(folder, examples=0, dynamics=False)
    (run / "trainer_state.json").unlink()
    content = json.loads((run / "about.json").read_text()) | {"steps": about}
    (run / "about.json").write_text(json.dumps(content))
    if weights:
        (run / f"{weights}.safetensors").write_bytes(b"first")
    state = {"global_step": steps, "max_steps": 60, "log_history": log(steps // 10)}
    (run / f"checkpoint-{steps}").mkdir()
    (run / f"checkpoint-{steps}" / "trainer_state.json").write_text(json.dumps(state))
    return run


@pytest.mark.parametrize("weights", ["adapter_model", "model", "connector"])
def test_a_run_without_its_state_is_finished_by_its_weights(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``train`` and ``save_model`` in Python; ``save_state`` alone writes trainer_state.json."""
    run = saved_run(tmp_path / "game", 60, about=60, weights=weights)
    page, text = page_of(run)
    assert "In 60 steps U's loss" in page.text["h1"][0] and "progress" not in page.text["h1"][0]
    assert "no symptom" in text and any(f" {run} " in line for line in commands(page))
    assert cli.main(["report", str(run)]) == 0
    assert "progress" not in capsys.readouterr().out
    title = page_of(run / "checkpoint-60")[0].text["h1"][0]
    assert "checkpoint-60 is a checkpoint at step 60 of 60." in title


def test_a_run_without_its_weights_has_no_result(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "game", 60, about=60, weights="")
    page, _ = page_of(run)
    assert "game is at step 60 of 60 and has no result yet." in page.text["h1"][0]
    assert any(f"--adapter {run / 'checkpoint-60'} " in line for line in commands(page))


def test_a_killed_run_is_not_finished_by_what_lay_there_before(tmp_path: Path) -> None:
    """It was told to go on from its end: adapter and about.json are those of 30 steps."""
    run = saved_run(tmp_path / "game", 40, about=30)
    page, text = page_of(run)
    assert "game is stopped or in progress at step 40 of 60." in page.text["h1"][0]
    assert "o symptom" not in text, "of 30 steps"
    state = {"global_step": 30, "max_steps": 30, "log_history": log(4)[:3]}
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert "in progress at step 40 of 60" in page_of(run)[0].text["h1"][0]
    # A checkpoint that another, longer run left there says nothing of this one.
    state["log_history"][0]["seconds_challenge"] = 0.7
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert "In 30 steps" in page_of(run)[0].text["h1"][0]


def test_a_run_whose_log_is_nowhere_says_so(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "game", 60, about=60)
    state = {"global_step": 60, "max_steps": 60, "log_history": []}
    (run / "checkpoint-60" / "trainer_state.json").write_text(json.dumps(state))
    assert "No step was logged of 60" in page_of(run)[0].text["h1"][0]
    (run / "checkpoint-60" / "trainer_state.json").unlink()
    page, text = page_of(run)
    assert "trainer.save_state()" in page.text["h1"][0] and "✓" not in text
    assert any(line.startswith("unigame evaluate") for line in commands(page))


# ---- runs that logged nothing --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"logging_steps": 10}, "of 2 (logging_steps=10), so nothing can be judged; set "),
        ({"logging_strategy": "no", "logging_steps": 1}, "(logging_strategy=no), so nothing can"),
    ],
)
def test_a_run_that_logged_nothing_is_not_called_healthy(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "short", examples=0)
    summed = {"step": 2, "train_loss": 0.5, "train_runtime": 3.0}
    state = {"global_step": 2, "max_steps": 2, "log_history": [summed]}
    (run / "trainer_state.json").write_text(json.dumps(state))
    (run / "unigame_config.json").write_text(json.dumps(settings))
    page, text = page_of(run)
    assert f"No step was logged {said}" in page.text["h1"][0]
    assert "short: nothing logged" in text and "no symptom" not in text and "✓" not in text
    assert "within their thresholds" not in text
    finding = {"symptom": "C dead", "says": "rate is 0", "knob": "raise it", "figures": {}}
    about = json.loads((run / "about.json").read_text()) | {"findings": [finding]}
    (run / "about.json").write_text(json.dumps(about))
    assert "short: C dead" in page_of(run)[1], "what was found is shown"


def test_closing_sentences_and_warnings_are_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game", examples=0)
    said = "Replay: U learned from 5 <hard> samples."
    warned = ["warmup_steps=5 is <as long> as the run", "no checkpoint is written"]
    about = json.loads((run / "about.json").read_text()) | {"said": [said], "warnings": warned}
    (run / "about.json").write_text(json.dumps(about))
    page, _ = page_of(run)
    assert said in page.text["p"]
    assert "2 warnings of the run" in page.text["summary"]
    assert set(warned) <= set(page.text["li"])


# ---- a folder of runs ----------------------------------------------------------------------------
def test_a_folder_of_runs_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The evaluations in it were taken for those of one run, and the runs passed by."""
    runs = tmp_path / "my runs"
    write_run(runs / "game", examples=0)
    with pytest.raises(UserError, match=r"unigame report '[^']*my runs/game'$"):
        write_report([runs])
    for name, right in (("base", 0.4), ("mine", 0.8)):
        write(runs, name, record(four(right)[0], sha=name))
    assert cli.main(["report", str(runs)]) == 2
    words = [f"'{runs / name}'" for name in ("base", "game", "mine")]
    said = " ".join(capsys.readouterr().err.split())
    assert f"unigame report {' '.join(words)} --output '{runs / 'report.html'}'" in said
    assert cli.main(["report", *(str(runs / name) for name in ("base", "game", "mine"))]) == 0


def test_a_folder_of_evaluations_alone_is_shown(tmp_path: Path) -> None:
    for name, right in (("base", 0.4), ("mine", 0.8)):
        write(tmp_path / "e", name, record(four(right)[0], sha=name))
    (tmp_path / "e" / "plots" / "arms").mkdir(parents=True)  # no demo's: it has no config.json
    assert "e (mine) is better than e (base)" in page_of(tmp_path / "e")[0].text["h1"][0]


def test_a_folder_of_demos_or_many_runs_names_them(tmp_path: Path) -> None:
    demo(tmp_path / "demos" / "one", 0, {"base": 0.4, "sft": 0.5, "unigame": 0.9})
    with pytest.raises(UserError, match=r"demos/one$"):
        write_report([tmp_path / "demos"])
    for number in range(10):
        saved_run(tmp_path / "many" / f"r{number}", 40, about=30)
    with pytest.raises(UserError, match=r"the first 8 of 10\).*/r7 --output"):
        write_report([tmp_path / "many"])


def test_evaluations_of_a_runs_checkpoints_are_its_own(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "game")
    (run / "checkpoint-10").mkdir()
    (run / "adapter_model.safetensors").rename(run / "checkpoint-10" / "adapter_model.safetensors")
    (run / "adapter_model.safetensors").write_bytes(b"the last")
    found = read_run(run, "game")
    assert "game (evaluation)" in found.evaluations and not found.left_out


@pytest.mark.parametrize("weights", ["model.safetensors", "connector.safetensors"])
def test_a_whole_model_that_was_trained_anew(weights: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "warm", examples=0)
    (run / weights).write_bytes(b"first")
    for name, place, digest in (("base", "b", "base"), ("own", str(run), folder_sha256(run))):
        content = record(four(0.5)[0], sha=digest)
        content["model"]["id"] = place
        write(run, name, content)
    assert list(read_run(run, "warm").evaluations) == ["warm (base)", "warm (own)"]
    (run / weights).write_bytes(b"second")
    found = read_run(run, "warm")
    assert list(found.evaluations) == ["warm (base)"] and found.left_out == (run / "own",)


def test_an_evaluation_of_the_base_alone_does_not_bear_the_runs_name(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "game")
    (run / "evaluation" / "results.json").unlink()
    assert list(read_run(run, "game").evaluations) == ["game (base)"]


# ---- evaluations of one model in several folders -------------------------------------------------
def test_benchmarks_of_one_model_in_several_folders_are_one_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game", examples=0)
    (run / "adapter_model.safetensors").write_bytes(b"first")
    found, _ = four(0.8)
    own = {"id": str(run), "sha256": folder_sha256(run)}
    for name, taken in (("evaluation", ("vqav2", "mmmu")), ("evaluation-2", ("mmmu", "pope"))):
        content = record({key: found[key] for key in taken})
        content["model"]["adapter"] = own
        write(run, name, content)
    whole = read_run(run, "game")
    (joined,) = whole.evaluations.values()
    assert list(whole.evaluations) == ["game"] and set(joined.benchmarks) == {
        "vqav2",
        "mmmu",
        "pope",
    }
    assert whole.twice == (f"MMMU of {run / 'evaluation-2'}, which {run / 'evaluation'} has too",)
    page, text = page_of(run)
    assert "same weights" not in text and f"MMMU of {run / 'evaluation-2'}" in text
    assert "no measurable" not in page.text["h1"][0] and "nothing to compare" in page.text["h1"][0]
    # The same weights in another precision answer otherwise, and are not the same model.
    content["model"]["quantization"] = "nf4"
    write(run, "evaluation-3", content)
    assert list(read_run(run, "game").evaluations) == [
        "game (evaluation, evaluation-2)",
        "game (evaluation-3)",
    ]


def test_a_score_of_several_benchmarks_is_not_put_together_from_two_folders(
    tmp_path: Path,
) -> None:
    found, summary = four(0.8)
    reason = {"understanding": {"value": None, "reason": "needs mmmu as well"}}
    for name, taken, said in (
        ("a", ("vqav2",), reason),
        ("b", ("mmmu",), reason),
        ("c", tuple(found), summary),
    ):
        content = record({key: found[key] for key in taken}, summary=said)
        write(tmp_path / "game", name, content)
    page_of(tmp_path / "game")  # a score whose parts are another record's contradicts itself
    (joined,) = read_run(tmp_path / "game", "game").evaluations.values()
    assert joined.summary["understanding"]["value"] is None
    assert "one evaluation" in joined.summary["understanding"]["reason"]


# ---- what a log says -----------------------------------------------------------------------------
def test_a_loss_is_called_what_it_is() -> None:
    log = [{"step": n, "loss": 5 - n / 10, "clean_answer_ce": math.nan} for n in range(1, 7)]
    assert "the training loss fell from 4.850 to 4.450" in verdict.of_training(log, 6)
    log[0]["clean_answer_ce"], log[5]["clean_answer_ce"] = 2.0, 1.0
    said = verdict.of_training(log, 6)
    assert "U's loss on clean answers fell from 2.000 to 1.000" in said and "nan" not in said


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((0.0511,), "the training loss was 0.051"),
        ((0.0511, 0.0513), "the training loss stayed at 0.051"),
        ((0.0513, 0.0511), "the training loss stayed at 0.051"),
        ((0.051, 0.052), "the training loss rose from 0.051 to 0.052"),
    ],
)
def test_a_figure_that_shows_no_change_did_not_rise(losses: tuple[float, ...], said: str) -> None:
    log = [{"step": n, "loss": loss} for n, loss in enumerate(losses, start=1)]
    assert f"{said};" in verdict.of_training(log, len(log))


# ---- dynamics ------------------------------------------------------------------------------------
def labels(page: Page) -> list[str]:
    return [str(svg["aria-label"]) for svg in page.all("svg") if svg.get("aria-label")]


def test_every_plot_of_a_game_says_what_it_shows(tmp_path: Path) -> None:
    page, text = page_of(write_run(tmp_path / "game"))
    said = {label.partition(". ")[0]: label for label in labels(page)}
    ahead = said["Who is ahead: right answers that C takes beyond redrawing"]
    assert "ahead in 12 of 12" in ahead  # 0.4 * exp(-n / 12) against 0.1
    path = said["Path of the LoRA weights in two dimensions"]
    # six steps of 1, six of sqrt(2), against (12, 6)
    assert "a way of 14.5" in path and "ended 13.4" in path and "93 %" in path
    coverage = said["Coverage: where the pictures lie"]
    assert "12 clean, 12 candidates, 12 buffer, 12 held-out" in coverage
    assert "candidates 2.00, buffer 3.00, held-out 4.00" in coverage
    assert any(title.startswith("Age in the buffer") for title in said)
    assert [t for t in page.text["h3"] if t.startswith("The ")] == [
        "The game",
        "The model",
        "The buffer",
        "The attack",
        "The cost",
    ]
    assert len([attrs for attrs in page.all("path") if "transform" in attrs]) == 4 * 12
    assert "The whole process took 1,234 MiB" in text


def test_a_timeline_goes_down_where_redrawing_takes_as_much() -> None:
    log = [
        {"step": n, "attack_success_rate": 0.2, "redrawn_success_rate": alone}
        for n, alone in ((1, 0.1), (2, 0.2), (3, 0.4))
    ]
    chart = charts.timeline(log)
    assert chart is not None and "ahead in 1 of 3 logs, by 10 %" in chart.about
    bars = re.findall(r'class="bar (\w+)".*? y="([\d.]+)".*?height="([\d.]+)"', str(chart.svg))
    assert [kind for kind, _, _ in bars] == ["attacked", "clean", "clean"]
    (up, down) = (float(y) + float(h) for y, h in ((bars[0][1], bars[0][2]), (bars[2][1], 0)))
    assert abs(up - down) < 0.2  # both stand on zero
    assert float(bars[1][2]) > 0 and float(bars[2][2]) > 1.9 * float(bars[0][2])
    assert charts.timeline([{"step": 1, "attack_success_rate": 0.5}]) is None


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game", dynamics=False)
    _, text = page_of(run)
    assert "No path of the LoRA weights: this run took none down" in text
    about = json.loads((run / "about.json").read_text())
    about["not_recorded"] = {"path": "no LoRA", "coverage": "a stream"}
    (run / "about.json").write_text(json.dumps(about))
    _, text = page_of(run)
    assert "No path of the LoRA weights: no LoRA." in text and "No coverage map: a stream." in text


def test_a_path_whose_last_line_was_cut_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game")
    with (run / "dynamics" / "path.jsonl").open("a") as file:
        file.write('{"step": 130, "mov')
    page, _ = page_of(run)
    assert any("to 120" in label for label in labels(page) if label.startswith("Path"))


def test_memory_by_phase(tmp_path: Path) -> None:
    run = write_run(tmp_path / "game")
    state = json.loads((run / "trainer_state.json").read_text())
    state["log_history"][0]["memory_challenge"] = 2048.0
    state["log_history"][3]["memory_challenge"] = 4096.0
    (run / "trainer_state.json").write_text(json.dumps(state))
    _, text = page_of(run)
    assert "<td>4,096</td>" in text and "MiB at most" in text and "whole process" not in text


# ---- what to do next -----------------------------------------------------------------------------
def commands(page: Page) -> list[str]:
    return "\n".join(page.text["pre"]).split("\n")


def test_a_run_that_was_not_measured_says_how_to(tmp_path: Path) -> None:
    page, text = page_of(write_run(tmp_path / "my game"))
    measure, mine, report = commands(page)[:3]
    assert measure.startswith("unigame evaluate --model janus-nano --benchmarks all --output '")
    assert mine.count("--adapter '") == 1 and report.startswith("unigame report '")
    assert "Mend" not in text
    findings = [{"symptom": "C dead", "says": "x", "knob": "raise it", "figures": {}}]
    _, text = page_of(write_run(tmp_path / "sick", findings=findings))
    assert "Mend" in text and "raise it" in text


@pytest.mark.parametrize("weights", ["connector.safetensors", "model.safetensors"])
def test_a_run_without_an_adapter_is_measured_as_a_model(weights: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "warm", examples=0)
    (run / weights).write_bytes(b"first")
    _, own, _ = commands(page_of(run)[0])[:3]
    assert own.startswith(f"unigame evaluate --model {run} --benchmarks") and "--adapter" not in own
    for name, right, model in (("base", 0.4, "b"), ("own", 0.9, str(run))):
        benchmarks, summary = four(right)
        digest = folder_sha256(run) if name == "own" else "base"
        content = record(benchmarks, sha=digest, summary=summary)
        content["model"]["id"] = model
        write(run, name, content)
    page, _ = page_of(run)
    assert "is better than" in page.text["h1"][0]
    assert not any("unigame merge" in line for line in commands(page)), "there is no adapter"


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        (
            "unigame train my.yaml --seed 3 --output_dir runs/a --beta 0.5",
            "unigame train my.yaml --beta 0.5",
        ),
        (
            "unigame train my.yaml --resume_from_checkpoint true --hub_token=... --seed=3 "
            "--push_to_hub --hub-model-id me/mine --output-dir=x --training.hub_strategy end "
            "--data.0.seed 3",
            "unigame train my.yaml --push_to_hub --data.0.seed 3",
        ),
        ("unigame train my.yaml --resume_from_checkpoint --beta 1", "unigame train my.yaml --beta"),
        (  # about.json of an earlier version
            "unigame train my.yaml --training.hub-token hf_a --training '{hub_token: hf_a}'",
            "unigame train my.yaml --training '{hub_token: ...}'",
        ),
        ("unigame train --hub_token ... b'", "unigame train RECIPE"),
    ],
)
def test_a_repetition_has_nothing_of_the_first_run(typed: str, again: str, tmp_path: Path) -> None:
    run = measured_run(tmp_path / "game")
    about = json.loads((run / "about.json").read_text()) | {"command": typed}
    (run / "about.json").write_text(json.dumps(about))
    line = next(line for line in commands(page_of(run)[0]) if line.startswith("unigame train"))
    assert line.startswith(again) and line.endswith(f" --seed 4 --output_dir {run}-seed4")
    assert line.count("seed") == 2 + again.count("seed")
    assert "hf_a" not in line and "resume" not in line
    assert "--hub" not in line and ".hub" not in line


def test_large_pictures_do_not_make_it_huge(tmp_path: Path) -> None:
    _, text = page_of(write_run(tmp_path / "game", examples=1, side=384))
    assert "data:image/jpeg" in text and len(text) < 1_500_000


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda run: (run / "trainer_state.json").write_text("{"), "trainer_state.json"),
        (lambda run: (run / "examples" / "0-clean.png").write_text("no"), "0-clean.png"),
        (lambda run: (run / "dynamics" / "path.jsonl").write_text("{}\n{}"), "path.jsonl"),
        (
            lambda run: (run / "dynamics" / "coverage.json").write_text('{"format": "y/3"}'),
            "y/3",
        ),
        (
            lambda run: (run / "examples" / "examples.json").write_text('{"format": "x/2"}'),
            "x/2",
        ),
    ],
)
def test_damaged_files_are_named(damage, named: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "game")
    damage(run)
    with pytest.raises(UserError, match=re.escape(named)):
        write_report([run])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "game")
    out = tmp_path / "shown" / "page.html"
    assert cli.main(["report", str(run), "--output", str(out)]) == 0 and out.is_file()
    assert cli.main(["report", str(run)]) == 0 and (run / "report.html").is_file()
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    wrong = {
        "nowhere": ["nowhere"],
        "empty": [str(tmp_path / "empty")],
        "page.txt": [str(run), "--output", "page.txt"],
        "twice": [str(run), str(run)],
    }
    for named, words in wrong.items():
        assert cli.main(["report", *words]) == 2
        assert named in capsys.readouterr().err


# ---- drawings that U verified --------------------------------------------------------------------
def test_verified_drawings_and_how_they_were_judged_are_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "taught", examples=0)
    state = json.loads((run / "trainer_state.json").read_text())
    for number, entry in enumerate(state["log_history"]):
        entry |= {"verify_kept": 0.4, "verify_precision": 0.9 - 0.01 * number}
        entry |= {"verify_recall": 0.5, "verify_false_confirmed": 0.1, "imagine_retained": 0.8}
    (run / "trainer_state.json").write_text(json.dumps(state))
    coverage = json.loads((run / "dynamics" / "coverage.json").read_text())
    coverage["kinds"]["confirmed"] = {"at": [[0.1, 0.2]] * 3, "nearest": 1.5}
    (run / "dynamics" / "coverage.json").write_text(json.dumps(coverage))
    write_drawings(run, rights=(True, False, None))
    page, text = page_of(run)
    assert "What G drew and U confirmed" in page.text["h2"]
    shown = [tag["alt"] for tag in page.all("img") if str(tag["alt"]).startswith("drawing of")]
    assert shown == [f"drawing of: a <red> circle {number}" for number in range(3)]
    marks = [words for words in page.text["span"] if words in ("\u2713 right", "\u2717 wrong")]
    assert marks == ["\u2713 right", "\u2717 wrong"], "nothing where no reader looked"
    titles = page.text["h4"]
    assert "verify: is the verifier right?" in titles and "imagine: what U answers" in titles
    assert "precision: 90 % at the start, 79 % at the end" in text
    assert "3 confirmed" in text


def test_drawings_of_another_format_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "taught", examples=0)
    write_drawings(run, rights=(True,))
    (run / "drawings" / "verify.json").write_text('{"format": "unigame-drawings/9"}')
    with pytest.raises(UserError, match="unigame-drawings/9"):
        write_report([run])
