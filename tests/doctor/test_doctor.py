import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import unigame
from tests.tiny_bagel import shared_tiny_bagel
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_composed import shared_vlm_unet
from tests.tiny_emu3 import shared_tiny_emu3
from unigame import cli
from unigame.backbones import registry as families
from unigame.backbones.janus.size import pro_config, size_of_config
from unigame.backbones.memory import GIB, estimate, size_of
from unigame.doctor import report as module
from unigame.errors import UserError
from unigame.training.recipe import load_recipe


@pytest.fixture(scope="module")
def size():
    return size_of_config("folder", pro_config("1B"))


def published(size):
    return [replace(size, name=f"Janus-Pro-{shape}") for shape in ("1B", "7B")]


@pytest.fixture
def sound(monkeypatch, size):
    """A machine where the bundled model is fine, without loading it or building large ones."""
    monkeypatch.setattr(module, "_check_bundled_model", lambda: (True, "janus-nano loads"))
    monkeypatch.setattr(module, "size_of", lambda name: replace(size, name=name))
    monkeypatch.setattr(module, "published_sizes", lambda: published(size))


def test_the_report_covers_environment_hardware_and_what_fits(sound, capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("python 3.", "torch ", "cores", "GiB available", "Janus-Pro-7B", "estimate"):
        assert part in shown
    assert "Janus-Pro-7B with quantization: nf4: " in shown
    assert shown.rstrip().splitlines()[-3].startswith("Next:")


def test_marks_follow_the_capacity(sound, capsys, monkeypatch):
    monkeypatch.setattr(module, "_capacity", lambda: ("a large machine", 1e15))
    cli.main(["doctor"])
    assert "✗" not in capsys.readouterr().out
    monkeypatch.setattr(module, "_capacity", lambda: ("a tiny machine", 1.0))
    cli.main(["doctor"])
    assert "✓" not in capsys.readouterr().out


def test_a_recipe_is_judged_by_its_own_settings(sound, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 8 * 2**30))
    recipe = tmp_path / "mine.yaml"
    lines = []
    for batch in (1, 64):
        recipe.write_text(
            "model: folder\ndtype: bfloat16\ndata: [{type: synthetic}]\n"
            "methods: {selfplay: {buffer_capacity: 500}}\n"
            f"training: {{per_device_train_batch_size: {batch}, gradient_checkpointing: true}}\n"
        )
        assert cli.main(["doctor", "--recipe", str(recipe)]) == 0
        shown = capsys.readouterr().out
        lines += [line for line in shown.splitlines() if "This recipe" in line]
        assert f"unigame train {recipe}" in shown
    assert "batch 1)" in lines[0] and " fits in a machine" in lines[0]
    assert "batch 64)" in lines[1] and "does not fit in a machine" in lines[1]


RECIPES = Path(unigame.__file__).parent / "recipes"


@pytest.mark.parametrize("name", ["1B", "7B"])
def test_recipes_and_pages_state_the_figure_that_doctor_gives(name):
    recipe = f"janus_pro_{name.lower()}"
    plan = load_recipe(recipe, ["--bf16", "false"])  # a CPU has no bf16; the weights have
    found = estimate(size_of_config(name, pro_config(name)), module.setting_of(plan), "bfloat16")
    total = f"{found.total / GIB:.1f}"
    rows = (RECIPES / "README.md").read_text().splitlines()
    (row,) = [line for line in rows if line.startswith(f"| `{recipe}`")]
    assert f"({total} GiB" in row
    head = (RECIPES / f"{recipe}.yaml").read_text().partition("model:")[0]
    page = (RECIPES.parents[1] / "docs" / "performance.md").read_text()
    (cells,) = [line for line in page.splitlines() if line.startswith(f"| `{recipe}`")]
    for part in (found.weights, found.trained, found.activations):
        assert f"{part / GIB:.1f}" in head and f"{part / GIB:.1f}" in cells
    assert f"{total} GiB" in head and f"| {total} |" in cells
    if name == "7B":
        kept = estimate(
            size_of_config(name, pro_config(name)),
            replace(module.setting_of(plan), checkpointing=False),
            "bfloat16",
        )
        assert f"{kept.total / GIB:.1f} GiB" in head and f"{kept.total / GIB:.1f} |" in page


@pytest.mark.parametrize(("name", "recipe"), [("1B", "1b_12gb"), ("7B", "7b_24gb")])
def test_recipes_of_small_cards_fit_them_and_state_their_figure(name, recipe):
    plan = load_recipe(f"janus_pro_{recipe}", ["--bf16", "false"])
    shape, setting = size_of_config(name, pro_config(name)), module.setting_of(plan)
    found = estimate(shape, setting, "bfloat16", plan.quantization)
    whole = estimate(shape, setting, "bfloat16")
    text = (RECIPES / f"janus_pro_{recipe}.yaml").read_text()
    head = " ".join(text.partition("model:")[0].replace("#", " ").split())
    card = int(re.search(r"GPU of (\d+) GB", head)[1]) * 1e9
    assert plan.quantization == "nf4" and found.total < 0.75 * card
    assert whole.weights - found.weights == pytest.approx(
        shape.packable_parameters * 1.484, rel=1e-3
    )
    for figure in (found.total, found.weights, found.trained, found.activations, whole.total):
        assert f"{figure / GIB:.1f}" in head
    row = next(line for line in (RECIPES / "README.md").read_text().splitlines() if recipe in line)
    assert f"({found.total / GIB:.1f} GiB" in row


def test_doctor_counts_a_packed_base(sound, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: folder\ndtype: bfloat16\nquantization: nf4\ndata: [{type: synthetic}]\n"
    )
    assert cli.main(["doctor", "--recipe", str(recipe)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2.3 of frozen weights" in shown and "bfloat16, nf4, batch" in shown


def test_doctor_counts_weights_as_training_would_load_them(sound, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    recipe = tmp_path / "mine.yaml"
    for training, dtype, frozen in (("", "float32", "7.7"), ("bf16: true", "bfloat16", "4.0")):
        recipe.write_text(f"model: folder\ndata: [{{type: synthetic}}]\ntraining: {{{training}}}\n")
        assert cli.main(["doctor", "--recipe", str(recipe)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"(folder, {dtype}, batch" in shown and f"{frozen} of frozen weights" in shown


def test_doctor_judges_a_recipe_with_the_settings_it_will_be_trained_with(
    sound, capsys, monkeypatch
):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    words = ["--quantization", "nf4", "--per_device_train_batch_size=3"]
    assert cli.main(["doctor", "--recipe", "janus_pro_7b", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bfloat16, nf4, batch 3)" in shown
    assert f"unigame train janus_pro_7b {' '.join(words)}" in shown
    assert cli.main(["doctor", "--recipe", "janus_pro_7b", "--quantisation", "nf4"]) == 2
    assert "did you mean 'quantization'" in capsys.readouterr().err
    assert cli.main(["doctor", "--recipe", "janus_pro_7b", "--data", "nowhere.json"]) == 2
    assert "no data at 'nowhere.json'" in capsys.readouterr().err
    assert cli.main(["doctor", "--data", "nowhere.json"]) == 2
    assert "give --recipe or --game" in capsys.readouterr().err
    assert cli.main(["doctor", "--quantization", "nf4"]) == 2
    assert "--quantization: is no option of unigame doctor" in capsys.readouterr().err


def test_the_game_is_measured_with_the_settings_that_follow(monkeypatch):
    heard = []
    monkeypatch.setattr("unigame.doctor.game.game_report", lambda *given: heard.append(given) or [])
    words = ["--quantization", "nf4", "--data", "my.json", "--lora.r=4"]
    assert cli.main(["doctor", "--game", "janus_nano", *words]) == 0
    ((recipe, given, *_),) = heard
    assert recipe == "janus_nano"
    assert given == ["--quantization", "nf4", "--lora.r=4", "--data=my.json"]


def test_doctor_says_what_a_recipe_s_figure_is_made_of(sound, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: folder\ndtype: bfloat16\ndata: [{type: synthetic}]\n")
    assert cli.main(["doctor", "--recipe", str(recipe)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4.0 of frozen weights" in shown and "of activations" in shown and "15% on top" in shown


def shown_of(capsys, *words):
    """What doctor prints of the recipe for Janus-Pro-7B, in one line."""
    assert cli.main(["doctor", "--recipe", "janus_pro_7b", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_recipe_s_rank_and_c_are_counted(sound, capsys, monkeypatch, size):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    weights = {}
    for rank in (16, 256):
        shown = shown_of(capsys, "--lora.r", str(rank))
        trained = float(re.search(r"([\d.]+) of what trains", shown)[1])
        weights[rank] = (size.lora_parameters * rank // 16 + 1.1e6) * 16 / GIB
        assert trained == pytest.approx(weights[rank], abs=0.06)
    assert weights[256] > 3.6
    wide = load_recipe("janus_pro_7b", ["--bf16=false", "--perturber_width", "4096"])
    assert (
        module.setting_of(wide).learners.perturber.parameters(2048)
        == 4 * 4096 * 2048 + 2 * 4096 + 1
    )
    noise = load_recipe("janus_pro_7b", ["--bf16=false", "--perturbation", "random"])
    assert module.setting_of(noise).learners.perturber is None
    heads = load_recipe("janus_pro_1b_styles", ["--bf16=false"])
    assert module.setting_of(heads).learners.perturber.parameters(2048) == 4 * 2048 + 1


def test_a_lora_block_without_a_rank_has_that_of_peft():
    for words, rank in (([], 16), (["--lora", "{lora_alpha: 8}"], 8), (["--lora", "null"], 16)):
        plan = load_recipe("janus_pro_7b", ["--bf16=false", *words])
        assert module.setting_of(plan).learners.lora_rank == rank


def test_an_adapter_that_a_run_goes_on_with_has_its_own_rank(sound, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    words = ["--bf16=false", "--adapter", str(tmp_path)]
    assert "is not here" in shown_of(capsys, *words)
    (tmp_path / "adapter_config.json").write_text('{"r": 64}')
    assert module.setting_of(load_recipe("janus_pro_7b", words)).learners.lora_rank == 64
    assert "is not here" not in shown_of(capsys, *words)


def test_what_a_recipe_sets_and_doctor_does_not_count_is_said(sound, capsys, monkeypatch):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    assert "Not counted" not in shown_of(capsys)
    named = shown_of(capsys, "--lora.target_modules", "[q_proj, v_proj]")
    assert "Not counted" not in named and "0.1 of what trains" in named
    pattern = ["--lora.target_modules", ".*language_model.*q_proj"]
    said = shown_of(capsys, *pattern, "--lora.rank_pattern", "{q_proj: 4}")
    assert "Not counted: what lora.target_modules, lora.rank_pattern would change" in said
    first = ["--lora.target_modules", "[q_proj]", "--lora.layers_to_transform", "0"]
    assert "Not counted: what lora.layers_to_transform would" in shown_of(capsys, *first)
    part = shown_of(capsys, "--methods", "sft", "--train_parts", "connector")
    assert "Not counted: train_parts=connector" in part


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs, as far as doctor can see."""

    def put(number):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setattr(module, "_processes", lambda: number)

    return put


def test_frozen_weights_in_shards_are_counted_for_the_processes_that_there_are(
    sound, capsys, monkeypatch, gpus, size
):
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    gpus(2)
    plain = shown_of(capsys)
    assert "does not fit in a machine" in plain and "shard" not in plain
    frozen = {}
    for number in (1, 2, 4):
        gpus(number)
        shown = shown_of(capsys, "--shard_frozen", "language")
        frozen[number] = float(re.search(r"([\d.]+) of frozen weights", shown)[1])
        assert (
            f"shard_frozen=language shares out {size.layer_parameters * 2 / GIB:.1f} GiB" in shown
        )
        if number > 1:
            assert f"GiB on each of {number} processes, does not fit in a machine" in shown
    shared = size.layer_parameters * 2 / GIB
    assert frozen[1] - frozen[2] == pytest.approx(shared / 2, abs=0.1)
    assert frozen[1] - frozen[4] == pytest.approx(shared * 3 / 4, abs=0.1)


def test_on_one_process_shards_are_no_reason_to_say_that_nothing_fits(
    sound, capsys, monkeypatch, gpus, size
):
    gpus(1)
    monkeypatch.setattr(module, "_capacity", lambda: ("a machine", 1.0))
    shown = shown_of(capsys, "--shard_frozen", "language+vision")
    assert "does not fit" not in shown and "too much for one process alone in a machine" in shown
    plan = load_recipe("janus_pro_7b", ["--bf16=false"])
    setting = replace(module.setting_of(plan), processes=2, shards_vision=True)
    total = estimate(size, setting, "bfloat16").total
    assert f"it would be about {total / GIB:.1f} on each of 2, " in shown
    unknown = replace(size, layer_parameters=0, vision_layer_parameters=0)
    monkeypatch.setattr(module, "size_of", lambda name: replace(unknown, name=name))
    shown = shown_of(capsys, "--shard_frozen", "language")
    assert "Not counted: shard_frozen=language" in shown and "does not fit" not in shown
    packed = shown_of(capsys, "--shard_frozen", "language", "--quantization", "nf4")
    assert "shard_frozen=language with quantization=nf4 is refused" in packed


def test_processes_are_those_that_were_launched_or_one_for_each_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert module._processes() == 3
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    assert module._processes() == 8


def test_a_broken_bundled_model_is_said_and_fails(capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise UserError("weight file is missing")

    monkeypatch.setattr("unigame.backbones.load_backbone", broken)
    assert cli.main(["doctor"]) == 1
    assert "broken: weight file is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        ('{"model_type": "llama"}', "a text-only LLM of type 'llama'"),
        ("{", "no model configuration"),
        (None, "config.json"),
    ],
)
def test_a_foreign_checkpoint_is_refused_before_the_report(config, fragment, tmp_path, capsys):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert cli.main(["doctor", "--model", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert fragment in captured.err and captured.out == ""


@pytest.mark.parametrize(
    "make", [shared_tiny_bagel, shared_tiny_emu3, shared_tiny_chameleon, shared_vlm_unet]
)
def test_a_model_of_any_family_is_in_the_table(make, capsys, monkeypatch, size):
    monkeypatch.setattr(module, "_check_bundled_model", lambda: (True, "janus-nano loads"))
    monkeypatch.setattr(module, "published_sizes", lambda: published(size))
    monkeypatch.setattr(module, "_capacity", lambda: ("a large machine", 1e15))
    folder = str(make())
    assert cli.main(["doctor", "--model", folder]) == 0
    shown = capsys.readouterr().out
    assert "0.0 ✓" in shown
    assert ("not counted: of denoising" in shown) == (make is shared_vlm_unet)


def test_a_plug_in_is_not_guessed_at(capsys, monkeypatch, tmp_path):
    def entries(group):
        return [EntryPoint("emu9", "nowhere:load", group)]

    monkeypatch.setattr(families, "entry_points", entries)
    (tmp_path / "config.json").write_text('{"model_type": "emu9"}')
    assert cli.main(["doctor", "--model", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert (
        "'emu9', which does not say" in shown and "estimate bagel, chameleon, emu3, janus" in shown
    )


def test_a_plug_in_that_says_its_size_is_estimated(monkeypatch, tmp_path, size):
    def entries(group):
        return [EntryPoint("emu9", "plug_emu9:load", group)]

    plug = ModuleType("plug_emu9")
    plug.load = lambda name_or_path, *, dtype, device: None
    plug.size_of = lambda name, file, hub_id: replace(size, name=f"{file.parent.name} of emu9")
    plug.FAMILY_INFO = families.FamilyInfo(
        "emu9", "plug_emu9:load", "Emu9", "", "", "codes", "", size="plug_emu9:size_of"
    )
    monkeypatch.setitem(sys.modules, "plug_emu9", plug)
    monkeypatch.setattr(families, "entry_points", entries)
    (tmp_path / "config.json").write_text('{"model_type": "emu9"}')
    assert size_of(str(tmp_path)).name == f"{tmp_path.name} of emu9"


def test_rows_of_verified_drawings_are_counted_and_rounds_are_named():
    plain, taught = load_recipe("janus_nano_reca"), load_recipe("janus_nano_verify")
    verify = taught.settings_of("verify")
    assert module.setting_of(taught).captions == verify.rows == 24
    assert module.setting_of(plain).captions == 0 and not module._uncounted(plain)
    assert f"verify {verify.draw_batch}" in module._uncounted(taught)
    both = {"verify": {}, "imagine": {"texts": "captions.txt", "rows": 8}, "selfplay": {}}
    plan = replace(taught, methods=both)
    setting = module.setting_of(plan)
    hard = plan.settings_of("selfplay").hard_rows(16)
    assert setting.captions == 16 + 8 and setting.hard == 8 + 12 + hard
