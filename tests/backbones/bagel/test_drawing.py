"""How BAGEL redraws and trains: gradient, candidates, guidance, rows, which expert learns."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import peft
import pytest
import torch
from tokenizers import Tokenizer as Pieces
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.backbones.conftest import loaded
from tests.tiny import random_images, stir_lora
from tests.tiny_bagel import shared_tiny_bagel
from unigame.backbones import load_backbone
from unigame.backbones.bagel import flow
from unigame.backbones.bagel.captions import ReadCaptions
from unigame.backbones.bagel.layout import IMAGE, LATENT
from unigame.backbones.bagel.model import BagelBackbone
from unigame.backbones.merging import merge
from unigame.errors import UserError
from unigame.methods.base import Run
from unigame.methods.reca import RecA
from unigame.turns import join_turns

PROMPTS = ["a red circle", "two small green squares left of a blue cross"]
QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]


@pytest.fixture
def backbone() -> BagelBackbone:
    return cast(BagelBackbone, copy.deepcopy(loaded(shared_tiny_bagel())))


# ---- the gradient of player C -------------------------------------------------------------------
def test_the_perturbers_gradient_is_that_of_finite_differences(backbone: BagelBackbone) -> None:
    """From the answer's CE through eyes, autoencoder and flow head to the perturbation."""
    backbone.double()
    images = random_images(2).double()
    visual = backbone.visual_states(images, PROMPTS)
    states_BNH = visual.states_BNH
    assert states_BNH.dtype == torch.float64

    def loss(at: Tensor) -> Tensor:
        drawing = backbone.draw(at, visual.codes)
        return backbone.answer_loss(drawing.images, QUESTIONS, ANSWERS).sum()

    at = states_BNH.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), [at])
    assert (gradient.abs().sum(-1) > 0).all()
    step = 1e-5
    for seed in range(2):
        ahead = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed)).double()
        ahead = ahead / ahead.norm() + gradient / gradient.norm()
        with torch.no_grad():
            change = loss(states_BNH + step * ahead) - loss(states_BNH - step * ahead)
        measured = float(change) / (2 * step)
        assert measured == pytest.approx(float((gradient * ahead).sum()), rel=1e-6)


def test_a_small_perturbation_survives_a_bfloat16_base() -> None:
    backbone = load_backbone(shared_tiny_bagel(), dtype="bfloat16", device="cpu")
    visual = backbone.visual_states(random_images(2), PROMPTS)
    assert visual.states_BNH.dtype == visual.codes.dtype == torch.float32
    delta = 1e-4 * torch.randn(visual.states_BNH.shape, generator=torch.Generator().manual_seed(0))
    plain, near, far = (
        backbone.draw(visual.states_BNH + scale * delta, visual.codes).compact
        for scale in (0.0, 1.0, 2.0)
    )
    assert (near - plain).abs().max() > 0
    torch.testing.assert_close(far - plain, 2 * (near - plain), rtol=0.05, atol=1e-6)


# ---- redrawing -----------------------------------------------------------------------------------
def test_a_perfect_model_redraws_the_picture_itself(
    backbone: BagelBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = backbone.encode_images(random_images(2))
    noise = flow.fixed_noise(codes.shape[1:], codes)
    monkeypatch.setattr(type(backbone.bagel), "velocity", lambda *_: noise - codes)
    drawn = backbone.draw(torch.zeros(2, 16, 32), codes).compact
    torch.testing.assert_close(drawn, codes)


def test_candidates_spread_about_the_one_that_is_drawn_without_chance(
    backbone: BagelBackbone,
) -> None:
    visual = backbone.visual_states(random_images(1), PROMPTS[:1])
    one = backbone.draw(visual.states_BNH, visual.codes).compact
    for temperature in (1.0, 2.0):
        many = backbone.draw(
            visual.states_BNH,
            visual.codes,
            num_candidates=64,
            temperature=temperature,
            generator=torch.Generator().manual_seed(0),
        ).compact
        spread = (many - one).std()
        assert float(spread) == pytest.approx(0.1 * temperature, rel=0.05)
    for wrong in ({"num_candidates": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0"):
            backbone.draw(visual.states_BNH, visual.codes, **wrong)  # type: ignore[arg-type]


# ---- free drawing --------------------------------------------------------------------------------
def test_captions_are_read_once_and_drawn_as_if_at_every_step(
    backbone: BagelBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", "a red circle", "", "two small green squares left of a blue cross", "yellow"]
    for some in (texts, texts[:1], texts[1:2]):
        rows = backbone.prompt_tokens(some)
        latents = torch.randn(len(some), *backbone.bagel.config.latent_shape)
        level_B = torch.linspace(0.2, 0.9, len(some))
        with torch.no_grad():
            read = ReadCaptions(backbone, rows)
            for count in (len(some), 1):
                expected = backbone.latent_states(rows[:count], latents[:count], level_B[:count])
                found = read.states(latents[:count], level_B[:count])
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    lengths = []
    forward = type(backbone.language_model).forward

    def watched(model: object, inputs_embeds: Tensor, **rest: object) -> object:
        lengths.append(inputs_embeds.shape[1])
        return forward(model, inputs_embeds, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(backbone.language_model), "forward", watched)
    backbone.generate(texts[:4])
    picture = len(backbone.layout.drawing_start())
    steps = backbone.bagel.config.sample_steps - 1
    assert lengths[0] > 0 and lengths[1:] == [picture] * steps


def test_guidance_only_shortens_and_only_in_its_interval() -> None:
    wanted, plain = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pushed = plain + 4 * (wanted - plain)
    length = wanted.flatten(1).norm(dim=1)
    assert (pushed.flatten(1).norm(dim=1) > length).all()
    torch.testing.assert_close(flow.guided(wanted, plain, 4.0).flatten(1).norm(dim=1), length)
    short = flow.guided(wanted, 0.9 * wanted, -5.0)  # shorter than it was: left so
    torch.testing.assert_close(short, 0.4 * wanted)
    levels: list[tuple[float, bool]] = []

    def velocity(latents: Tensor, level_B: Tensor, guided: bool) -> Tensor:
        levels.append((float(level_B[0]), guided))
        return torch.ones_like(latents)

    start = torch.zeros(1, 1, 2, 2)
    end = flow.sample(start, velocity, steps=50, shift=3.0, interval=(0.4, 1.0))
    torch.testing.assert_close(end, start - 1)  # all the way from 1 to 0
    assert len(levels) == 49 and levels[0] == (1.0, True)
    assert all(guided == (level > 0.4) for level, guided in levels)
    assert levels[1][0] == pytest.approx(3 * (48 / 49) / (1 + 2 * 48 / 49))


@pytest.mark.parametrize("steps", [17, 50])
def test_whatever_the_shift_the_first_step_is_guided(steps: int) -> None:
    found: list[bool] = []

    def velocity(latents: Tensor, level_B: Tensor, guided: bool) -> Tensor:
        found.append(guided)
        return torch.zeros_like(latents)

    start = torch.zeros(1, 1, 2, 2)
    for shift in (0.2, 0.4, 0.91, 1.0, 2.0, 3.0, 4.0, 12.3):
        found.clear()
        flow.sample(start, velocity, steps=steps, shift=shift, interval=(0.4, 1.0))
        assert found[0], shift
    even = torch.linspace(1, 0, steps)
    assert float(0.2 * even[0] / (1 + (0.2 - 1) * even[0])) > 1, "by rounding alone"
    for shift in (2.0, 3.0):  # those that are shipped: as they were, to the bit
        assert torch.equal(flow.shifted(even, shift), shift * even / (1 + (shift - 1) * even))


# ---- rows ----------------------------------------------------------------------------------------
def test_rows_and_positions_are_those_of_the_published_layout(backbone: BagelBackbone) -> None:
    layout = backbone.layout
    tokenizer = layout.tokenizer

    def ids(text: str) -> list[int]:
        return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]

    picture = [*ids("<|vision_start|>"), *[IMAGE] * 16, *ids("<|vision_end|>")]
    asked = ids("<|im_start|> is it red <|im_end|> <|im_start|>")
    row = layout.question_ids("is it red")
    assert row == picture + asked
    assert layout.positions(row) == [*[0] * 18, *range(1, 7)]
    assert layout.answer_ids("is it red", " yes ") == ids("yes <|im_end|>")
    drawn = layout.prompt_ids("red")
    latents = [*ids("<|vision_start|>"), *[LATENT] * 16, *ids("<|vision_end|>")]
    assert drawn == ids("<|im_start|> red <|im_end|>") + latents
    assert layout.positions(drawn) == [0, 1, 2, *[3] * 18]
    assert layout.prompt_ids(" ") == latents and layout.positions(latents) == [0] * 18
    turns = layout.question_ids(join_turns([("is it big", "yes")], "is it red", "draw"))
    said = "<|im_start|> is it big <|im_end|> <|im_start|> yes <|im_end|>"
    assert turns == ids("<|im_start|> draw <|im_end|>") + picture + ids(said) + asked
    two = layout.question_ids("is <image 2> left of <image 1> ?", 2)
    assert two == [
        *ids("<|im_start|> is <|im_end|>"),
        *picture,
        *ids("<|im_start|> left of <|im_end|>"),
        *picture,
        *ids("<|im_start|> ? <|im_end|> <|im_start|>"),
    ]
    padded = layout.pad([drawn, latents], "left", backbone.device)
    assert padded.positions_BL[1].tolist() == [0] * 21
    assert (padded.ids_BL[:, layout.latents(padded)] == LATENT).all()
    assert (padded.ids_BL == LATENT).sum() == 32
    for mark in ("<|vision_start|>", "<|vision_end|>"):
        named = re.escape(repr(mark))
        with pytest.raises(UserError, match=f"question .* placeholder {named}"):
            layout.question_ids(f"is {mark} red")
        with pytest.raises(UserError, match=f"drawing prompt .* placeholder {named}"):
            layout.prompt_ids(f"a {mark} circle")
        with pytest.raises(ValueError, match=named):
            backbone.generate([f"a {mark} circle"])


def test_a_row_is_as_long_as_its_positions_and_a_picture_takes_one(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared_tiny_bagel(), tmp_path / "model"))
    file = folder / "llm_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 48}))
    small = cast(BagelBackbone, load_backbone(folder, device="cpu"))
    rules, layout = small.text_rules, small.layout
    texts = {"question": "is it red", "answer": "yes"}
    row = layout.reading_row(texts["question"], texts["answer"], 3)
    assert len(row) > 48 and layout.num_positions(row) == max(layout.positions(row)) + 1 == 11
    assert rules.problem(texts, num_images=3) is None
    found = rules.problem(texts, num_images=3, max_length=len(row) - 1)
    assert found is not None and f"max_length: {len(row) - 1}" in found[0]
    assert rules.problem(texts, num_images=3, max_length=len(row)) is None
    for field in ("answer", "caption"):
        found = rules.problem({**texts, field: "red " * 60}, max_length=500)
        assert found is not None and "the model's positions: 48" in found[0]
    # So is a row of RecA's: a picture that is read, a text, and one that is drawn.
    run = Run(SimpleNamespace(seed=0), small, torch.device("cpu"))
    RecA(templates=["red " * 44]).setup(run)
    with pytest.raises(UserError, match="takes 49 positions, and the model has 48"):
        RecA(templates=["red " * 45]).setup(run)


def test_free_answers_are_those_that_training_scores_highest(backbone: BagelBackbone) -> None:
    """Cached decoding sees the rows of training: each greedy word is the likeliest there."""
    images = random_images(2)
    said = backbone.answer(images, QUESTIONS, max_new_tokens=4)
    asked = backbone.answer_tokens(QUESTIONS, said)
    tokens = backbone.layout.pad([a.prompt + a.answer for a in asked], "right", backbone.device)
    embeds = backbone.embed_rows(tokens, backbone.embed_images(images))
    logits = backbone.text_logits(backbone.language_states(embeds, tokens))
    for row, each in enumerate(asked):
        own = len(each.answer) - 1  # the end mark was not said: decoding stopped by its limit
        first = len(each.prompt) - 1
        likeliest = logits[row, first : first + own].argmax(-1)
        assert likeliest.tolist() == list(each.answer[:own]) and own


# ---- training ------------------------------------------------------------------------------------
def test_a_dropped_caption_is_no_caption(backbone: BagelBackbone) -> None:
    backbone.bagel.config.caption_dropout = 0.999999
    backbone.train()
    images, losses = random_images(2), []
    for prompts in (PROMPTS, ["", ""]):
        torch.manual_seed(0)
        losses.append(backbone.generation_loss(images, prompts))
    assert torch.equal(*losses)
    backbone.bagel.config.caption_dropout = 0.0
    torch.manual_seed(0)
    assert not torch.allclose(backbone.generation_loss(images, PROMPTS), losses[0])


def experts(backbone: BagelBackbone) -> set[bool]:
    """Whether trained layers are the generation expert's."""
    names = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert names and all("language_model.model.layers" in name for name in names)
    return {"_moe_gen" in name for name in names}


def test_lora_is_on_the_understanding_expert_and_on_both_where_asked(
    backbone: BagelBackbone, tmp_path: Path
) -> None:
    other = copy.deepcopy(backbone)
    assert experts(backbone.add_lora()) == {False}
    assert "generation expert" in backbone.facts.frozen_parts
    assert len(backbone.trainable_parameters()) == 2 * 2 * 7
    settings = peft.LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear")
    assert experts(other.add_lora(settings)) == {False, True}
    assert set(backbone.facts.frozen_parts) - set(other.facts.frozen_parts) == {"generation expert"}
    assert len(other.trainable_parameters()) == 2 * 2 * 14
    stir_lora(other)
    other.save_pretrained(tmp_path)
    again = load_backbone(shared_tiny_bagel(), device="cpu", adapter=tmp_path)
    assert again.facts.frozen_parts == other.facts.frozen_parts
    images = random_images(2)
    torch.testing.assert_close(
        again.generation_loss(images, PROMPTS), other.eval().generation_loss(images, PROMPTS)
    )


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["gate_proj"], {"mlp.gate_proj"}),
        (["q_proj_moe_gen", "mlp_moe_gen.up_proj"], {"q_proj_moe_gen", "mlp_moe_gen.up_proj"}),
    ],
)
def test_lora_takes_layers_by_name(
    backbone: BagelBackbone, names: list[str], layers: set[str]
) -> None:
    backbone.add_lora(peft.LoraConfig(target_modules=names))
    trained = {n.split(".lora_")[0] for n, p in backbone.named_parameters() if p.requires_grad}
    assert {name for name in trained if not name.endswith(tuple(f".{x}" for x in layers))} == set()
    assert len(trained) == 2 * len(layers)
    with pytest.raises(UserError, match="'qproj'"):
        copy.deepcopy(loaded(shared_tiny_bagel())).add_lora(
            peft.LoraConfig(target_modules=["qproj"])
        )


def test_an_adapter_merges_into_a_published_folder(backbone: BagelBackbone, tmp_path: Path) -> None:
    backbone.source = str(shared_tiny_bagel())
    stir_lora(backbone.add_lora())
    backbone.save_pretrained(tmp_path / "adapter")
    merged = merge(tmp_path / "adapter", tmp_path / "merged", device="cpu")
    assert merged.answers == 4 and merged.pixel_gap is not None and merged.pixel_gap < 1e-3
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json"} <= names


def test_a_whole_model_is_saved_with_what_its_tokenizer_was_made_of(
    backbone: BagelBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Pieces(BPE(vocab={"r": 0, "e": 1, "re": 2}, merges=[("r", "e")]))
    monkeypatch.setattr(backbone, "processor", PreTrainedTokenizerFast(tokenizer_object=pieces))
    backbone.save_pretrained(tmp_path)
    assert (tmp_path / "merges.txt").read_text().splitlines()[1:] == ["r e"]
    assert (tmp_path / "vocab.json").is_file() and (tmp_path / "tokenizer.json").is_file()
