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
