"""The backbone contract, run on every family: what the game and the trainer may rely on."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image

from tests.tiny import random_images, stir_lora
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.loading import find_model
from unigame.backbones.registry import find_info
from unigame.errors import UserError

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture", "is it red"]
ANSWERS = ["red", "two red squares and a circle", "no"]
PROMPTS = ["a red circle", "two small green squares left of a blue cross", "yellow"]


def images_for(backbone: Backbone, count: int = 3) -> torch.Tensor:
    return random_images(count, backbone.facts.image_size)


def with_lora(backbone: Backbone) -> Backbone:
    backbone.add_lora().eval()
    stir_lora(backbone)
    return backbone


def idle_in_drawing(backbone: Backbone) -> set[str]:
    """Weights that no drawing hangs on.

    Of BAGEL's last layer a drawing reads only keys and values of the understanding expert: nothing
    but the generation expert's own path follows.
    """
    if backbone.facts.family != "bagel":
        return set()
    last = {name for name, _ in backbone.named_parameters() if ".layers.1." in name}
    return {name for name in last if "k_proj" not in name and "v_proj" not in name}


def names_with_gradient(backbone: Backbone) -> set[str]:
    return {n for n, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}


# ---- drawing freely, in compact form -----------------------------------------------------------
def test_what_is_drawn_freely_is_had_in_compact_form(backbone: Backbone) -> None:
    given: dict[str, Any] = {"seeds": [3, 4], "guidance_scale": 2.0, "temperature": 0.7}
    compact = backbone.generate_compact(PROMPTS[:2], **given)
    assert compact.is_floating_point() == (backbone.facts.codebook_size is None)
    assert torch.equal(backbone.render(compact), backbone.generate(PROMPTS[:2], **given))


def test_texts_without_a_picture_get_replies(backbone: Backbone) -> None:
    alone = backbone.reply(["is it red"], max_new_tokens=3)
    both = backbone.reply(["is it red", "how many objects are there"], max_new_tokens=3)
    assert [type(reply) for reply in both] == [str, str] and both[:1] == alone


def test_its_lora_layers_are_known_without_weights_or_not_said(
    backbone: Backbone, checkpoint: Path
) -> None:
    info = find_info(find_model(checkpoint)[1])
    assert info is not None
    if info.model_type == "unigame_composed":  # of any language model
        assert info.lora_targets == ()
    else:
        assert info.lora_targets == backbone.facts.lora_targets
        for name in ("q_proj", "gate_proj"):  # which a family may complete, as BAGEL does
            find_model(checkpoint, lora=peft.LoraConfig(target_modules=[name]))
        with pytest.raises(UserError, match="'gate_pro' is no linear layer"):
            find_model(checkpoint, lora=peft.LoraConfig(target_modules=["gate_pro"]))


# ---- shapes ------------------------------------------------------------------------------------
def test_every_verb_gives_the_shapes_of_the_contract(backbone: Backbone) -> None:
    facts, images = backbone.facts, images_for(backbone)
    shape, tokens, hidden = facts.image_shape, facts.num_image_tokens, facts.hidden_size
    codes = backbone.encode_images(images)
    assert backbone.embed_images(images).shape == (3, tokens, hidden)
    assert backbone.image_features(images).shape[:2] == (3, tokens)
    assert backbone.answer_loss(images, QUESTIONS, ANSWERS).shape == (3,)
    assert backbone.generation_loss(images, PROMPTS).shape == (3,)
    states = backbone.visual_states(images, PROMPTS)
    assert states.states_BNH.shape == (3, facts.state_tokens, hidden)
    assert states.states_BNH.dtype == torch.float32
    assert torch.equal(states.codes, codes)
    # Codes of a codebook, or a latent: one or the other, as the facts say.
    assert codes.is_floating_point() == (facts.codebook_size is None)
    drawing = backbone.draw(states.states_BNH, states.codes, num_candidates=2)
    assert drawing.images.shape == (6, 3, *shape)
    assert drawing.compact.shape == (6, *codes.shape[1:])
    assert drawing.compact.dtype == codes.dtype
    assert backbone.generate(PROMPTS, seed=1).shape == (3, 3, *shape)
    answers = backbone.answer(images, QUESTIONS, max_new_tokens=3)
    assert [type(answer) for answer in answers] == [str] * 3


def test_pictures_lie_between_zero_and_one(backbone: Backbone) -> None:
    picture = Image.new("RGB", (37, 20), (255, 0, 128))
    images = backbone.preprocess([picture, picture.rotate(90, expand=True)])
    assert images.shape == (2, 3, *backbone.facts.image_shape)
    drawn = backbone.render(backbone.encode_images(images))
    for pixels in (images, drawn, backbone.generate(["a red circle"])):
        assert pixels.dtype == torch.float32
        assert 0 <= pixels.min() and pixels.max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "EXIF"])
def test_preprocess_shows_what_the_data_readers_would_show(backbone: Backbone, mode: str) -> None:
    """Pillow's convert("RGB") shows hidden colours, clips 16 bits and forgets the orientation."""
    shown = Image.new("RGB", (24, 36), (255, 255, 255))
    if mode == "EXIF":
        shown.paste((0, 0, 200), (0, 0, 12, 12))
        given = shown.transpose(Image.Transpose.ROTATE_90)
        given.info["exif"] = exif_bytes(6)
    elif mode == "P":
        given = Image.new("P", shown.size, 1)
        given.putpalette([0, 0, 0, 220, 20, 20])
        given.info["transparency"] = 1
    elif mode == "CMYK":
        given = Image.new("CMYK", shown.size, (0, 0, 0, 0))
    elif mode == "I;16":
        given = Image.new(mode, shown.size, 257 * 200)
        shown = Image.new("RGB", shown.size, (200, 200, 200))
    else:
        given = Image.new(mode, shown.size)  # black, and wholly transparent
    assert torch.equal(backbone.preprocess([given]), backbone.preprocess([shown]))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_a_line_of_pixels_does_not_fill_the_memory(
    backbone: Backbone, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = Image.Image.resize

    def small_only(image: Image.Image, new: tuple[int, int], *args: Any, **rest: Any) -> Any:
        assert new[0] * new[1] < 10**6, f"resized to {new}"
        return resize(image, new, *args, **rest)

    monkeypatch.setattr(Image.Image, "resize", small_only)
    images = backbone.preprocess([Image.new("RGB", size)])
    assert images.shape == (1, 3, *backbone.facts.image_shape)


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("wrong", ["a.png", None, torch.zeros(3, 8, 8), Image.new("F", (8, 8))])
def test_preprocess_refuses_what_is_no_picture(backbone: Backbone, wrong: object) -> None:
    kind = "F, 8 x 8" if isinstance(wrong, Image.Image) else type(wrong).__name__
    with pytest.raises(UserError, match=f"picture 1 .*{kind}"):
        backbone.preprocess([Image.new("RGB", (8, 8)), wrong])  # type: ignore[list-item]
    with pytest.raises(UserError, match="list of PIL images"):
        backbone.preprocess(Image.new("RGB", (8, 8)))  # type: ignore[arg-type]


def test_a_fresh_backbone_is_frozen_and_evaluating(backbone: Backbone) -> None:
    assert backbone.trainable_parameters() == []
    assert not any(module.training for module in backbone.modules())
    assert backbone.facts.num_parameters == sum(p.numel() for p in backbone.parameters())


# ---- gradients ---------------------------------------------------------------------------------
def test_answers_are_also_judged_without_their_end_mark(backbone: Backbone) -> None:
    images = images_for(backbone)
    loss_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    losses = backbone.answer_token_losses(images, QUESTIONS, ANSWERS)
    assert torch.equal(losses.mean(), loss_B)
    length_B = backbone.answer_lengths(QUESTIONS, ANSWERS)
    assert losses.length_M.tolist() == length_B.tolist() and int(length_B.min()) > 1
    for row, length in enumerate(length_B.tolist()):
        assert (losses.loss_MA[row, length:] == 0).all()
        own, number = losses.own()
        assert int(number[row]) == length - 1
        assert torch.equal(own[row, : length - 1], losses.loss_MA[row, : length - 1])
        assert (own[row, length - 1 :] == 0).all()
    routed = backbone(
        loss="answer", by_token=True, images=images, questions=QUESTIONS, answers=ANSWERS
    )
    assert torch.equal(routed.loss_MA, losses.loss_MA)


def test_answer_loss_moves_lora_and_images_and_nothing_else(backbone: Backbone) -> None:
    with_lora(backbone)
    images = images_for(backbone).requires_grad_()
    backbone.answer_loss(images, QUESTIONS, ANSWERS).sum().backward()
    assert images.grad is not None and (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    wanted = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert wanted and names_with_gradient(backbone) == wanted
    assert all("lora_" in name for name in wanted)


def test_generation_loss_moves_lora_and_nothing_else(backbone: Backbone) -> None:
    with_lora(backbone)
    backbone.generation_loss(images_for(backbone), PROMPTS).sum().backward()
    wanted = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in backbone.trainable_parameters())  # or ranks would wait
    assert names_with_gradient(backbone) == wanted - idle_in_drawing(backbone)


def test_drawing_is_differentiable_in_the_states_only(backbone: Backbone) -> None:
    with_lora(backbone)
    states = backbone.visual_states(images_for(backbone), PROMPTS)
    assert not states.states_BNH.requires_grad
    perturbed = states.states_BNH.clone().requires_grad_()
    drawing = backbone.draw(perturbed, states.codes, temperature=5.0)
    loss_B = backbone.answer_loss(drawing.images, QUESTIONS, ANSWERS)
    (gradient,) = torch.autograd.grad(loss_B.sum(), [perturbed])
    assert (gradient.abs().sum(dim=(1, 2)) > 0).all()
    backbone.draw(perturbed, states.codes, temperature=5.0).images.sum().backward()
    assert names_with_gradient(backbone) == set()


def test_without_gradient_nothing_is_recorded(backbone: Backbone) -> None:
    with_lora(backbone)
    images = images_for(backbone).requires_grad_()
    assert not backbone.visual_states(images, PROMPTS).states_BNH.requires_grad
    assert not backbone.encode_images(images).requires_grad
    assert not backbone.generate(["red"]).requires_grad


# ---- drawing what is read ----------------------------------------------------------------------
TEMPLATES = [
    "describe this picture",
    "what colour are the objects in it and how many are there",
    "a",
]


def test_reconstruction_moves_lora_and_what_is_read_and_nothing_else(backbone: Backbone) -> None:
    with_lora(backbone)
    images, codes = images_for(backbone), backbone.encode_images(images_for(backbone))
    embeds = backbone.embed_shrunk(images).detach().requires_grad_()
    loss_B = backbone.reconstruction_loss(None, TEMPLATES, codes=codes, embeds=embeds)
    assert loss_B.shape == (3,)
    loss_B.sum().backward()
    wanted = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert names_with_gradient(backbone) == wanted - idle_in_drawing(backbone)
    assert embeds.grad is not None and (embeds.grad.abs().sum(-1) > 0).any(-1).all()
    # What is known need not be given, tokens are texts, and wrappers reach it by its name.
    rows = backbone.reconstruction_tokens(TEMPLATES)
    routed = backbone("reconstruction", images=images, templates=rows)
    torch.testing.assert_close(routed, loss_B)


def test_reconstruction_reads_the_own_picture_and_no_neighbour(backbone: Backbone) -> None:
    with_lora(backbone)
    images = images_for(backbone)
    loss_B = backbone.reconstruction_loss(images, TEMPLATES)
    codes = backbone.encode_images(images)
    strange = backbone.embed_shrunk(images.roll(1, 0))
    other_B = backbone.reconstruction_loss(None, TEMPLATES, codes=codes, embeds=strange)
    assert ((other_B - loss_B).abs() > 1e-6).all()
    for b in range(3):
        one = slice(b, b + 1)
        alone = backbone.reconstruction_loss(images[one], TEMPLATES[one])
        torch.testing.assert_close(alone[0], loss_B[b], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_reconstruction_is_that_of_finite_differences(backbone: Backbone) -> None:
    backbone.double()
    images = images_for(backbone, 1).double()
    codes, read = backbone.encode_images(images), backbone.embed_shrunk(images).detach()
    aim = torch.randn(read.shape, generator=torch.Generator().manual_seed(2)).double()

    def loss(step: float) -> torch.Tensor:
        embeds = (read + step * aim).requires_grad_()
        found = backbone.reconstruction_loss(None, TEMPLATES[:1], codes=codes, embeds=embeds)
        (gradient,) = torch.autograd.grad(found.sum(), [embeds])
        return torch.stack([found.sum().detach(), (gradient * aim).sum()])

    step = 1e-3  # norms compute in float32
    slope = (loss(step)[0] - loss(-step)[0]) / (2 * step)
    assert slope.abs() > 1e-6
    torch.testing.assert_close(slope, loss(0)[1], rtol=5e-3, atol=1e-9)


def test_codes_that_are_read_cannot_be_copied(backbone: Backbone) -> None:
    """Where the eyes are the image codes, what is read has lost detail: another code stands there.

    A copier says the code that it reads, nearly surely: its loss would be nearly 0.
    """
    side, images = backbone.facts.image_size, images_for(backbone)
    assert backbone.reading_size() == (side // 2 if backbone.reads_codes else side)
    for wrong in (0, side + 1):
        with pytest.raises(UserError, match=f"{wrong} px"):
            backbone.reading_size(wrong)
    if not backbone.reads_codes:
        assert torch.equal(backbone.embed_shrunk(images), backbone.embed_images(images))
        return
    with pytest.raises(UserError, match=f"{side} px.*copy"):
        backbone.embed_shrunk(images, side)
    table_VH = backbone.base.get_input_embeddings().weight[backbone.token_V]  # type: ignore[attr-defined]
    codes_BN = backbone.encode_images(images)

    def copier(embeds_BNH: torch.Tensor) -> float:
        read_BN = torch.cdist(embeds_BNH, table_VH[None]).argmin(-1)
        sure = torch.full((*read_BN.shape, len(table_VH)), 0.01 / len(table_VH))
        said = sure.scatter(-1, read_BN[..., None], 0.99).log()
        return float(torch.nn.functional.nll_loss(said.mT, codes_BN))

    assert copier(backbone.embed_images(images)) < 0.02
    assert copier(backbone.embed_shrunk(images)) > 2
    assert copier(backbone.embed_shrunk(images, side // 4)) > 2


# ---- per sample --------------------------------------------------------------------------------
def test_losses_do_not_depend_on_neighbours_or_padding(backbone: Backbone) -> None:
    with_lora(backbone)
    images = images_for(backbone)
    answer_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    drawn_B = backbone.generation_loss(images, PROMPTS)
    states_BNH = backbone.visual_states(images, PROMPTS).states_BNH
    assert answer_B.unique().numel() == 3
    for b in range(3):
        one = slice(b, b + 1)
        alone = backbone.answer_loss(images[one], QUESTIONS[one], ANSWERS[one])
        torch.testing.assert_close(alone[0], answer_B[b], rtol=1e-5, atol=1e-5)
        alone = backbone.generation_loss(images[one], PROMPTS[one])
        torch.testing.assert_close(alone[0], drawn_B[b], rtol=1e-5, atol=1e-5)
        alone = backbone.visual_states(images[one], PROMPTS[one]).states_BNH
        torch.testing.assert_close(alone[0], states_BNH[b], rtol=1e-4, atol=1e-4)


def test_answers_do_not_depend_on_neighbours(backbone: Backbone) -> None:
    images = images_for(backbone)
    together = backbone.answer(images, QUESTIONS, max_new_tokens=6)
    assert len(set(together)) > 1
    for b in range(3):
        assert backbone.answer(images[b : b + 1], QUESTIONS[b : b + 1], max_new_tokens=6) == [
            together[b]
        ]


def test_candidate_rows_are_asked_their_own_question(backbone: Backbone) -> None:
    images_M = images_for(backbone, 6)
    loss_M = backbone.answer_loss(images_M, QUESTIONS, ANSWERS)
    repeated = [[text for text in texts for _ in range(2)] for texts in (QUESTIONS, ANSWERS)]
    torch.testing.assert_close(loss_M, backbone.answer_loss(images_M, *repeated))
    with pytest.raises(ValueError, match="5 image rows"):
        backbone.answer_loss(images_M[:5], QUESTIONS, ANSWERS)


def test_embedded_tokens_give_the_loss_of_their_images(backbone: Backbone) -> None:
    images = images_for(backbone)
    embeds = backbone.embed_images(images).requires_grad_()
    loss_B = backbone.answer_loss(None, QUESTIONS, ANSWERS, embeds=embeds)
    torch.testing.assert_close(loss_B, backbone.answer_loss(images, QUESTIONS, ANSWERS))
    (gradient,) = torch.autograd.grad(loss_B.sum(), [embeds])
    assert (gradient.abs().sum(-1) > 0).all()
    with pytest.raises(ValueError, match="either images or embeds"):
        backbone.answer_loss(images, QUESTIONS, ANSWERS, embeds=embeds)


def test_forward_routes_to_the_losses_by_name(backbone: Backbone) -> None:
    images = images_for(backbone)
    routed = backbone("answer", images=images, questions=QUESTIONS, answers=ANSWERS)
    assert torch.equal(routed, backbone.answer_loss(images, QUESTIONS, ANSWERS))
    routed = backbone("generation", images=images, captions=PROMPTS)
    assert torch.equal(routed, backbone.generation_loss(images, PROMPTS))
    with pytest.raises(ValueError, match="'anwser'"):
        backbone("anwser")


# ---- drawing -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"num_candidates": 3},
        {"sample": True, "anchor": 2.0},
        {"anchor": 9.0, "anchor_width": 1.0},
    ],
)
def test_rendering_the_compact_form_gives_the_drawn_image(
    backbone: Backbone, choice: dict[str, float]
) -> None:
    states = backbone.visual_states(images_for(backbone), PROMPTS)
    generator = torch.Generator().manual_seed(3)
    drawing = backbone.draw(states.states_BNH, states.codes, generator=generator, **choice)
    assert torch.equal(backbone.render(drawing.compact), drawing.images)


def test_rendering_one_of_several_gives_its_picture(backbone: Backbone) -> None:
    states = backbone.visual_states(images_for(backbone), PROMPTS)
    drawing = backbone.draw(states.states_BNH, states.codes)
    one = backbone.render(drawing.compact[1:2])
    # A batch of another size may round otherwise.
    torch.testing.assert_close(one, drawing.images[1:2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one, drawing.images[:1], atol=1e-3)


def test_no_prompt_is_named_as_the_fault(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="prompts=\\[\\]"):
        backbone.generate([])
    with pytest.raises(ValueError, match="prompts=\\[\\]"):
        backbone.generate_compact([], seeds=[])


def test_known_codes_skip_the_tokenizer_and_change_nothing(backbone: Backbone) -> None:
    images = images_for(backbone)
    codes = backbone.encode_images(images)
    assert not torch.equal(codes[0], codes[1])
    states = backbone.visual_states(images, PROMPTS)
    # As the buffer and the cache of codes keep them: small integers; latents as they are.
    kept = codes if codes.is_floating_point() else codes.to(torch.int32)
    known = backbone.visual_states(images, PROMPTS, codes=kept)
    assert torch.equal(known.states_BNH, states.states_BNH)
    assert torch.equal(known.codes, codes)
    expected = backbone.generation_loss(images, PROMPTS)
    torch.testing.assert_close(backbone.generation_loss(images, PROMPTS, codes=codes), expected)


def test_a_strong_anchor_redraws_the_images_own_codes(backbone: Backbone) -> None:
    states = backbone.visual_states(images_for(backbone), PROMPTS)
    free = backbone.draw(states.states_BNH, states.codes)
    bound = backbone.draw(states.states_BNH, states.codes, anchor=1e4)
    assert not torch.equal(free.compact, states.codes)
    if states.codes.is_floating_point():
        free_error, bound_error = (
            (drawn.compact - states.codes).abs().amax(dim=(1, 2, 3)) for drawn in (free, bound)
        )
        assert (bound_error < 1e-3 * free_error).all()
    else:
        assert torch.equal(bound.compact, states.codes)


def test_draws_follow_their_generator_and_leave_the_global_one_alone(backbone: Backbone) -> None:
    states = backbone.visual_states(images_for(backbone), PROMPTS)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return backbone.draw(
            states.states_BNH, states.codes, num_candidates=4, generator=generator
        ).compact

    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0)[0], draw(0)[1])
    first, again, other = (backbone.generate(PROMPTS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


# ---- the model as an object --------------------------------------------------------------------
def test_disabled_lora_is_the_base_model(backbone: Backbone) -> None:
    images = images_for(backbone)
    base_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    with_lora(backbone)
    adapted_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    trainable = len(backbone.trainable_parameters())
    with backbone.lora_disabled():
        torch.testing.assert_close(backbone.answer_loss(images, QUESTIONS, ANSWERS), base_B)
        assert len(backbone.trainable_parameters()) == trainable
    assert (adapted_B - base_B).abs().min() > 1e-4
    torch.testing.assert_close(backbone.answer_loss(images, QUESTIONS, ANSWERS), adapted_B)


def test_new_lora_changes_nothing_yet_and_is_float32(backbone: Backbone) -> None:
    images = images_for(backbone)
    base_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    backbone.add_lora().eval()
    torch.testing.assert_close(backbone.answer_loss(images, QUESTIONS, ANSWERS), base_B)
    assert {p.dtype for p in backbone.trainable_parameters()} == {torch.float32}
    # What is saved are weights; statistics that a checkpoint itself brings along may stay.
    saved, weights = set(backbone.state_dict()), {name for name, _ in backbone.named_parameters()}
    assert weights <= saved
    assert all(name.startswith("model.") for name in saved - weights)


def test_adapter_survives_a_round_trip(
    backbone: Backbone, checkpoint: Path, tmp_path: Path
) -> None:
    images = images_for(backbone)
    with_lora(backbone).save_pretrained(tmp_path)
    saved = {file.name for file in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= saved
    loaded = load_backbone(checkpoint, adapter=tmp_path, device="cpu")
    expected_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    torch.testing.assert_close(loaded.answer_loss(images, QUESTIONS, ANSWERS), expected_B)
    loaded.train()
    assert len(loaded.trainable_parameters()) == len(backbone.trainable_parameters())


def test_the_whole_model_survives_a_round_trip(backbone: Backbone, tmp_path: Path) -> None:
    images = images_for(backbone)
    backbone.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, device="cpu")
    loss_B, loaded_B = (b.answer_loss(images, QUESTIONS, ANSWERS) for b in (backbone, loaded))
    assert torch.equal(loss_B, loaded_B)
    assert torch.equal(backbone.encode_images(images), loaded.encode_images(images))
    assert backbone.answer(images, QUESTIONS) == loaded.answer(images, QUESTIONS)


def test_dropout_is_in_lora_only_and_can_be_switched_off(backbone: Backbone) -> None:
    with_lora(backbone).train()
    images = images_for(backbone)
    noisy = [backbone.answer_loss(images, QUESTIONS, ANSWERS) for _ in range(2)]
    assert not torch.equal(*noisy)
    with backbone.without_dropout():
        calm = [backbone.answer_loss(images, QUESTIONS, ANSWERS) for _ in range(2)]
        assert torch.equal(*calm)
    assert not torch.equal(backbone.answer_loss(images, QUESTIONS, ANSWERS), calm[0])
    features = [backbone.image_features(images) for _ in range(2)]
    assert torch.equal(*features)
    states = [backbone.visual_states(images, PROMPTS).states_BNH for _ in range(2)]
    assert torch.equal(*states)


def test_inference_in_training_mode_leaves_every_mode_as_it_was(backbone: Backbone) -> None:
    with_lora(backbone)
    images = images_for(backbone)
    expected = backbone.answer(images, QUESTIONS), backbone.generate(PROMPTS)
    backbone.train()
    backbone.gradient_checkpointing_enable()
    with backbone.without_dropout():
        modes = [module.training for module in backbone.modules()]
        assert any(modes) and not all(modes)
        assert backbone.answer(images, QUESTIONS) == expected[0]
        assert torch.equal(backbone.generate(PROMPTS), expected[1])
        backbone.visual_states(images, PROMPTS)
        assert modes == [module.training for module in backbone.modules()]


def test_checkpointing_changes_no_gradient(backbone: Backbone) -> None:
    with_lora(backbone).train()
    states = backbone.visual_states(images_for(backbone), PROMPTS)

    def gradients() -> list[torch.Tensor]:
        perturbed = states.states_BNH.clone().requires_grad_()
        drawing = backbone.draw(perturbed, states.codes, temperature=5.0)
        with backbone.without_dropout():
            loss = backbone.answer_loss(drawing.images, QUESTIONS, ANSWERS).sum()
            # Inside as well: the backward pass recomputes the forward one.
            return list(torch.autograd.grad(loss, [perturbed, *backbone.trainable_parameters()]))

    plain = gradients()
    backbone.gradient_checkpointing_enable()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


# ---- what may be computed together ---------------------------------------------------------------
def test_reading_once_is_reading_twice(backbone: Backbone) -> None:
    images = images_for(backbone)
    features, tokens = backbone.read_images(images)
    assert torch.allclose(features, backbone.image_features(images), atol=1e-5)
    assert torch.allclose(tokens, backbone.embed_images(images), atol=1e-5)
    from_tokens = backbone.answer_loss(None, QUESTIONS, ANSWERS, embeds=tokens)
    from_images = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    assert torch.allclose(from_tokens, from_images, atol=1e-5)


def test_candidates_drawn_in_turn_are_those_drawn_at_once(backbone: Backbone) -> None:
    images = images_for(backbone, 2)
    visual = backbone.visual_states(images, PROMPTS[:2])

    def draw(count: int, generator: torch.Generator) -> torch.Tensor:
        drawing = backbone.draw(
            visual.states_BNH,
            visual.codes,
            num_candidates=count,
            sample=True,
            generator=generator,
        )
        return drawing.images.unflatten(0, (2, count))

    together = draw(3, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    in_turn = torch.cat([draw(1, generator), draw(2, generator)], dim=1)
    assert torch.allclose(together, in_turn, atol=1e-5)


def test_what_it_reads_is_frozen_where_no_gradient_comes_from_there(backbone: Backbone) -> None:
    with_lora(backbone)
    assert backbone.reads_frozen == (not backbone.embed_images(images_for(backbone)).requires_grad)


# ---- tokens -----------------------------------------------------------------------------------
def test_tokens_of_texts_give_the_same_losses_and_states(backbone: Backbone) -> None:
    with_lora(backbone)
    images, prepared = images_for(backbone), backbone.preprocessor
    asked = [prepared.answer(q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    prompts = [prepared.prompt(text) for text in PROMPTS]
    losses = backbone.answer_token_losses(images, asked)
    assert torch.equal(
        losses.loss_MA, backbone.answer_token_losses(images, QUESTIONS, ANSWERS).loss_MA
    )
    assert torch.equal(backbone.answer_loss(images, asked), losses.mean())
    assert losses.own()[1].tolist() == [row.own for row in asked]
    assert backbone.answer_lengths(asked).tolist() == [len(row.answer) for row in asked]
    states = backbone.visual_states(images, prompts).states_BNH
    assert torch.equal(states, backbone.visual_states(images, PROMPTS).states_BNH)
    backbone.train()
    torch.manual_seed(3)
    loss_B = backbone.generation_loss(images, prompts)
    torch.manual_seed(3)
    assert torch.equal(loss_B, backbone.generation_loss(images, PROMPTS))


@pytest.fixture(scope="module")
def spawned() -> Iterator[ProcessPoolExecutor]:
    """A process that inherits nothing; one for all families, because it imports everything anew."""
    with ProcessPoolExecutor(1, get_context("spawn")) as worker:
        yield worker


def test_the_preprocessor_works_in_a_spawned_process(
    backbone: Backbone, spawned: ProcessPoolExecutor
) -> None:
    picture = Image.new("RGB", (37, 20), (255, 0, 128))
    kept = pickle.loads(pickle.dumps(backbone.preprocessor))
    assert torch.equal(kept.pictures([picture]), backbone.preprocess([picture]))
    answer = spawned.submit(backbone.preprocessor.answer, QUESTIONS[0], ANSWERS[0])
    prompt = spawned.submit(backbone.preprocessor.prompt, PROMPTS[0])
    assert answer.result() == backbone.preprocessor.answer(QUESTIONS[0], ANSWERS[0])
    assert prompt.result() == backbone.preprocessor.prompt(PROMPTS[0])
