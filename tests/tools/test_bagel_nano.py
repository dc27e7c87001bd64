"""The recipe of the bundled BAGEL: its parts, and all of it at a thousandth of its size."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tools.bagel_nano import config, decisions, gates, language, main, vae, vision
from tools.bagel_nano.nano import BagelNano
from tools.common import reader
from tools.common import vision as eyes
from tools.common.gates import CHANCE, Lora
from tools.common.pictures import TOKENS, broad_scenes, pictures
from tools.common.progress import Log
from tools.common.reading import questions
from unigame import bundled
from unigame.backbones import load_backbone
from unigame.backbones.bagel import flow
from unigame.data import build_dataset
from unigame.demo.kinds import kind_of
from unigame.errors import UserError
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.knowledge import facts
from unigame.synthetic.world import caption
from unigame.training import UniGameTrainer
from unigame.training.recipe import load_recipe


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Few steps of drawing, and few pictures in a step of training."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(config, "SAMPLE_STEPS", 3)
        for module in (vae, eyes, reader):
            changed.setattr(module, "BATCH", 2)
        for name in ("FIRST_CAPTIONS", "SCENES", "CAPTIONS", "ALONE"):
            changed.setattr(language, name, 2)
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random eyes and a random autoencoder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    eyes.save(vision.Tower(), folder)
    vae.save(vae.new(), folder)
    return folder


@pytest.fixture(scope="module")
def nano(parts: Path) -> BagelNano:
    made = BagelNano.new(parts)
    torch.nn.init.normal_(made.model.llm2vae.weight, std=0.05)
    return made


@pytest.fixture(scope="module")
def saved(nano: BagelNano, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "bagel_nano"
    nano.save(folder)
    return folder


def test_the_model_reads_as_the_trained_eyes_do(nano: BagelNano, parts: Path) -> None:
    tower, images = vision.Tower(), pictures(broad_scenes(3, 0, clean=0.2))
    eyes.load(tower, parts)
    with torch.no_grad():
        torch.testing.assert_close(nano.see(images), tower(images), atol=1e-5, rtol=1e-5)


def test_pictures_are_what_the_backbone_makes_of_a_scene(nano: BagelNano) -> None:
    scenes = broad_scenes(6, 0, clean=0.2)
    made = nano.backbone.preprocess([to_pil(s) for s in scenes])
    torch.testing.assert_close(pictures(scenes), made, atol=1e-5, rtol=0)


def test_packed_questions_cost_what_single_ones_cost_a_user(nano: BagelNano) -> None:
    scenes, rng = broad_scenes(2, 1, clean=1.0), np.random.default_rng(0)
    images, asked = pictures(scenes), [questions(s, rng)[:3] for s in scenes]
    with torch.no_grad():
        logits, targets, numbers = nano.answer_logits(nano.see(images), asked)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        for number in range(6):
            row, which = divmod(number, 3)
            question, answer = asked[row][which]
            alone = nano.backbone.answer_loss(images[row : row + 1], [question], [answer])
            packed = losses[numbers == number].mean()
            torch.testing.assert_close(packed, alone[0], atol=1e-4, rtol=1e-4)


def test_the_flow_is_the_backbones(nano: BagelNano) -> None:
    drawing = language.Drawing(nano, 0, scale=0.0004)
    clean, prompts = drawing.latents[:3], drawing.prompts[:3]
    rows, kept = torch.arange(3), torch.ones(3, dtype=torch.bool)
    noise = flow.fixed_noise(clean.shape[1:], clean).expand_as(clean)
    with torch.no_grad():
        expected = nano.backbone.generation_loss(clean, prompts, codes=clean)
        squares = [
            drawing.squares(rows, kept, clean, noise, torch.full((3,), level)).flatten(1).mean(1)
            for level in flow.EVALUATION_LEVELS
        ]
    torch.testing.assert_close(torch.stack(squares).mean(0), expected, atol=1e-5, rtol=1e-5)


def test_kept_captions_are_what_the_backbone_makes_of_them(nano: BagelNano) -> None:
    drawing = language.Drawing(nano, 0, scale=0.0004)
    generator = torch.Generator().manual_seed(0)
    rows, kept = torch.tensor([3, 0, 1, 3]), torch.tensor([True, True, False, True])
    clean = drawing.latents[rows]
    noise, level_B = torch.randn(clean.shape, generator=generator), torch.linspace(0.1, 0.9, 4)
    assert len({len(prompt.ids) for prompt in drawing.prompts}) > 1
    with torch.no_grad():
        expected = drawing.squares(rows, kept, clean, noise, level_B)
        drawing.keep_captions()
        found = drawing.squares(rows, kept, clean, noise, level_B)
        without = drawing.squares(rows[:2], torch.zeros(2), clean[:2], noise[:2], level_B[:2])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(without, expected[:2], atol=1e-3)


def test_drawing_moves_the_generation_expert_alone(nano: BagelNano) -> None:
    understanding, generation = nano.trained()
    drawing = language.Drawing(nano, 0, scale=0.0004)
    drawing.keep_captions()
    seen: list[int] = []
    last = nano.model.decoder.layers[-2].mlp.down_proj
    hook = last.register_full_backward_hook(lambda _, inner, outer: seen.append(outer[0].shape[1]))
    for weight in generation:
        weight.requires_grad_(True)
    drawing.loss(2, np.random.default_rng(0), torch.Generator()).backward()
    hook.remove()
    assert seen == [2]  # of a row, the two marks alone go backward there: no word of the caption
    assert all(w.grad is None for w in understanding)
    assert sum(w.grad is not None and bool(w.grad.any()) for w in generation) > 40
    for weight in generation:
        weight.requires_grad_(False)
        weight.grad = None


def test_latents_are_kept_until_pictures_or_the_autoencoder_change(
    nano: BagelNano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = language.Drawing(nano, 0, 0.0004, tmp_path)
    encoded: list[int] = []
    encode = BagelNano.encode

    def counted(self: BagelNano, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(BagelNano, "encode", counted)
    again = language.Drawing(nano, 0, 0.0004, tmp_path)
    assert encoded == [] and torch.equal(again.latents, made.latents)
    assert torch.equal(again.objects, made.objects) and 0 < made.objects.mean() < 1
    other = language.Drawing(nano, 1, 0.0004, tmp_path)
    assert encoded == [6] and not torch.equal(other.latents, made.latents)
    weight = nano.model.vae.encoder.conv_out.bias
    with torch.no_grad():
        weight += 0.1
        changed = language.Drawing(nano, 1, 0.0004, tmp_path)
        weight -= 0.1
    assert encoded == [6, 6] and not torch.allclose(changed.latents, other.latents, atol=1e-3)


def test_levels_are_told_apart_from_the_start_and_often_near_noise(parts: Path) -> None:
    times = BagelNano.new(parts).model.time_embedder(torch.linspace(0, 1, 65)).detach()
    assert float((times - times.mean(0)).std()) == pytest.approx(0.4, rel=1e-3)
    assert times.mean(0).abs().max() < 1e-5
    level = language.levels(4000, 2.0, torch.Generator().manual_seed(0))
    assert level.min() > 0 and level.max() <= 1
    assert float((level > 0.95).float().mean()) == pytest.approx(0.15 / 3 + 0.0125, abs=0.012)
    assert float((level < 0.5).float().mean()) > 0.15


def test_answers_must_be_good_twice_in_a_row_before_the_rate_runs_out(nano: BagelNano) -> None:
    course = language.Course(nano, language.TOGETHER, 1.0)
    assert (course.first, course.total) == (language.FIRST, language.TOGETHER)
    assert language.Course(nano, 2 * language.TOGETHER, 1.0).first == course.first
    found = []
    kinds = dict.fromkeys(CHANCE, 0.7)
    for done, mean, comparison in (
        (50, 0.77, 0.7),
        (100, 0.75, 0.7),
        (150, 0.79, 0.7),
        (200, 0.79, 0.51),  # a good mean, and one kind is guessed
        (250, 0.76, 0.7),
        (300, 0.8, 0.7),
    ):
        course.look(course.first + done, {"mean": mean, **kinds, "comparison": comparison})
        found.append(int(course.cooling))
    begun = course.first + 300
    assert found == [-1, -1, -1, -1, -1, begun] and not course.looks(begun + 50)
    assert course.rate(begun + language.COOLING // 2) == pytest.approx(language.RATE / 2)
    over = begun + language.COOLING
    assert not course.over(over - 1) and course.over(over)
    late = language.Course(nano, language.TOGETHER, 1.0)
    first, last = late.first, late.total - language.COOLING
    assert late.rate(0) < late.rate(first - 1) == language.RATE  # warm
    assert late.rate(first) < late.rate(first + 100) == language.RATE  # again where answers begin
    late.ends(last - 1)
    assert int(late.cooling) == -1
    late.ends(last)
    assert int(late.cooling) == last


def test_what_is_said_about_going_on() -> None:
    good = {"match": 1.0, "seen_noise": 0.1, "seen_texture": 0.1, "seen_contrast": 0.02}
    assert decisions.of_autoencoder(good) == "go on"
    said = decisions.of_autoencoder({**good, "seen_texture": 0.2})
    assert said.startswith("STOP") and "seen_texture=0.200" in said and "CHANNELS" in said
    assert "seen_noise" not in said
    assert "drawn_places=0.200" in decisions.of_flow_first({"drawn": 0.3, "drawn_places": 0.2})
    answers = {"mean": 0.8, **dict.fromkeys(CHANCE, 0.7)}
    assert decisions.of_answers(answers) == "go on"
    assert "mean=0.600" in decisions.of_answers({**answers, "mean": 0.6})
    both = decisions.of_answers({**answers, "mean": 0.7, "comparison": 0.52})
    assert "comparison near chance; mean=0.700" in both and "give the stage more" in both
    above = decisions.of_answers({**answers, "mean": 0.93})
    assert "above 0.88" in above and "more (" not in above
    assert decisions.of_drawing(500, {"drawn": 0.0}) == {}
    assert decisions.of_drawing(1000, {"drawn": 0.3}) == {"decision": "go on"}
    assert decisions.of_drawing(3000, {"drawn": 0.3})["decision"].startswith("STOP")


def test_a_renamed_weight_of_the_stage_before_is_no_silence(
    nano: BagelNano, tmp_path: Path
) -> None:
    file = tmp_path / "language.safetensors"
    language._write(nano, tmp_path)
    language.read_language(nano, tmp_path)
    weights = load_file(file)
    weights["llm2vae.wieght"] = weights.pop("llm2vae.weight")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"llm2vae\.weight.*llm2vae\.wieght"):
        language.read_language(nano, tmp_path)


@pytest.mark.parametrize(
    ("stage", "weights", "made"),
    [
        ("drawing", ["language"], "bagel_nano"),
        ("together", ["vision", "vae"], "language.safetensors"),
    ],
)
def test_what_a_stage_made_of_other_weights_is_set_aside(
    tmp_path: Path, stage: str, weights: list[str], made: str
) -> None:
    log, progress = Log(tmp_path, stage), tmp_path / f"{stage}.progress"

    def forget() -> None:
        language._forget_if_other(tmp_path, log, stage, weights, made)

    for name in weights:
        (tmp_path / f"{name}.safetensors").write_bytes(b"one")
    forget()
    progress.write_bytes(b"of one")
    (tmp_path / made).write_bytes(b"of one")
    forget()
    assert progress.exists() and not log.path.exists()
    (tmp_path / f"{weights[-1]}.safetensors").write_bytes(b"two")
    forget()
    assert not progress.exists() and not (tmp_path / made).exists()
    assert (tmp_path / f"{stage}.progress.of_other_weights").read_bytes() == b"of one"
    assert log.path.read_text().count("set_aside") == 2


def test_latents_start_at_the_scale_that_noise_has() -> None:
    torch.manual_seed(0)
    model, images = vae.new(), pictures(broad_scenes(16, 2, clean=0.3))
    vae.start_scale(model, images)
    with torch.no_grad():
        scaled = vae.latents(model, images)
        spread = model.encode(images * 2 - 1).latent_dist.std * model.config.scaling_factor
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(vae.CHANNELS))
    torch.testing.assert_close(spread, torch.full_like(spread, vae.SPREAD))


def test_a_user_loads_what_was_saved(nano: BagelNano, saved: Path) -> None:
    backbone = load_backbone(saved, dtype="float32")
    config = backbone.bagel.config  # type: ignore[attr-defined]
    assert (backbone.facts.num_image_tokens, backbone.facts.num_state_tokens) == (TOKENS, 9)
    assert config.latent_patch_size == 6  # by the shapes of the weights
    scenes = broad_scenes(2, 3, clean=1.0)
    images = pictures(scenes)
    torch.testing.assert_close(backbone.encode_images(images), nano.encode(images))
    states = [
        each.visual_states(images, [caption(s) for s in scenes]).states_BNH
        for each in (backbone, nano.backbone)
    ]
    torch.testing.assert_close(*states, atol=0.1, rtol=0.1)  # bfloat16 weights
    assert sum(file.stat().st_size for file in saved.iterdir()) <= 16 * 2**20


def test_what_is_learned_in_the_gates_is_learned_by_the_understanding_expert(saved: Path) -> None:
    learner = Lora(BagelNano.load(saved))
    names = [name for name, _ in learner.wrapped.named_parameters() if "lora_A" in name]
    assert len(names) == 4 * 7
    assert all("language_model" in name and "moe_gen" not in name for name in names)


def test_every_word_of_the_world_is_known(nano: BagelNano) -> None:
    unknown = nano.layout.tokenizer.unk_token_id
    rng = np.random.default_rng(0)
    scenes = broad_scenes(40, 4, clean=0.1)
    texts = [caption(s) for s in scenes] + [f.prompt for f in facts()][::50]
    rows = [nano.layout.prompt_ids(text) for text in texts]
    rows += [nano.segment(*qa)[0] for s in scenes for qa in questions(s, rng)]
    assert not any(unknown in row for row in rows)


# ---- what ships ----------------------------------------------------------------------------------
def test_where_the_model_is_not_there_it_says_what_to_do(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(bundled._FOLDERS, "bagel-nano", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"'bagel-nano'.*reinstall unigame"):
        load_backbone("bagel-nano")


def test_the_bundled_name_plays_its_recipe(monkeypatch, saved: Path, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(bundled._FOLDERS, "bagel-nano", str(saved))
    name, drawing, _ = kind_of("bagel-nano")
    assert name == "bagel_nano" and drawing.temperature == 1.0
    assert kind_of("janus-nano")[0] == "janus_nano"
    few = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--data.0.size", "12"]
    few += ["--hard_batch_size", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    few += ["--logging_steps", "1", "--use_cpu", "--output_dir", str(tmp_path)]
    recipe = load_recipe(name, few)
    backbone = load_backbone(recipe.model, dtype="float32")
    assert backbone.source == "bagel-nano"
    trainer = UniGameTrainer(
        model=backbone,
        args=recipe.training,
        train_dataset=build_dataset(recipe.data, seed=0),
        peft_config=recipe.lora_config(),
        methods=recipe.build_methods(),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "acceptance_rate" in row]
    assert len(logged) == 1 and np.isfinite(logged[0]["loss"])


# ---- the whole recipe ----------------------------------------------------------------------------
def test_minutes_scale_the_steps_of_a_stage(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    asked = {}
    for name, stage in main.STAGES.items():
        run = lambda folder, seed, scale, steps, name=name: asked.update({name: steps})  # noqa: E731
        monkeypatch.setitem(main.STAGES, name, main.Stage(run, stage.steps, stage.minutes))
    half = main.STAGES["vae"].minutes / 2
    words = ["--output", str(tmp_path), "--stages", *main.STAGES, "--minutes", f"vae={half}"]
    assert main.main(words) == 0
    expected = {name: stage.steps for name, stage in main.STAGES.items()}
    assert asked == expected | {"vae": expected["vae"] // 2}
    for text in ("vea=3", "vae", "vae=0"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            main._minutes(text)


def test_every_stage_runs_into_the_next(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(language, "evaluate", lambda *_: None)  # the gates measure the same
    for name, value in {"AIM": 0.0, "LOOK_EVERY": 1, "COOLING": 1}.items():  # LOOKS stays 2
        monkeypatch.setattr(language, name, value)
    monkeypatch.setattr(decisions, "at_chance", lambda found: [])
    stages = [*main.STAGES, "gates"]
    quick = [name for name in gates.MEASURES if name != "room"]
    words = ["--output", str(tmp_path), "--scale", "0.002", "--stages", *stages, "--gates", *quick]
    words += ["--minutes", "vae=4", "together=58", "drawing=7"]
    assert main.main(words) == 1  # two steps pass no gate, and the command says so
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == set(stages)
    measured = json.loads((tmp_path / "gates.json").read_text())["gates"]
    assert set(measured) == set(quick)
    figures = {k: v for each in measured.values() for k, v in each["figures"].items()}
    assert {"tokenizer", "anchor", "drawing", "understanding", "drawable"} <= set(figures)
    assert {"knowledge", "free_texture", "model_megabytes"} <= set(figures)
    of = {name: [row for row in rows if row["stage"] == name] for name in stages}
    # 14 steps at most, 3 of them of captions alone; the aim was reached in the first two looks,
    # then one step of cooling, and the stage ended.
    looks = [row["step"] for row in of["together"] if "mean" in row]
    assert looks == [4, 5]
    kept = torch.load(tmp_path / "together.progress", weights_only=True)
    assert int(kept["model"]["cooling"]) == 5 and kept["done"] == 6
    said = [row for name in ("vae", "together") for row in of[name] if "decision" in row]
    assert [row["stage"] for row in said] == ["vae", "together", "together"]
    assert [row["step"] for row in said[1:]] == [3, 6]
    assert (tmp_path / "latents.safetensors").exists()
