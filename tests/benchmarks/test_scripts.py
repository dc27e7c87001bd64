"""The scripts of ``benchmarks/`` run on a tiny shape, and count what their tables say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import unigame
from tests.reports.record_files import benchmark, mean_metric, record, write
from unigame.backbones.bagel.configuration import BagelConfig
from unigame.backbones.bagel.language import GEN
from unigame.backbones.bagel.modeling import BagelModel
from unigame.backbones.bagel.size import published_config
from unigame.backbones.common.counting import on_meta
from unigame.errors import UserError
from unigame.methods.imagine import ImagineSettings

SCRIPTS = Path(unigame.__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts by name; they import each other as when one of them is run."""
    names = ("gpu", "kernel_times", "meters", "models", "scaling", "scaling_picture", "step_cost")
    more = ("busy_machine", "decoder", "demo_arm", "digests", "generation", "seeds", "verifiers")
    more += ("free_drawings",)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in (*names, *more)})


def read(file: Path) -> dict:
    found = json.loads(file.read_text())
    assert {"settings", "machine", "command", "date"} <= found.keys()
    return found


# ---- step_cost ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def step_cost(scripts, tmp_path_factory):
    file = tmp_path_factory.mktemp("step") / "new" / "step_cost.json"
    words = ["--model", "tiny", "--batch-size", "4", "--repetitions", "1", "--cpu"]
    words += ["--methods", "imagine"]
    scripts.step_cost.main([*words, "--json", str(file)])
    return read(file)


def test_step_cost_gives_its_keys(step_cost):
    ratios = ("ratio", "ratio_full_share", "ratio_k4", "memory_ratio", "memory_ratio_above_model")
    assert all(step_cost[name] > 0 for name in ratios)
    assert {"read", "encode", "challenge", "mine", "mix", "understand"} == set(step_cost["phases"])
    seconds = step_cost["seconds"]
    names = {"unigame": "ratio", "k4": "ratio_k4", "reca": "ratio_reca"}
    for kind, name in names.items():
        ratio = seconds[kind]["median"] / seconds["sft"]["median"]
        assert step_cost[name] == pytest.approx(ratio, rel=0.01)
    between, of_round = (step_cost["seconds_imagine"][kind] for kind in ("between", "round"))
    every = ImagineSettings().every
    amortised = ((every - 1) * between + of_round) / every / step_cost["seconds_imagine"]["sft"]
    assert step_cost["ratio_imagine"] == pytest.approx(amortised, rel=0.01)
    assert step_cost["settings"]["model"] == "tiny" and step_cost["settings"]["batch_size"] == 4


def test_tokens_are_those_of_the_table(scripts, step_cost):
    """``B = 4``: rows that pass the language model, by phase, as the docstring has them."""
    layout = scripts.models.build("tiny", CPU, torch.float32).layout
    question, answer = scripts.step_cost.QUESTION, scripts.step_cost.ANSWER
    read = len(layout.question_ids(question)) + len(layout.answer_ids(question, answer))
    # The last code is predicted, not fed.
    drawn = len(layout.prompt_ids(question)) + layout.num_image_tokens - 1
    challenged = {"unigame": 2, "full_share": 4, "k4": 2}
    candidates = {"unigame": 1, "full_share": 1, "k4": 4}
    expected = {"sft": {"understand": {"forward": 4 * read, "backward": 4 * read}}}
    for kind, rows in challenged.items():
        expected[kind] = {
            "challenge": {
                "forward": rows * (drawn + candidates[kind] * read),
                "backward": rows * read,  # C learns from one candidate of each sample
            },
            "understand": {"forward": 6 * read, "backward": 6 * read},
        }
    found = {kind: counted["tokens"] for kind, counted in step_cost["counted"].items()}
    reca = found.pop("reca")["understand"]
    assert found == expected
    # Half of the batch: a picture that is read, a text of any length, and a picture that is drawn.
    shortest = len(layout.reconstruction_ids("a")) + layout.num_image_tokens - 1
    assert 4 * read + 2 * shortest < reca["forward"] == reca["backward"] < 4 * read + 2 * 3 * drawn


def test_operations_follow_the_passes(step_cost):
    counted = step_cost["counted"]
    sft, game, full = (counted[kind]["gflops"] for kind in ("sft", "unigame", "full_share"))
    assert game["understand"] == pytest.approx(1.5 * sft["understand"], rel=0.05)
    assert full["challenge"] == pytest.approx(2 * game["challenge"], rel=0.05)
    for found in counted.values():
        assert sum(found["gflops"].values()) == pytest.approx(found["gflops_in_all"], abs=0.01)


def test_step_cost_of_a_model_of_latents(scripts, tmp_path):
    words = ["--model", "bagel_tiny", "--batch-size", "2", "--repetitions", "1", "--cpu"]
    words += ["--kinds", "sft", "unigame", "full_share", "--json", str(tmp_path / "bagel.json")]
    found = scripts.step_cost.main(words)
    assert all(found[name] > 0 for name in ("ratio", "ratio_full_share", "memory_ratio"))
    # Half of a batch of two is challenged, or the whole of it: read once, drawn once, read again.
    one, both = (
        found["counted"][kind]["tokens"]["challenge"] for kind in ("unigame", "full_share")
    )
    assert both == {way: 2 * number for way, number in one.items()} and one["backward"] > 0


def test_the_small_bagel_has_the_proportions_of_the_published_one(scripts):
    """Arithmetic of a picture's token: in one expert, in the eyes, in the autoencoder."""

    def shares(config: BagelConfig) -> list[float]:
        model = on_meta(lambda: BagelModel(config))
        layers = model.decoder.layers
        expert = sum(p.numel() for n, p in layers.named_parameters() if GEN not in n)
        eyes = sum(p.numel() for p in model.eyes.encoder.parameters())
        pixels = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
        with FlopCounterMode(display=False) as counter:
            model.vae(pixels)
        return [eyes / expert, counter.get_total_flops() / (config.num_latents * 2 * expert)]

    small, whole = BagelConfig(**scripts.models.BAGELS["bagel_small"]), published_config()
    assert small.num_latents == small.num_image_tokens == whole.num_latents // 4 == 256
    assert shares(small) == pytest.approx(shares(whole), rel=0.25)


# ---- decoder -----------------------------------------------------------------------------------
def test_all_ways_of_the_decoder_give_one_gradient(scripts, tmp_path):
    file = tmp_path / "decoder.json"
    words = ["--model", "tiny", "--batch-size", "2", "--rounds", "1", "--json", str(file)]
    scripts.decoder.main(words)
    found = read(file)
    assert set(found["ratio"]) == {"transformers", "lean", "channels_last"}
    assert found["ratio"]["transformers"] == 1.0 and all(r > 0 for r in found["ratio"].values())
    assert found["difference"]["transformers"] == 0.0
    assert 0 < found["difference"]["lean"] < 1e-4 and found["difference"]["channels_last"] < 1e-4


# ---- busy_machine ------------------------------------------------------------------------------
def test_busy_machine_compares_ways_in_processes_of_their_own(scripts, tmp_path, monkeypatch):
    script, settings = scripts.busy_machine, []
    words = ["--model", "tiny", "--batch-size", "2", "--seconds", "0.1"]
    real = script.run_worker(script.parse_arguments(words), {"OMP_WAIT_POLICY": "passive"})
    assert {name: len(steps) >= script.ROUNDS for name, steps in real.items()} == {
        "alone": True,
        "busy": True,
    }

    def run_worker(options, chosen):
        settings.append(chosen)
        return {"alone": [1.0, 1.0], "busy": [2.0 if chosen else 30.0] * 2}

    monkeypatch.setattr(script, "run_worker", run_worker)
    script.main([*words, "--json", str(tmp_path / "busy.json")])
    found = read(tmp_path / "busy.json")
    assert settings[0] == {} and settings[1]["OMP_WAIT_POLICY"] == "passive"
    assert found["ratio"] == {"torch": 30.0, "unigame": 2.0} and found["alone"] == 1.0


# ---- seeds -------------------------------------------------------------------------------------
def demo_folder(folder, seed: int, gain: int, **config) -> str:
    """A demo of 100 questions: SFT answers 50 rightly, and UniGame ``gain`` more."""
    folder.mkdir()
    for arm, right in (("base", 50), ("sft", 50), ("unigame", 50 + gain)):
        values = [1.0] * right + [0.0] * (100 - right)
        benchmarks = {
            name: benchmark(name, mean_metric(values, scale=scale))
            for name, scale in (("vqav2", 100.0), ("wise", 1.0))
        }
        write(folder / "arms" / arm, "evaluation", record(benchmarks))
    settings = {"seed": seed, "quick": False, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_seeds_gives_mean_and_spread(scripts, tmp_path, capsys):
    folders = [demo_folder(tmp_path / str(n), n, gain) for n, gain in enumerate([10, 20, -6])]
    file = tmp_path / "seeds.json"
    scripts.seeds.main([*folders, "--json", str(file)])
    found = read(file)["differences"]
    unigame = found["VQAv2"]["unigame"]
    assert unigame["values"] == [10, 20, -6] and unigame["above_zero"] == 2
    assert unigame["mean"] == 8 and unigame["sd"] == pytest.approx(13.1149, abs=1e-4)
    row = "| VQAv2, points | +0.0 ± 0.0 (0 of 3) | +8.0 ± 13.1 (2 of 3) |"
    assert row in capsys.readouterr().out
    assert found["WISE"]["unigame"]["mean"] == 0.08


def test_seeds_takes_only_what_compares(scripts, tmp_path, capsys):
    one, same = (demo_folder(tmp_path / name, 0, 10) for name in ("one", "same"))
    other = demo_folder(tmp_path / "other", 1, 10, quick=True)
    for folders, word in (([one, same], "two different seeds"), ([one, other], "more than the")):
        with pytest.raises(SystemExit):
            scripts.seeds.main(folders)
        assert word in capsys.readouterr().err
    with pytest.raises(SystemExit, match="is no finished demo"):
        scripts.seeds.main([one, str(tmp_path / "absent")])


# ---- generation --------------------------------------------------------------------------------
def test_generation_draws_the_codes_of_transformers(scripts, tmp_path):
    file = tmp_path / "generation.json"
    words = ["--model", "tiny", "--batch-size", "2", "--rounds", "1"]
    scripts.generation.main([*words, "--json", str(file)])
    found = read(file)
    assert found["greedy_equal"] == 1.0 and found["speedup_vs_transformers"] > 0
    assert len(found["seconds"]) == 1 and set(found["images_per_second"]) == set(
        found["seconds"][0]
    )


# ---- scaling -----------------------------------------------------------------------------------
def test_scaling_counts_without_a_clock(scripts, tmp_path, capsys):
    file = tmp_path / "scaling.json"
    words = ["--shape", "tiny", "--counted", "--cpu", "--axis", "tokens", "--sizes", "16", "64"]
    scripts.scaling.main([*words, "--json", str(file)])
    found = read(file)
    axis = found["axes"]["tokens"]
    small, large = axis["points"]
    assert (small["size"], large["size"]) == (16, 64) and found["settings"]["repetitions"] == 0
    assert "seconds" not in small and "ratio" not in small and "seconds" not in axis["slopes"]
    for point in (small, large):
        ratio = point["gflops"]["unigame"] / point["gflops"]["sft"]
        assert point["ratio_counted"] == pytest.approx(ratio, abs=1e-3)
        read_tokens = [
            point["tokens"][kind]["understand"]["forward"] for kind in ("sft", "unigame")
        ]
        assert read_tokens[1] == 1.5 * read_tokens[0]  # the buffer was full
        assert point["megabytes"]["unigame"] > 0 and point["memory_ratio_above_model"] > 0
    # What can be known beforehand: convolutions are linear in N, the tokenizer's attention is N^2.
    terms = axis["terms"]["unigame"]
    assert terms["encode: convolutions"]["exponent"] == pytest.approx(1, abs=0.01)
    assert terms["challenge: tokenizer attention"]["exponent"] == pytest.approx(2, abs=0.01)
    assert terms["understand: matrix products"]["exponent"] < 1  # the text does not grow
    faster = {term["term"]: term for term in axis["faster"]}
    assert "image tokenizer" in faster["challenge: tokenizer attention"]["why"]
    assert "tokens" in capsys.readouterr().out


def point(size: int, sft: float, unigame: float, terms: dict[str, float]) -> dict:
    costs = {"sft": sft, "unigame": unigame}
    own = {"sft": {"understand: matrix products": sft}, "unigame": terms}
    return {
        "size": size,
        "ratio_counted": unigame / sft,
        "ratio": unigame / sft,
        "seconds": costs,
        "gflops": costs,
        "megabytes": costs,
        "terms": own,
    }


def test_a_term_that_outgrows_sft_is_named(scripts):
    points = [
        point(n, n, 3 * n + n**3, {"challenge: attention": n**3, "mix: convolutions": n})
        for n in (1.0, 2.0, 4.0)
    ]
    found = scripts.scaling.analyse("tokens", points)
    assert found["slopes"]["gflops"]["sft"] == 1 and found["steepest_of_sft"] == 1
    (worse,) = found["faster"]
    assert worse["term"] == "challenge: attention" and worse["exponent"] == 3
    assert worse["worse_than_sft"] and worse["share_at_largest"] == round(64 / 76, 4)


def test_candidates_may_cost_in_proportion_but_no_more(scripts):
    terms = [{"challenge: attention": k, "challenge: convolutions": k**1.5} for k in (1, 2, 4)]
    points = [point(k, 1, 2 + k, t) for k, t in zip((1, 2, 4), terms, strict=True)]
    faster = scripts.scaling.analyse("candidates", points)["faster"]
    assert {term["term"]: term["worse_than_sft"] for term in faster} == {
        "challenge: attention": False,
        "challenge: convolutions": True,
    }


def test_the_base_point_lies_on_every_axis(scripts):
    shape = scripts.scaling.thin()
    base = scripts.scaling.base_point(shape, 2)
    assert base == scripts.scaling.Point()
    for axis in scripts.scaling.AXES:
        sizes = scripts.scaling.axis_sizes(axis, base, shape)
        assert len(sizes) == 4 and getattr(base, axis) in sizes and sizes == sorted(sizes)


def test_the_thin_shape_has_the_proportions_that_are_claimed(scripts):
    """Forward operations of one picture, counted without computing anything."""
    meta = torch.device("meta")
    shape = scripts.scaling.thin()
    model = scripts.models.random_janus(shape, meta, torch.float32).janus.model
    side, tokens = shape["image_size"], 576

    def operations(work) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops()

    picture = torch.empty(1, 3, side, side, device=meta)
    grid = torch.empty(1, shape["vq"]["latent_channels"], 24, 24, device=meta)
    linear = [m for m in model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    language = 2 * (tokens + 30) * sum(m.weight.numel() for m in linear)
    vision = operations(lambda: model.vision_model(pixel_values=picture))
    decoder = operations(lambda: model.vqmodel.decoder(grid))
    assert vision / language == pytest.approx(0.3, abs=0.05)
    assert decoder / language == pytest.approx(0.3, abs=0.05)
    model.vqmodel.encoder(picture)  # its levels fit each other


def test_the_picture_has_a_column_for_each_axis(scripts, tmp_path):
    points = [point(n, n, 3 * n, {"mix: convolutions": n}) for n in (1, 2, 4)]
    axes = {
        axis: {"points": points, **scripts.scaling.analyse(axis, points)}
        for axis in scripts.scaling.AXES
    }
    file = tmp_path / "new" / "scaling.png"
    scripts.scaling_picture.draw({"axes": axes}, file)
    from PIL import Image

    width, height = Image.open(file).size
    assert width > 1200 and width > 2 * height


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sizes", "1", "2"], "name it with --axis"),
        (["--axis", "batch", "--sizes", "2"], "two different sizes"),
        (["--axis", "batch", "--sizes", "0", "2"], "1 at least"),
    ],
)
def test_sizes_that_cannot_work_are_refused(scripts, words, reason, capsys):
    with pytest.raises(SystemExit):
        scripts.scaling.parse_arguments(words)
    assert reason in capsys.readouterr().err


# ---- gpu ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def gpu(scripts, tmp_path_factory):
    file = tmp_path_factory.mktemp("gpu") / "new" / "gpu.json"
    words = ["--shape", "tiny", "--cpu", "--batch-size", "4", "--repetitions", "1"]
    words += ["--kinds", "sft", "unigame", "--generation-batches", "1"]
    scripts.gpu.main([*words, "--json", str(file)])
    return read(file)


def test_gpu_says_that_it_ran_on_a_cpu(gpu):
    assert gpu["settings"]["ran_on"].startswith("cpu") and gpu["matmul"]["tflops"] > 0
    assert not any("stopped" in part or "skipped" in part for part in gpu.values() if part)


@pytest.mark.parametrize("name", ["tiny", "tiny_without_checkpointing"])
def test_gpu_gives_the_figures_of_training(gpu, name):
    part = gpu[name]
    seconds = {kind: part["seconds"][kind]["median"] for kind in ("sft", "unigame")}
    assert part["ratio"] == pytest.approx(seconds["unigame"] / seconds["sft"], rel=0.01)
    assert sum(part["phase_shares"].values()) == pytest.approx(1, abs=0.01)
    hours = 5000 * seconds["unigame"] / 3600
    assert part["gpu_hours"]["unigame"] == pytest.approx(hours, abs=0.01)
    needed = part["tflop_needed"]["sft"]
    rate = sum(needed.values()) / seconds["sft"] / gpu["matmul"]["tflops"]
    assert part["utilization"]["sft"] == pytest.approx(rate, rel=0.03, abs=2e-5)
    assert part["gigabytes"]["unigame"] > part["gigabytes"]["model"] > 0


def test_what_is_needed_is_counted_without_checkpointing(gpu, step_cost):
    """The count of two rows, scaled up to four, is that of ``step_cost.py``."""
    kinds = ("sft", "unigame")
    for kind in kinds:
        counted = step_cost["counted"][kind]
        for name in ("tiny", "tiny_without_checkpointing"):
            needed = sum(gpu[name]["tflop_needed"][kind].values())
            assert 1e3 * needed == pytest.approx(counted["gflops_in_all"], rel=0.05, abs=0.01)
        tokens = sum(t["forward"] for t in counted["tokens"].values())
        rate = tokens / gpu["tiny"]["seconds"][kind]["median"]
        assert gpu["tiny"]["lm_tokens_per_second"][kind] == pytest.approx(rate, rel=0.01)


def test_the_profile_is_a_table_of_text(gpu):
    profile = gpu["tiny"]["profile"]
    assert sum(profile["share_by_kind"].values()) == pytest.approx(1, abs=0.01)
    assert profile["share_by_kind"]["matrix products"] > 0 and len(profile["table"]) == 16
    assert "profile" not in gpu["tiny_without_checkpointing"]


def test_gpu_draws_through_the_script_of_drawing(gpu):
    assert gpu["generation_tiny_batch_1"]["greedy_equal"] == 1.0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<...>", "elementwise and other"),
    ],
)
def test_kernels_are_told_apart_by_name(scripts, kernel, kind):
    assert scripts.kernel_times.kernel_kind(kernel) == kind


def test_a_part_that_does_not_fit_keeps_what_it_had(scripts, tmp_path):
    file = tmp_path / "gpu.json"
    options = scripts.gpu.parse_arguments(["--json", str(file), "--budget-s", "30"])
    run = scripts.gpu.Run(CPU, options, scripts.gpu.time.perf_counter())

    def too_large(note):
        note({"seconds": 1})
        raise torch.OutOfMemoryError("no 80 GB here")

    def broken(note):
        raise ValueError("of no use\nat all")

    run.part("large", 0, too_large)
    assert read(file)["large"]["stopped"] == "out of memory" and not run.failed
    assert read(file)["large"]["seconds"] == 1
    run.part("broken", 0, broken)
    assert read(file)["broken"]["stopped"] == "ValueError: of no use" and run.failed
    run.part("late", 60, broken)
    assert "left of the budget" in read(file)["late"]["skipped"]
    assert "out of memory" in scripts.gpu.summary({"matmul": {"tflops": 1.0}, **read(file)})


def test_digests_are_those_of_the_same_run_and_of_no_other(scripts, tmp_path, capsys):
    digests = scripts.digests
    words = ["--steps", "1", "--runs", "selfplay", "--json", str(tmp_path / "a.json")]
    assert digests.main(words) == 0
    assert digests.main([*words, "--against", str(tmp_path / "a.json")]) == 0
    assert "equal to the bit: selfplay" in capsys.readouterr().out
    content = json.loads((tmp_path / "a.json").read_text())
    runs = content["runs"]
    assert {
        "log",
        "adapter_model.safetensors",
        "perturber.safetensors",
        "selfplay_state.pt",
    } == set(runs["selfplay"])
    name = next(iter(runs["selfplay"]["adapter_model.safetensors"]))
    runs["selfplay"]["adapter_model.safetensors"][name] = "another"
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert digests.main([*words[:-2], "--against", str(tmp_path / "a.json")]) == 1
    assert f"{name}: another before" in capsys.readouterr().out


def test_an_arm_of_the_demo_is_tuned_on_another_seed(scripts, tmp_path, monkeypatch):
    from tests.tiny import make_tiny_janus
    from unigame.synthetic.knowledge import knowledge_words
    from unigame.synthetic.questions import vocabulary

    words = [*vocabulary(), *knowledge_words()]
    model = str(make_tiny_janus(tmp_path / "model", image_size=48, vocab_words=words))
    for name in ("ANSWERS", "DRAWINGS", "OOD"):
        monkeypatch.setattr(scripts.demo_arm, name, 12)
    small = ["--set", "max_steps=1", "warmup_steps=0", "per_device_train_batch_size=4"]
    given = ["reca", "--model", model, *small, "--method", "share=0.5", "weight=2.0"]
    found = scripts.demo_arm.main([*given, "--json", str(tmp_path / "found.json")])
    kept = read(tmp_path / "found.json")
    assert found["headlines"] == kept["headlines"] and 0 <= found["headlines"]["ood"] <= 100
    played = kept["settings"]["methods"]["reca"]
    assert (played["share"], played["weight"], len(played["templates"])) == (0.5, 2.0, 8)
    assert kept["settings"]["seed"] == 100 and kept["settings"]["max_steps"] == 1
    with pytest.raises(UserError, match="sft has no method of its own"):
        scripts.demo_arm.main(["sft", "--method", "share=1"])
    with pytest.raises(UserError, match="max_steps 1: write KEY=VALUE"):
        scripts.demo_arm.pairs(["max_steps 1"])


def test_verifiers_judge_the_same_drawings(scripts, tmp_path):
    words = ["--drawings", "6", "--floors", "-1", "1", "--json", str(tmp_path / "verifiers.json")]
    scripts.verifiers.main(words)
    found = read(tmp_path / "verifiers.json")
    everything, nothing = found["verifiers"]["clip, -1"], found["verifiers"]["clip, 1"]
    assert everything["confirmed"] == 1 and everything["precision"] == found["right"]
    assert nothing == {"confirmed": 0, "precision": None, "recall": 0}
    assert found["verifiers"].keys() == {"base", "clip, -1", "clip, 1"}


def test_free_drawings_are_judged_by_floor_and_style(scripts, tmp_path):
    words = ["--drawings", "7", "--temperatures", "0.2", "--floors", "-1", "1"]
    scripts.free_drawings.main([*words, "--json", str(tmp_path / "free.json")])
    found = read(tmp_path / "free.json")["temperatures"]["0.2"]
    everything, nothing = found["floors"]["-1.0"], found["floors"]["1.0"]
    assert everything["kept"] == 1 and everything["precision"] == found["right"]
    assert (nothing["kept"], nothing["precision"], nothing["misread"]) == (0, None, None)
    assert len(everything["styles"]) == len(nothing["styles"]) > 1
