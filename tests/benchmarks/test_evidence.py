"""The protocol on a tiny random model: what it trains, measures, refuses and writes."""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unigame
from tests.tiny import make_tiny_janus
from unigame.errors import UserError
from unigame.synthetic.dataset import CONDITIONS
from unigame.synthetic.questions import vocabulary

SCRIPTS = Path(unigame.__file__).parents[1] / "benchmarks"
REQUIRED = ("base", "sft", "sft_equal", "round_trip", "random", "paper", "selfplay", "augmented")
METRICS = ("ood", "id", "gacc", "attack", "consistency", "t2i")
METRICS += ("t2i_exact",)
PARTS = ("arms", "dynamics", "measure", "picture", "presets", "report", "rows", "statistics")
SMALL = (
    *("training.per_device_train_batch_size=4", "training.learning_rate=0.01", "steps=2"),
    *("game.hard_batch_size=2", "questions=12", "extra=12", "measured.drawings=1"),
    *("measured.id=6", "measured.groups=1", "measured.attacked=4"),
)


@pytest.fixture(scope="module", autouse=True)
def scripts():
    names = ("evidence", *(f"evidence_{part}" for part in PARTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(make_tiny_janus(folder, image_size=48, vocab_words=vocabulary()))


def words(model: str, output: Path, *more: str, seeds=("0", "1")) -> list[str]:
    return [
        *("--preset", "smoke", "--model", model, "--output", str(output), "--workers", "1"),
        *("--seeds", *seeds, "--set", *SMALL, *more),
    ]


@pytest.fixture(scope="module")
def done(scripts, model, tmp_path_factory):
    """Two seeds of four arms."""
    output = tmp_path_factory.mktemp("evidence")
    arms = ("--arms", "selfplay", "base", "sft", "augmented")
    files = ("--json", str(output / "new" / "r.json"), "--figure", str(output / "new" / "r.png"))
    scripts.evidence.main(words(model, output, *arms, *files))
    return output


def test_the_record_has_its_keys_and_one_value_a_seed(done):
    result = json.loads((done / "new" / "r.json").read_text())
    assert set(result) == {
        *("preset", "seeds", "metrics", "differences", "settings_sha256", "command", "machine"),
        "hard_rows",
    }
    (mined,) = result["hard_rows"].values()
    assert list(result["hard_rows"]) == ["selfplay"] and len(mined) == 2
    assert result["preset"] == "smoke" and result["seeds"] == [0, 1]
    assert set(result["metrics"]) == {*METRICS, *(f"ood/{name}" for name in CONDITIONS)}
    assert (done / "new" / "r-settings.json").read_text() == (done / "settings.json").read_text()
    (code,) = result["machine"]["code"]
    assert torch.__version__ in code
    for arms in result["metrics"].values():
        assert list(arms) == ["base", "sft", "selfplay", "augmented"]
        for values in arms.values():
            assert len(values) == 2
            assert all(value is None or 0 <= value <= 100 for value in values)
    of_ood = result["differences"]["ood"]
    assert set(of_ood) == {"base-sft", "selfplay-sft", "augmented-sft"}
    assert all(set(found) == {"mean", "low", "high"} for found in of_ood.values())
    assert "--split validation" in result["command"]
    assert (done / "new" / "r.png").stat().st_size > 0
    assert "selfplay - sft" in (done / "table.md").read_text()


def test_arms_of_a_seed_start_alike_and_end_apart(done):
    def adapter(seed: int, arm: str) -> dict[str, torch.Tensor]:
        return load_file(done / f"seed-{seed}" / arm / "adapter" / "adapter_model.safetensors")

    sft, game, real = (adapter(0, arm) for arm in ("sft", "selfplay", "augmented"))
    for other in (game, real, adapter(1, "sft")):
        assert any(not torch.equal(sft[name], other[name]) for name in sft)
    # Two steps of 0.01 move A, which is random, by little: its start is the seed's.
    names = [name for name in sft if "lora_A" in name]
    apart = max((sft[name] - game[name]).abs().max() for name in names)
    assert apart < 0.05 < max((sft[n] - adapter(1, "sft")[n]).abs().max() for n in names)


def test_what_is_done_is_not_done_again(scripts, done, model, monkeypatch):
    shutil.rmtree(done / "seed-1" / "selfplay")
    (done / "seed-0" / "sft" / "validation.json").unlink()
    trained, measured = [], []
    train, measure = scripts.evidence_arms._train, scripts.evidence_arms.measure
    monkeypatch.setattr(
        scripts.evidence_arms,
        "_train",
        lambda job, tell: (trained.append((job.seed, job.arm)), train(job, tell)),
    )
    monkeypatch.setattr(
        scripts.evidence_arms,
        "measure",
        lambda *given: (measured.append(given[2]), measure(*given))[1],
    )
    before = json.loads((done / "new" / "r.json").read_text())
    arms = ("--arms", "base", "sft", "selfplay", "augmented")
    again = scripts.evidence.main(words(model, done, *arms))
    assert trained == [(1, "selfplay")] and measured == [0, 1]
    assert again["metrics"] == before["metrics"], "the same seed gave other figures"


def test_the_test_split_needs_the_hash_of_these_settings(scripts, done, model):
    sha256 = json.loads((done / "new" / "r.json").read_text())["settings_sha256"]
    for given, said in (([], "needs frozen settings"), (["--frozen", "0" * 64], "are not the fro")):
        with pytest.raises(UserError, match=said) as found:
            scripts.evidence.main(words(model, done, "--split", "test", *given))
        assert sha256 in str(found.value)
    found = scripts.evidence.main(
        words(model, done, "--arms", "base", "--frozen", sha256, seeds=("0",))
    )
    assert "--split test" in found["command"]
    assert (done / "seed-0" / "base" / "test.json").exists()


@pytest.mark.parametrize("change", ["steps=3", "severity=mild", "arms.sft.extra.split=train"])
def test_other_settings_have_another_hash(scripts, change):
    def settled(*changes: str):
        presets = scripts.evidence_presets
        return presets.settle(presets.preset("demo", changes), "weights")

    assert settled().sha256() == settled("frozen=abc").sha256() != settled(change).sha256()


def test_frozen_settings_are_measured_on_the_test_split(scripts):
    choose = scripts.evidence.choose_split
    assert choose(None, None, None, "abc") == "validation"
    assert choose(None, None, "abc", "abc") == "test" == choose("test", "abc", None, "abc")
    assert choose("validation", None, "abc", "abc") == "validation"
    assert choose(None, None, "of other settings", "abc") == "validation"


def test_what_is_frozen_has_not_thawed(scripts):
    """A new setting of the game or a change of the recipe changes the hash: freeze it again."""
    from unigame.backbones import load_backbone

    @functools.cache
    def weights(model: str) -> str:
        return load_backbone(model, dtype="float32").weights_digest()

    presets = scripts.evidence_presets
    frozen = {name for name, one in presets.read_presets().items() if one.get("frozen")}
    assert {"demo", "bagel_demo"} <= frozen
    for name in frozen:
        preset = presets.preset(name)
        settled = presets.settle(preset, weights(preset.get("model") or "janus-nano"))
        assert preset["frozen"] == settled.sha256(), name


def test_thawed_settings_and_code_that_changed_are_said(scripts, model, tmp_path, capsys):
    more = ("--arms", "base")
    scripts.evidence.main(words(model, tmp_path, "frozen=abc", *more, seeds=("0",)))
    assert "was frozen as abc" in capsys.readouterr().out
    file = tmp_path / "seed-0" / "base" / "validation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "code": "of yesterday"}))
    scripts.evidence.main(words(model, tmp_path, *more, seeds=("0", "1")))
    assert "arms of different code" in capsys.readouterr().out


def test_hard_rows_are_told_of_arms_that_have_them(scripts, done):
    folder = done / "seed-0" / "selfplay"
    record = json.loads((folder / "trained.json").read_text())
    log = [{"replayed": 1.0}, {"replayed": 2.0}, {"loss": 1.0}]
    jobs = [
        scripts.evidence_arms.Job(done, "", None, arm, seed, "validation")
        for arm in ("base", "sft", "selfplay")
        for seed in (0, 1)
    ]
    before = (folder / "trained.json").read_text()
    (folder / "trained.json").write_text(json.dumps({**record, "log": log}))
    rows = scripts.evidence.hard_rows(jobs[4:5] + jobs[:4])
    (folder / "trained.json").write_text(before)
    assert rows == {"selfplay": [1.5]}
    assert scripts.evidence_report.rows_line({"hard_rows": rows}) == [
        "Hard rows a step: selfplay 1.5."
    ]
    assert scripts.evidence.hard_rows(jobs[:4]) == {}
    assert scripts.evidence_report.rows_line({}) == [], "a result that was kept before they were"


def test_a_folder_of_other_settings_is_refused(scripts, done, model):
    with pytest.raises(UserError, match="other settings"):
        scripts.evidence.main(words(model, done, "questions=24"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("game.eps_mx=1", "eps_mx"),
        ("step=1", "step"),
        ("arms.sft.gme={}", "gme"),
        ("measured.odd=1", "odd"),
        ("game.beta=-1", "beta"),
        ("training.lr=1", "lr"),
        ("recipe=sft_joint", "sft_joint"),
        ("game.perturb_space=tokens", "perturb_space"),
        ("questions", "KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_before_any_weight_is_loaded(scripts, change, name, tmp_path):
    with pytest.raises(UserError, match=name):
        scripts.evidence.main(words(str(tmp_path / "no model"), tmp_path, change))
    assert not list(tmp_path.iterdir())


def test_a_figure_needs_what_it_compares_with(scripts, model, tmp_path):
    more = ("--arms", "base", "--figure", str(tmp_path / "x.png"))
    with pytest.raises(UserError, match="add it to --arms"):
        scripts.evidence.main(words(model, tmp_path / "out", *more))
    assert not list(tmp_path.iterdir())


def test_a_wrong_arm_is_named(scripts):
    settings = scripts.evidence_presets.settle(scripts.evidence_presets.preset("demo"))
    with pytest.raises(UserError, match="sftt.*augmented"):
        scripts.evidence.choose_arms(["sftt"], settings)


@pytest.mark.parametrize("name", ["demo", "full", "table4", "smoke"])
def test_presets_hold_what_they_say(scripts, name):
    settings = scripts.evidence_presets.settle(scripts.evidence_presets.preset(name))
    arms = settings.arms
    assert set(REQUIRED) <= set(arms)
    assert not arms["base"].trained and arms["sft"].methods == {"sft": {}}
    game = arms["selfplay"].methods["selfplay"]
    for other, kind in (("round_trip", "none"), ("random", "random")):
        assert arms[other].methods["selfplay"] == {**game, "perturbation": kind}
    # What the game adds to a step, arms of real rows add, and other games.
    games = [arm.methods["selfplay"] for arm in arms.values() if "selfplay" in arm.methods]
    assert len({played["hard_batch_size"] for played in games}) == 1
    (extra,) = scripts.evidence_arms.methods_of(arms["augmented"], settings)
    batch = settings.training["per_device_train_batch_size"]
    assert extra.settings.rows == (game["hard_batch_size"] or batch // 2)
    assert extra.settings.weight == game["beta"] and extra.settings.severity == settings.severity


def test_steps_in_which_c_plays_alone_come_on_top(scripts):
    arm = scripts.evidence_presets.Arm(True, {"selfplay": {"warm_up_steps": 7}}, None)
    assert arm.alone == 7
    assert scripts.evidence_presets.Arm(True, {"sft": {}}, None).alone == 0


def test_extra_rows_follow_the_seed_and_may_be_redrawn(scripts, model):
    from unigame.backbones import load_backbone
    from unigame.methods.base import Run

    backbone = load_backbone(model, dtype="float32")

    def rows(seed: int, **settings):
        method = scripts.evidence_rows.ExtraRows(split="augmented", rows=3, size=6, **settings)
        args = SimpleNamespace(seed=seed, per_device_train_batch_size=4)
        method.setup(Run(args, backbone, torch.device("cpu")))
        taken = []
        for step in range(2):
            method.before_step(None, step)
            taken += method.step_rows()
        return taken

    first, second = rows(0)
    assert len(first) == 3 and first.weight == 0.5 and not set(first.ids) & set(second.ids)
    assert rows(0)[0].questions == first.questions != rows(1)[0].questions
    redrawn = rows(0, redrawn=True)[0]
    codes = backbone.encode_images(first.images)
    assert torch.equal(redrawn.images, backbone.render(codes).clamp(0, 1))


def test_questions_of_splits_and_seeds_differ(scripts, model, monkeypatch):
    from unigame.backbones import load_backbone

    asked = []
    monkeypatch.setattr(
        scripts.evidence_measure,
        "SyntheticDataset",
        lambda *given, **more: asked.append(given) or dataset(*given, **more),
    )
    dataset = unigame.SyntheticDataset
    presets, backbone = scripts.evidence_presets, load_backbone(model, dtype="float32")
    settings = presets.settle(presets.preset("smoke", SMALL))
    for seed, split in ((0, "validation"), (1, "validation"), (0, "test")):
        scripts.evidence_measure.measure(backbone, settings, seed, split)
    ood = [given for given in asked if given[0].startswith("ood")]
    assert [given[0] for given in ood] == ["ood_validation", "ood_validation", "ood"]
    assert len({given[2] for given in asked}) == len(asked) == 9


def test_two_processes_give_what_one_gives(scripts, done, model, tmp_path, capsys):
    arms = ("--arms", "base", "sft", "--workers", "2")
    found = scripts.evidence.main(words(model, tmp_path, *arms, seeds=("0",)))
    before = json.loads((done / "new" / "r.json").read_text())["metrics"]
    for metric, values in found["metrics"].items():
        assert values == {arm: before[metric][arm][:1] for arm in ("base", "sft")}
    said = capsys.readouterr().out
    assert "seed 0, sft: training: 2 of 2" in said and "arms and seeds: 2 of 2" in said


# ---- what the seeds say --------------------------------------------------------------------------
def test_intervals_are_students_over_seeds(scripts):
    report, values = scripts.evidence_statistics, [1.0, 2.0, 6.0]
    half = 4.303 * statistics.stdev(values) / math.sqrt(3)
    found = report.interval(values)
    assert found["mean"] == 3 and found["low"] == pytest.approx(3 - half, abs=1e-4)
    assert found["high"] - 3 == pytest.approx(3 - found["low"], abs=1e-3)
    assert report.interval([4.0]) == {"mean": 4.0, "low": None, "high": None}
    assert report.interval([])["mean"] is None
    assert report.interval([0.0] * 99 + [1.0])["high"] > 0.01  # beyond the table of t


def test_differences_are_taken_within_seeds(scripts):
    arms = {"sft": [50, 70, None], "selfplay": [52, 73, 90]}
    found = scripts.evidence_statistics.differences({"ood": arms})["ood"]
    assert set(found) == {"selfplay-sft"} and found["selfplay-sft"]["mean"] == 2.5
    assert scripts.evidence_statistics.differences({"ood": {"base": [1.0]}}) == {"ood": {}}


def result_of(selfplay, **arms):
    ood = {"sft": [50, 51, 52], "selfplay": selfplay, **arms}
    return {"seeds": [0, 1, 2], "metrics": {"ood": ood, "id": ood, "ood/blur": ood}}


def test_the_verdict_says_what_was_shown(scripts):
    def said(*given, **more):
        return "\n".join(scripts.evidence_report.verdict(result_of(*given, **more)["metrics"]))

    won = said([53.0, 54.1, 55.0], random=[50, 51, 52.1], augmented=[54, 55, 56])
    assert "selfplay - sft: +3.0 [+2.9, +3.2], above 0" in won and "selfplay - random" in won
    assert "at least 2 points" in won and "3 of the 8 seeds" in won
    assert "not ruled out: none" in won and "both above 0: blur" in won
    chance = said([53.0, 54.1, 55.0], augmented=[50.1, 51, 52])
    assert "both above 0: none" in chance, "real augmentation gains nothing there"
    lost = said([40.0, 51, 60], augmented=[54, 55, 56])
    assert "not shown to be above 0" in lost and "id (" in lost and "both above 0: none" in lost
    assert "less than 2 points" in lost
    metrics = result_of([53.0, 54.1, 55.0])["metrics"]
    ood = metrics["ood"]
    metrics |= {f"ood/{name}": ood for name in CONDITIONS}
    metrics["ood/combos"] = {**ood, "selfplay": ood["sft"]}
    spans = [line for line in scripts.evidence_report.verdict(metrics) if "the span" in line]
    assert "+3.0 [+2.9, +3.2]" in spans[0] and "(combos): +0.0" in spans[1]


def test_the_goals_of_the_methods_are_judged(scripts):
    metrics = {
        "t2i_exact": {"sft": [50, 60], "verify": [61, 71.1], "real_pairs": [62, 73]},
        "new_task": {
            **{"base": [0, 0], "real_scenes": [80, 80]},
            **{"imagine": [76, 76.8], "sft": [None, None]},
        },
        "old_tasks": {"base": [90, 90], "imagine": [89, 87.5]},
    }
    said = "\n".join(scripts.evidence_report.goals({"t2i_exact": metrics["t2i_exact"]}))
    assert "verify - sft: +11.1 [+10.4, +11.7]; the goal of +10 is surely reached" in said
    said = "\n".join(scripts.evidence_report.goals(metrics))
    assert "verify - sft: +11.1 [+10.4, +11.7]; no goal here: sft on a new task forgets it" in said
    assert "verify - real_pairs: -1.4" in said and "goal of +0 is not reached" in said
    assert "imagine - base: -1.8" in said and "goal of -2 is in the mean reached" in said
    assert "imagine in % of real_scenes: +95.5" in said and "new_task, imagine - sft: ; not" in said
    assert "oracle" not in said
    assert "below sft" not in said and "imagine, measurably below base: nothing" in said
    lost = {
        "id": {"sft": [90, 91, 92], "verify": [88, 89.1, 90]},
        **{
            "t2i_exact": {"sft": [50, 60, 55], "verify": [61, 71.1, 66], "unverified": [60, 70, 65]}
        },
    }
    said = "\n".join(scripts.evidence_report.goals(lost))
    assert "verify, measurably below sft: id (-2.0" in said and "verify - unverified" in said
    lost["new_task"] = {"imagine": [70, 70, 70]}
    lost["t2i_exact"]["imagine"] = [60, 60, 60]  # then those controls are of imagine
    assert "verify - unverified" not in "\n".join(scripts.evidence_report.goals(lost))


def test_one_seed_is_no_evidence(scripts):
    one = {"ood": {"sft": [50.0], "selfplay": [60.0], "augmented": [61.0]}}
    assert scripts.evidence_report.verdict(one) == [
        "OOD, selfplay - sft: +10.0, one seed is no evidence.",
        "1 of the 8 seeds that the claim asks for.",
    ]


def test_the_table_has_a_row_for_each_metric(scripts):
    lines = scripts.evidence_report.table(result_of([53.0, 54.1, 55.0]))
    assert lines[0] == "| %, 3 seeds | sft | selfplay - sft |"
    assert lines[2] == "| ood | 51.0 | +3.0 [+2.9, +3.2] |" and len(lines) == 5
    alone = scripts.evidence_report.table({"seeds": [4], "metrics": {"ood": {"base": [61.0]}}})
    assert alone[0] == "| %, seed 4 | base |" and alone[2] == "| ood | 61.0 |"


def test_the_table_of_many_arms_has_a_row_for_each_arm(scripts, monkeypatch, tmp_path, capsys):
    arms = {"sft": [50.0, 50.0], **{f"arm_{n}": [50.0 + n, 51.0 + n] for n in range(12)}}
    arms |= {"selfplay": [52.0, 52.5], "augmented": [54.0, 54.5]}
    wide = {**kept([10, 11], **arms), "machine": {}}
    wide["metrics"]["id"] = wide["metrics"]["ood"]
    lines = scripts.evidence_report.table(wide)
    assert lines[0] == "| %, 2 seeds | ood | id |" and len(lines) == 2 + 15
    assert lines[2] == "| sft | 50.0 | 50.0 |" and lines[4].startswith("| arm_1 - sft | +1.5 [")
    file = tmp_path / "wide.json"
    file.write_text(json.dumps(wide))
    monkeypatch.setattr("sys.argv", ["evidence_report.py", str(file), "--against", "arm"])
    with pytest.raises(UserError, match="--against arm: no arm; there are sft, arm_0"):
        scripts.evidence_report.main()
    monkeypatch.setattr("sys.argv", ["evidence_report.py", str(file), "--metrics", "id"])
    scripts.evidence_report.main()
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "| %, 2 seeds | id |" and "| ood" not in said
    assert "OOD, selfplay - sft: +2.2" in said, "the verdict is of all that was measured"
    monkeypatch.setattr("sys.argv", ["evidence_report.py", str(file), "--metrics", "oood"])
    with pytest.raises(UserError, match="oood.*ood, id"):
        scripts.evidence_report.main()


# ---- how it went ---------------------------------------------------------------------------------
def test_dynamics_are_means_over_seeds(scripts, tmp_path):
    def keep(seed, arm, *log):
        folder = tmp_path / f"seed-{seed}" / arm
        folder.mkdir(parents=True)
        (folder / "trained.json").write_text(json.dumps({"log": list(log)}))

    one = {"step": 20, "adversarial_ce": 1.0, "attack_success_rate": 0.5, "style_0_used": 0.25}
    two = {**one, "adversarial_ce": 2.0, "redrawn_success_rate": 0.125, "style_1_used": 0.75}
    two |= {"style_1_misread": 0.5}
    keep(3, "selfplay", one, {**one, "step": 40, "adversarial_ce": math.nan}, {"step": 40})
    keep(4, "selfplay", two)
    keep(3, "sft", {"step": 20, "loss": 1.0})
    settings = {"arms": {"selfplay": {"methods": {"selfplay": {"styles": ["faint : {caption}"]}}}}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    files = ["--json", str(tmp_path / "d.json"), "--figure", str(tmp_path / "d.png")]
    found = scripts.evidence_dynamics.main([str(tmp_path), *files])
    assert list(found["arms"]) == ["selfplay"], "sft attacks nothing"
    assert found["arms"]["selfplay"]["seeds"] == [3, 4]
    own = found["arms"]["selfplay"]["curves"]
    assert own["adversarial_ce"] == [{"step": 20, "mean": 1.5, "sd": 0.70711}]
    assert own["ahead"] == [{"step": 20, "mean": 0.375, "sd": 0.0}]
    assert [point["step"] for point in own["style_0_used"]] == [20, 40]
    assert (tmp_path / "d.png").stat().st_size > 0
    again = ["--from", str(tmp_path / "d.json"), "--figure", str(tmp_path / "e.png")]
    assert scripts.evidence_dynamics.main(again) == found
    assert (tmp_path / "e.png").read_bytes() == (tmp_path / "d.png").read_bytes()
    assert own["style_1_misread"] == [{"step": 20, "mean": 0.5, "sd": 0.0}]
    del own["style_1_misread"]  # as in logs kept before this figure was: a row less
    scripts.evidence_dynamics.draw(found, tmp_path / "less.png")
    whole, less = (Image.open(tmp_path / name).height for name in ("d.png", "less.png"))
    assert less < whole
    with pytest.raises(UserError, match="has no arm sft; it has selfplay"):
        scripts.evidence_dynamics.main([*again, "--arms", "sft"])
    keep(3, "paper", two)  # an arm without styles, named first, hides no style of another
    assert scripts.evidence_dynamics.collect(tmp_path, ["paper", "selfplay"])["styles"]
    for arms, said in ((["nothing"], "no finished run of arm nothing"), (None, "that attacked")):
        with pytest.raises(UserError, match=said):
            scripts.evidence_dynamics.collect(tmp_path if arms else tmp_path / "seed-3", arms)


# ---- several results in one ----------------------------------------------------------------------
def kept(seeds, code="a1", sha256="f73b", split="test", **ood):
    return {
        "preset": "demo",
        "seeds": seeds,
        "metrics": {"ood": ood},
        "differences": {},
        "settings_sha256": sha256,
        "command": f"python benchmarks/evidence.py --seeds {seeds[0]} --split {split}",
        "machine": {"device": "cpu", "code": [code]},
    }


def test_results_of_the_same_settings_are_pooled_by_seed(scripts):
    first = kept([10, 11], sft=[50.0, 60.0], selfplay=[52.0, 62.5])
    later = kept([11, 9], code="b2", sft=[None, 40.0], uniform=[61.0, 40.5])
    pooled = scripts.evidence_report.pool([first, later])
    assert pooled["seeds"] == [9, 10, 11]
    assert pooled["metrics"]["ood"] == {
        "sft": [40.0, 50.0, 60.0],
        "selfplay": [None, 52.0, 62.5],
        "uniform": [40.5, None, 61.0],
    }
    assert pooled["differences"]["ood"]["selfplay-sft"]["mean"] == 2.25
    assert pooled["machine"]["code"] == ["a1", "b2"]
    assert pooled["command"].count("evidence.py") == 2
    said = "\n".join(scripts.evidence_report.verdict(pooled["metrics"]))
    assert "2 of the 8 seeds" in said and "selfplay - uniform: +1.5, one seed" in said
    title = scripts.evidence_report.table(pooled)[0]
    assert (
        "| selfplay - sft, 2 seeds | uniform - sft, 2 seeds |" in title and "3 seeds | sft" in title
    )
    pooled["metrics"]["attack"] = {**pooled["metrics"]["ood"], "uniform": [None, None, 61.0]}
    _, _, ood, attack = scripts.evidence_report.table(pooled)
    assert attack.endswith("| +1.0 (1 seed) |") and "seed" not in ood
    title, _, ood, _ = scripts.evidence_report.table(pooled, "uniform")
    assert "| uniform, 2 seeds | sft - uniform | selfplay - uniform, 2 seeds |" in title
    assert ood == "| ood | 50.8 | -0.8 [-3.9, +2.4] (2 seeds) | +1.5 (1 seed) |"
    title, _, ood, _ = scripts.evidence_report.table(pooled, "none")
    assert "selfplay, 2 seeds" in title and ood == "| ood | 50.0 | 57.2 | 50.8 |"
    pooled = scripts.evidence_report.pool([{**first, "hard_rows": {"selfplay": [29, 31]}}, later])
    assert pooled["hard_rows"] == {"selfplay": [None, 29, 31]}
    assert "Hard rows a step: selfplay 30.0." in scripts.evidence_report.show(pooled)
    earlier = {**first, "command": "python benchmarks/evidence.py --seeds 10 11"}  # said no split
    assert scripts.evidence_report.pool([earlier])["metrics"] == first["metrics"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (kept([12], sha256="0bad", sft=[1.0]), "other settings"),
        (kept([12], split="validation", sft=[1.0]), "split validation"),
        (kept([10], sft=[1.0]), "seed 10, sft"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(scripts, other, said):
    with pytest.raises(UserError, match=said):
        scripts.evidence_report.pool([kept([10], sft=[50.0]), other])


# ---- verified drawings ---------------------------------------------------------------------------
def settled(scripts, name: str, *changes: str):
    return scripts.evidence_presets.settle(scripts.evidence_presets.preset(name, changes))


def test_controls_of_verified_drawings_differ_in_what_they_say(scripts):
    arms = settled(scripts, "verify").arms
    verify = arms["verify"].methods["verify"]
    assert verify["verifier"] == "base" and arms["real_pairs"].real_pairs == {
        "rows": verify["rows"]
    }
    assert arms["oracle"].methods["verify"] == {**verify, "verifier": "reader"}
    unverified = {**verify, "verifier": "none"}
    assert arms["unverified"].methods["verify"] == unverified
    arms = settled(scripts, "imagine").arms
    imagine = arms["imagine"].methods["imagine"]
    forgetful = {**imagine, "rehearsal": 0, "drawing_rows": 0}
    assert imagine["rehearsal"] > 0 and arms["no_rehearsal"].methods["imagine"] == forgetful
    assert arms["oracle"].methods["imagine"] == {**imagine, "verifier": "reader"}
    unverified = {**imagine, "verifier": "none"}
    assert arms["unverified"].methods["imagine"] == unverified
    assert arms["real_scenes"].real_scenes == {"rows": imagine["rows"]}
    every = settled(scripts, "all").arms
    assert every["all"].methods == {**every["imagine"].methods, **every["verify"].methods}
    assert {"reca", "unverified", "oracle", "real_scenes"} < set(every)
    joined = settled(scripts, "restyle").arms
    assert list(joined["restyled"].methods) == ["imagine", "selfplay"], "in this order"
    assert joined["restyled"].methods["imagine"] == joined["imagine"].methods["imagine"]
    game = joined["selfplay"].methods["selfplay"]
    assert joined["beside"].methods["selfplay"] == game and not game["challenge_drawings"]
    restyled = {**game, "challenge_drawings": True}
    assert joined["restyled"].methods["selfplay"] == restyled
    alike = {**restyled, "style_memory": 0}
    assert joined["restyled_uniform"].methods["selfplay"] == alike != restyled
    more = joined["more"].methods["imagine"]
    added = more["rows"] - joined["imagine"].methods["imagine"]["rows"]
    assert added == game["hard_batch_size"], "as many rows as C adds at most"
    # The templates of reconstruction alignment are in words that the model knows.
    known = set(vocabulary())
    for template in every["reca"].methods["reca"]["templates"]:
        assert set(re.findall(r"\w+", template)) <= known, template
    assert set(settled(scripts, "reca").arms) == {"base", "sft", "reca", "real_pairs"}


def test_the_game_is_in_the_hash_only_where_it_is_played(scripts):
    change = "game.beta=0.123"
    assert settled(scripts, "imagine").sha256() == settled(scripts, "imagine", change).sha256()
    attacked = "measured.attacked=2"
    other = settled(scripts, "imagine", attacked, change)
    assert settled(scripts, "imagine", attacked).sha256() != other.sha256()
    assert settled(scripts, "demo").sha256() != settled(scripts, "demo", change).sha256()


@pytest.mark.parametrize("change", ["texts=0", "arms.sft.real_pairs.rows=2", "task_scenes=0"])
def test_arms_of_captions_need_captions(scripts, change):
    name = "demo" if "sft" in change else "imagine"
    with pytest.raises(UserError, match="texts|task_scenes"):
        settled(scripts, name, change)


def test_a_new_task_and_its_captions_are_of_each_seed(scripts, tmp_path):
    rows, settings = scripts.evidence_rows, settled(scripts, "imagine", "texts=12")
    task = rows.Task(20, 5)
    assert len({row["question"] for row in task}) > 12, "20 pairs of colour and shape at most"
    assert all(row["question"].startswith("where is the ") for row in task)
    looks = rows.Task(20, 5, "far")
    assert [row["answer"] for row in looks] == [row["answer"] for row in task], "the same scenes"
    assert {scene.severity for scene in looks.scenes} == {"far"}
    assert {scene.corruption for scene in looks.scenes} == {
        *("none", "noise", "contrast", "occlusion", "blur")
    }
    textured = [scene.texture != "plain" for scene in looks.scenes]
    assert textured == [scene.corruption == "none" for scene in looks.scenes]
    for seed in (1, 1, 2):
        rows.write_texts(tmp_path / f"{seed}.jsonl", settings, seed)
    first, second = ((tmp_path / f"{seed}.jsonl").read_text() for seed in (1, 2))
    assert first != second and first.count("where is the") > 12
    scenes = rows.scenes_of_texts(12, 1, rows.TASK_COUNTS)
    assert [json.loads(line)["caption"] for line in first.splitlines()] == [
        rows.caption(scene) for scene in scenes
    ]


def test_arms_of_a_new_task_run_and_are_measured(scripts, model, tmp_path):
    small = (
        *("steps=1", "texts=4", "task_scenes=3", "training.per_device_train_batch_size=2"),
        *("measured.ood=0", "measured.id=6", "measured.drawings=1", "measured.task=3"),
        *("measured.groups=0", "measured.score=8", "measured.task_ood=5"),
        "arms.all.methods.reca.share=0.5",
        *("arms.all.methods.imagine.first_captions=2", "arms.all.methods.verify.first_captions=2"),
        *("arms.all.methods.imagine.verifier=none", "arms.all.methods.imagine.captions=2"),
        *("arms.all.methods.verify.verifier=none", "arms.all.methods.verify.captions=2"),
    )
    given = ["--preset", "all", "--model", model, "--output", str(tmp_path), "--workers", "1"]
    given += ["--seeds", "0", "--arms", "real_scenes", "all", "--set", *small]
    result = scripts.evidence.main(given)
    for arm in ("real_scenes", "all"):
        values = {metric: arms[arm][0] for metric, arms in result["metrics"].items()}
        assert not {"ood", "gacc", "attack"} & set(values), "what is not measured has no metric"
        assert values["old_tasks"] == values["id"]
        told = ("t2i_exact", "new_task", "new_task_ood")
        assert all(0 <= values[name] <= 100 for name in told)
        assert -100 <= values["score"] <= 100, "cosines may be negative"
    trained = json.loads((tmp_path / "seed-0" / "all" / "trained.json").read_text())
    assert [text.split(":")[0] for text in trained["said"]][:2] == ["imagine", "verify"]
    assert trained["log"][0]["verify_store"] == trained["log"][0]["imagine_store"] > 0
