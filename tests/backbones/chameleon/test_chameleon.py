"""Chameleon against transformers' own classes: layout, answers, codes, pixels and gradients."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.modeling_chameleon import ChameleonSwinDecoderLayer

from tests.tiny import random_images
from tests.tiny_chameleon import (
    BEGIN_IMAGE,
    EOS,
    TURN_END,
    make_tiny_chameleon,
    shared_tiny_chameleon,
    tiny_chameleon,
)
from unigame.backbones import load_backbone
from unigame.backbones.chameleon.model import ChameleonBackbone
from unigame.backbones.common.pixels import CroppingTwin
from unigame.errors import UserError

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture"]
ANSWERS = ["red", "two red squares"]
PROMPTS = ["a red circle", "two small green squares left of a blue cross"]


@pytest.fixture(scope="module")
def shared() -> ChameleonBackbone:
    return tiny_chameleon()


@pytest.fixture
def backbone(shared: ChameleonBackbone) -> ChameleonBackbone:
    return copy.deepcopy(shared)


def pictures(count: int = 2) -> list[Image.Image]:
    pixels = (random_images(count).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(array) for array in pixels]


def processed(backbone: ChameleonBackbone, question: str, shown: list[Image.Image]) -> Any:
    text = backbone.processor.image_token * len(shown) + question
    return backbone.processor(text=text, images=shown, return_tensors="pt")


# ---- layout ------------------------------------------------------------------------------------
def test_training_rows_are_those_of_transformers_at_inference(backbone: ChameleonBackbone) -> None:
    seen: list[Tensor] = []
    first = backbone.chameleon.model.layers[0]
    first.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    backbone.answer_loss(backbone.preprocess(pictures()), QUESTIONS, ANSWERS)
    trained_BLH = seen.pop()
    tokenizer, table = backbone.processor.tokenizer, backbone.chameleon.get_input_embeddings()
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        with torch.no_grad():
            backbone.chameleon(**processed(backbone, question, [pictures()[row]]))
        (prompt_LH,) = seen.pop()
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        rest = table(torch.tensor([*answer_ids, tokenizer.eos_token_id]))
        expected = torch.cat([prompt_LH, rest])
        assert torch.equal(trained_BLH[row, : len(expected)], expected)


def test_a_question_is_laid_out_as_the_processor_does(backbone: ChameleonBackbone) -> None:
    layout, names = backbone.layout, backbone.processor.tokenizer.convert_ids_to_tokens
    for count in (1, 2):
        ids = processed(backbone, QUESTIONS[0], pictures(count))["input_ids"][0].tolist()
        assert layout.question_ids(QUESTIONS[0], count) == ids
        assert ids.count(layout.image_token_id) == 16 * count
    row = names(layout.question_ids("is <image 2> above <image 1>", 2))
    assert "".join(row).replace("<image>", "") == (
        "<s>is<racm3:break><eoss>above<racm3:break><eoss><reserved08706>"
    )
    assert names(layout.prompt_ids("a red circle")) == [
        *("<s>", "a", "red", "circle", "<reserved08706>", "<racm3:break>")
    ]
    with pytest.raises(UserError, match="holds the image placeholder"):
        layout.question_ids("what is <image>")


def test_rows_without_a_prompt_stand_behind_those_with_one(backbone: ChameleonBackbone) -> None:
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=True)
    assert tokens.mask_BL.sum(-1)[2:].tolist() == [2, 2]
    assert tokens.ids_BL[2:, -2:].tolist() == [[0, 4]] * 2  # <s><racm3:break>
    assert torch.equal(
        backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=False).ids_BL,
        tokens.ids_BL[:2],
    )


# ---- text ----------------------------------------------------------------------------------------
def prefer_image_tokens(backbone: ChameleonBackbone) -> None:
    """Make image tokens the most likely ones everywhere."""
    with torch.no_grad():
        backbone.chameleon.model.norm.weight.abs_()
        backbone.chameleon.lm_head.weight[backbone.token_V] *= 30


def test_answers_equal_transformers_generate(backbone: ChameleonBackbone) -> None:
    prefer_image_tokens(backbone)
    layout, tokenizer = backbone.layout, backbone.processor.tokenizer
    questions = [*QUESTIONS, "is it red", "what shape is this"]
    shown = pictures(4)
    answers = backbone.answer(backbone.preprocess(shown), questions, max_new_tokens=8)
    assert len(set(answers)) > 1
    for question, picture, answer in zip(questions, shown, answers, strict=True):
        inputs = processed(backbone, question, [picture])
        ids = backbone.chameleon.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=[layout.eos_id, layout.turn_end_id, layout.begin_image_id],
        )[0, inputs["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert "IMGIMG" not in answer


def apart(states_H: Tensor, others_H: Tensor) -> Tensor:
    """The part of the states that is orthogonal to the others."""
    return states_H - states_H @ others_H / others_H.square().sum() * others_H


@pytest.mark.parametrize("mark", [EOS, TURN_END, BEGIN_IMAGE])
def test_an_answer_ends_with_each_of_its_marks(backbone: ChameleonBackbone, mark: str) -> None:
    """The mark is made the likeliest token behind the question, and another word behind it."""
    shown = pictures(1)
    inputs = processed(backbone, QUESTIONS[0], shown)
    known = backbone.processor.tokenizer.get_vocab()
    model, ids = backbone.chameleon.model, inputs["input_ids"]
    with torch.no_grad():
        first_H = model(**inputs).last_hidden_state[0, -1]
        inputs["input_ids"] = torch.cat([ids, torch.tensor([[known[mark]]])], dim=-1)
        inputs.pop("attention_mask")
        second_H = model(**inputs).last_hidden_state[0, -1]
        backbone.chameleon.lm_head.weight[known[mark]] = 100 * apart(first_H, second_H)
        backbone.chameleon.lm_head.weight[known["red"]] = 100 * apart(second_H, first_H)
    images = backbone.preprocess(shown)
    assert backbone.answer(images, QUESTIONS[:1], max_new_tokens=2) == [""]


def test_the_answer_loss_is_that_of_transformers(backbone: ChameleonBackbone) -> None:
    prefer_image_tokens(backbone)
    images = backbone.preprocess(pictures())
    loss_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        inputs = processed(backbone, question, [pictures()[row]])
        target = torch.tensor([backbone.layout.answer_ids(question, answer)])
        prompt = inputs["input_ids"]
        loss = backbone.chameleon(
            input_ids=torch.cat([prompt, target], -1),
            pixel_values=inputs["pixel_values"],
            labels=torch.cat([torch.full_like(prompt, -100), target], -1),
        ).loss
        assert loss_B[row].item() == pytest.approx(loss.item(), rel=1e-4)


# ---- drawing -------------------------------------------------------------------------------------
def test_codes_and_image_tokens_are_those_of_transformers(backbone: ChameleonBackbone) -> None:
    images = backbone.preprocess(pictures())
    pixels = torch.cat([processed(backbone, "is it red", [p])["pixel_values"] for p in pictures()])
    codes_BN = backbone.encode_images(images)
    assert torch.equal(backbone.token_V[codes_BN], backbone.chameleon.get_image_tokens(pixels))
    assert codes_BN.unique().numel() > 5
    assert not torch.equal(backbone.token_V, backbone.token_V.sort().values)


def test_the_ban_on_image_tokens_is_undone_for_drawing_only(backbone: ChameleonBackbone) -> None:
    codes_BN = backbone.encode_images(random_images(1))
    states_BNH = backbone.visual_states(random_images(1), PROMPTS[:1], codes=codes_BN).states_BNH
    row = [*backbone.layout.prompt_ids(PROMPTS[0]), *backbone.token_V[codes_BN[0, :-1]].tolist()]
    with torch.no_grad():
        banned = backbone.chameleon(input_ids=torch.tensor([row])).logits[:, -16:]
        hidden = backbone.chameleon.model(input_ids=torch.tensor([row])).last_hidden_state[:, -16:]
    torch.testing.assert_close(states_BNH, hidden, rtol=1e-4, atol=1e-4)
    assert (banned[..., backbone.token_V] == torch.finfo(torch.float32).min).all()
    expected = (hidden @ backbone.chameleon.lm_head.weight.T)[..., backbone.token_V]
    torch.testing.assert_close(backbone.image_logits(states_BNH), expected, rtol=1e-4, atol=1e-4)


def test_teacher_forced_states_predict_the_greedy_codes(backbone: ChameleonBackbone) -> None:
    codes_BN = backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False)
    states_BNH = backbone.visual_states(random_images(2), PROMPTS, codes=codes_BN).states_BNH
    assert torch.equal(backbone.image_logits(states_BNH).argmax(-1), codes_BN)
    guided = backbone.generate_codes(PROMPTS, guidance_scale=3.0, do_sample=False)
    assert not torch.equal(guided, codes_BN)


def test_guidance_mixes_the_scores_with_and_without_the_prompt(backbone: ChameleonBackbone) -> None:
    first_B = backbone.generate_codes(PROMPTS, guidance_scale=3.0, do_sample=False)[:, 0]
    scores = []
    for rows in ([backbone.layout.prompt_ids(p) for p in PROMPTS], [[0, 4]] * 2):
        states = [backbone.chameleon.model(input_ids=torch.tensor([r]))[0][0, -1] for r in rows]
        scores.append(backbone.code_scores(torch.stack(states)))
    expected_B = (scores[1] + 3.0 * (scores[0] - scores[1])).argmax(-1)
    assert torch.equal(first_B, expected_B)


def test_a_seed_for_each_row_gives_the_same_picture_in_any_batch(
    backbone: ChameleonBackbone,
) -> None:
    together = backbone.generate_codes(PROMPTS, seeds=[5, 9])
    alone = backbone.generate_codes(PROMPTS[1:], seeds=[9])
    assert torch.equal(together[1:], alone)
    assert not torch.equal(alone, backbone.generate_codes(PROMPTS[1:], seeds=[8]))


# ---- gradients -----------------------------------------------------------------------------------
def test_the_perturbers_gradient_is_that_of_finite_differences(backbone: ChameleonBackbone) -> None:
    """From pixels, and from the answer's CE through tokenizer and decoder, in float64.

    Both discrete steps are in their smooth form. The language model's norms compute in float32
    whatever they are given, hence the longer step for the loss.
    """
    backbone.double()
    visual = backbone.visual_states(random_images(2).double(), PROMPTS)
    states_BNH = visual.states_BNH.double()
    weights = random_images(2, seed=5).double()

    def draw(at: Tensor) -> Tensor:
        return backbone.draw(at, visual.codes, anchor=0.5, temperature=2.0, hard=False).images

    def pixels(at: Tensor) -> Tensor:
        return (draw(at) * weights).sum()

    def loss(at: Tensor) -> Tensor:
        embeds = backbone.read_images(draw(at), hard=False)[1]
        return backbone.answer_loss(None, QUESTIONS, ANSWERS, embeds=embeds).sum()

    for function, step, tolerance in ((pixels, 1e-6, 1e-5), (loss, 1e-3, 1e-2)):
        at = states_BNH.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(at), [at])
        assert (gradient.abs().sum(-1) > 0).all()
        ahead = step * gradient / gradient.norm()
        with torch.no_grad():
            change = function(states_BNH + ahead) - function(states_BNH - ahead)
        measured = float(change) / (2 * step)
        assert measured == pytest.approx(float(gradient.norm()), rel=tolerance)


def test_reading_passes_the_gradient_of_the_smooth_reading(backbone: ChameleonBackbone) -> None:
    images = random_images(2).requires_grad_()
    weights = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    hard, soft = (backbone.read_images(images, hard=hard)[1] for hard in (True, False))
    assert not torch.allclose(hard, soft, atol=1e-2)
    ours, smooth = (
        torch.autograd.grad((z * weights).sum(), [images], retain_graph=True)[0]
        for z in (hard, soft)
    )
    torch.testing.assert_close(ours, smooth, rtol=1e-4, atol=1e-5)
    assert (ours.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_large_pictures_go_through_the_tokenizer_in_parts(
    backbone: ChameleonBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, sizes = random_images(3), []
    whole = backbone.image_features(images)
    backbone.chameleon.model.vqmodel.encoder.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    monkeypatch.setattr("unigame.backbones.common.autoregressive.PIXELS_AT_ONCE", 2 * 16 * 16)
    torch.testing.assert_close(backbone.image_features(images), whole)
    assert sizes == [2, 1]


# ---- pixels ------------------------------------------------------------------------------------
def test_the_twin_gives_the_processors_pixels(backbone: ChameleonBackbone) -> None:
    picture = pictures(1)
    expected = processed(backbone, "is it red", picture)["pixel_values"]
    ours = backbone.pixels.normalise(backbone.preprocess(picture))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert -1 <= ours.min() and ours.max() <= 0.99


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (9, 30), (16, 23), (11, 11)])
def test_the_twins_resize_is_pils(backbone: ChameleonBackbone, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    expected = backbone.preprocess([Image.fromarray(pixels)])
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    assert (backbone.pixels.resize(images) - expected).abs().max() < 2.1 / 255


def test_drawn_pixels_are_those_of_minus_one_to_one(backbone: ChameleonBackbone) -> None:
    drawn = backbone.pixels.unnormalise(torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]))
    assert drawn.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_model_and_processor_must_belong_together(backbone: ChameleonBackbone) -> None:
    model, processor = backbone.chameleon, copy.deepcopy(backbone.processor)
    processor.image_seq_length = 9
    with pytest.raises(UserError, match="9 tokens of a picture, the image tokenizer 4 x 4"):
        ChameleonBackbone(model, processor)
    image_processor = copy.deepcopy(backbone.processor.image_processor)
    with pytest.raises(UserError, match="resizes to 16 px .* the model reads 32 px"):
        CroppingTwin(image_processor, 32)
    image_processor.resample = 3
    with pytest.raises(UserError, match="mode 3; only lanczos"):
        CroppingTwin(image_processor, 16)
    config = copy.deepcopy(model.config)
    config.vocabulary_map.pop("IMGIMGBCZ")
    lost = ChameleonForConditionalGeneration(config)
    with pytest.raises(UserError, match="names 63 image tokens, the image tokenizer has 64"):
        ChameleonBackbone(lost, backbone.processor)


def test_a_lost_image_token_is_named_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(shared_tiny_chameleon(), tmp_path / "model"))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["vocabulary_map"]["IMGIMGBCZ"]
    file.write_text(json.dumps(config))
    monkeypatch.setattr(
        ChameleonForConditionalGeneration,
        "from_pretrained",
        lambda *args, **kwargs: pytest.fail("weights were read before the check"),
    )
    with pytest.raises(UserError, match="names 63 image tokens, the image tokenizer has 64"):
        load_backbone(folder, device="cpu")


# ---- the larger model ----------------------------------------------------------------------------
def test_the_layout_of_the_34b_model_reads_and_draws_as_transformers_does(tmp_path: Path) -> None:
    """Norms behind the blocks, keys and values shared among heads, norms of each head's own."""
    folder = make_tiny_chameleon(tmp_path, swin_norm=True)
    backbone = load_backbone(folder, device="cpu")
    assert isinstance(backbone, ChameleonBackbone)
    model, layout = backbone.chameleon, backbone.layout
    assert isinstance(model.model.layers[0], ChameleonSwinDecoderLayer)
    images, shown = backbone.preprocess(pictures(1)), pictures(1)
    inputs = processed(backbone, QUESTIONS[0], shown)
    target, prompt = torch.tensor([layout.answer_ids(QUESTIONS[0], "red")]), inputs["input_ids"]
    theirs = model(
        input_ids=torch.cat([prompt, target], -1),
        pixel_values=inputs["pixel_values"],
        labels=torch.cat([torch.full_like(prompt, -100), target], -1),
    ).loss
    ours = backbone.answer_loss(images, QUESTIONS[:1], ["red"])[0]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    codes_BN = backbone.generate_codes(PROMPTS[:1], guidance_scale=1.0, do_sample=False)
    states_BNH = backbone.visual_states(images, PROMPTS[:1], codes=codes_BN).states_BNH
    assert torch.equal(backbone.image_logits(states_BNH).argmax(-1), codes_BN)
    backbone.add_lora()
    backbone.answer_loss(images, QUESTIONS[:1], ["red"]).sum().backward()
    reached = [p.grad is not None for p in backbone.trainable_parameters()]
    assert len(reached) == 2 * 7 * 2 and all(reached)
