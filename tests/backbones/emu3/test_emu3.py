"""Emu3 against transformers' own classes: layout, answers, codes, pixels and files."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from tests.tiny import random_images, stir_lora
from tests.tiny_chameleon import tiny_chameleon
from tests.tiny_emu3 import CHAT_TEMPLATE, shared_tiny_emu3, tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones.common.adapter_files import ADAPTER_CONFIG
from unigame.backbones.common.codes import nearest_codes
from unigame.backbones.emu3.layout import SYSTEM_PROMPT
from unigame.backbones.emu3.model import Emu3Backbone
from unigame.errors import UserError

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture"]
ANSWERS = ["red", "two red squares"]
PROMPTS = ["a red circle", "two small green squares left of a blue cross"]
SIDE, GRID = 24, 3


@pytest.fixture(scope="module")
def shared() -> Emu3Backbone:
    return tiny_emu3()


@pytest.fixture
def backbone(shared: Emu3Backbone) -> Emu3Backbone:
    return copy.deepcopy(shared)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_tiny_emu3(), tmp_path / "emu3"))


def pictures(count: int = 2) -> list[Image.Image]:
    pixels = (random_images(count, SIDE).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(array) for array in pixels]


def processed(backbone: Emu3Backbone, question: str, shown: list[Image.Image]) -> Any:
    """What transformers' documentation has a user do for a question about pictures."""
    chat = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {
            "role": "user",
            "content": [*[{"type": "image"} for _ in shown], {"type": "text", "text": question}],
        },
    ]
    text = backbone.processor.apply_chat_template(chat, add_generation_prompt=True)
    return backbone.processor(text=[text], images=shown, return_tensors="pt")


def drawing_inputs(backbone: Emu3Backbone, prompts: Sequence[str]) -> Any:
    return backbone.processor(
        text=list(prompts),
        padding=True,
        return_tensors="pt",
        return_for_image_generation=True,
        ratio="1:1",
        image_area=SIDE**2,
    )


# ---- layout ------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2])
def test_a_question_is_laid_out_as_the_processor_does(backbone: Emu3Backbone, count: int) -> None:
    layout = backbone.layout
    theirs = processed(backbone, QUESTIONS[0], pictures(count))["input_ids"][0].tolist()
    ours = layout.question_ids(QUESTIONS[0], count)
    # A row end has a placeholder of its own in the processor's rows, and its own id in ours.
    row_ends = [i for i, token in enumerate(ours) if token == layout.row_end_id]
    assert len(row_ends) == GRID * count
    assert {theirs[i] for i in row_ends} == {layout.image_token_id}
    assert [layout.image_token_id if i in row_ends else t for i, t in enumerate(ours)] == theirs
    assert ours.count(layout.image_token_id) == GRID**2 * count


def test_a_drawing_prompt_is_laid_out_as_the_processor_does(backbone: Emu3Backbone) -> None:
    inputs = drawing_inputs(backbone, PROMPTS)
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=False)
    assert torch.equal(tokens.ids_BL, inputs["input_ids"])
    assert torch.equal(tokens.mask_BL, inputs["attention_mask"])
    assert list(inputs["image_sizes"]) == [[GRID, GRID]] * 2


def test_an_answer_ends_without_the_space_of_the_template(backbone: Emu3Backbone) -> None:
    ids = backbone.layout.answer_ids(QUESTIONS[0], "red")
    names = backbone.processor.tokenizer.convert_ids_to_tokens(ids)
    assert names == ["red", "<|extra_204|>"]
    assert not backbone.layout.reply_text(QUESTIONS[0], "red").endswith(" ")
    with pytest.raises(UserError, match="holds the image placeholder '<image>'"):
        backbone.layout.question_ids("what is <image>")


# ---- understanding -----------------------------------------------------------------------------
def test_logits_equal_those_of_transformers_forward(backbone: Emu3Backbone) -> None:
    layout = backbone.layout
    tokens = layout.pad([layout.question_ids(QUESTIONS[0])], "right", backbone.device)
    with torch.no_grad():
        embeds_BNH = backbone.embed_images(backbone.preprocess(pictures(1)))
        states = backbone.language_states(backbone.embed_rows(tokens, embeds_BNH), tokens)
        theirs = backbone.emu3(**processed(backbone, QUESTIONS[0], pictures(1))).logits
        torch.testing.assert_close(backbone.text_logits(states), theirs, rtol=1e-4, atol=1e-4)


def test_the_answer_loss_is_that_of_transformers(backbone: Emu3Backbone) -> None:
    loss_B = backbone.answer_loss(backbone.preprocess(pictures()), QUESTIONS, ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        inputs = processed(backbone, question, [pictures()[row]])
        prompt, target = inputs["input_ids"], backbone.layout.answer_ids(question, answer)
        target_1T = torch.tensor([target])
        loss = backbone.emu3(
            input_ids=torch.cat([prompt, target_1T], -1),
            pixel_values=inputs["pixel_values"],
            image_sizes=inputs["image_sizes"],
            labels=torch.cat([torch.full_like(prompt, -100), target_1T], -1),
        ).loss
        assert loss_B[row].item() == pytest.approx(loss.item(), rel=1e-4)


def test_answers_equal_transformers_generate(backbone: Emu3Backbone) -> None:
    questions = [*QUESTIONS, "is it red", "what shape is this"]
    shown = pictures(4)
    answers = backbone.answer(backbone.preprocess(shown), questions, max_new_tokens=8)
    assert len(set(answers)) > 1
    for question, picture, answer in zip(questions, shown, answers, strict=True):
        inputs = processed(backbone, question, [picture])
        ids = backbone.emu3.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        decode = backbone.processor.tokenizer.decode
        assert answer == decode(new, skip_special_tokens=True).strip()


# ---- image tokenizer ---------------------------------------------------------------------------
def test_codes_are_those_of_transformers(backbone: Emu3Backbone) -> None:
    inputs = processed(backbone, QUESTIONS[0], pictures(3))
    images = backbone.preprocess(pictures(3))
    torch.testing.assert_close(backbone.pixels.normalise(images), inputs["pixel_values"])
    codes_BN = backbone.encode_images(images)
    encoded = backbone.emu3.model.vqmodel.encode(inputs["pixel_values"], inputs["image_sizes"])
    assert torch.equal(codes_BN, torch.stack(encoded.image_tokens).flatten(1))
    theirs = backbone.emu3.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    grid_BT = backbone.layout.grid_ids(backbone.token_V[codes_BN])
    assert torch.equal(grid_BT.flatten(), theirs.long())
    assert codes_BN.unique().numel() > 5


def test_pixels_are_those_of_transformers(backbone: Emu3Backbone) -> None:
    codes_BN = torch.randint(64, (2, GRID**2), generator=torch.Generator().manual_seed(0))
    grid_BT = backbone.layout.grid_ids(backbone.token_V[codes_BN])
    sequence = torch.nn.functional.pad(grid_BT, (0, 3))  # end of picture, of image, of text
    decoded = backbone.emu3.model.decode_image_tokens(sequence, height=GRID, width=GRID)
    expected = backbone.pixels.unnormalise(decoded)
    assert 0 < expected.std() and ((0 < expected) & (expected < 1)).float().mean() > 0.5
    torch.testing.assert_close(backbone.render(codes_BN), expected, rtol=1e-4, atol=1e-5)


# ---- drawing -----------------------------------------------------------------------------------
def transformers_codes(backbone: Emu3Backbone, prompts: Sequence[str], scale: float) -> Tensor:
    """Greedy codes by ``generate`` that may say only what continues a picture."""
    layout, inputs = backbone.layout, drawing_inputs(backbone, prompts)
    first = inputs["input_ids"].shape[1]
    codes = backbone.token_V.tolist()

    def allowed(batch: int, ids: Tensor) -> list[int]:
        return [layout.row_end_id] if (len(ids) - first) % (GRID + 1) == GRID else codes

    sizes = inputs.pop("image_sizes")
    assert list(sizes) == [[GRID, GRID]] * len(prompts)
    extra: dict[str, Any] = {}
    if scale != 1:
        plain = drawing_inputs(backbone, [""] * len(prompts))
        extra = {
            "guidance_scale": scale,
            "negative_prompt_ids": plain["input_ids"],
            "negative_prompt_attention_mask": plain["attention_mask"],
        }
    ids = backbone.emu3.generate(
        **inputs,
        **extra,
        max_new_tokens=layout.image_span,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
    )
    code_of = {token: code for code, token in enumerate(codes)}
    return torch.tensor([[code_of[t] for t in r if t in code_of] for r in ids[:, first:].tolist()])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_codes_equal_transformers_generate(backbone: Emu3Backbone, scale: float) -> None:
    ours = backbone.generate_codes(PROMPTS, guidance_scale=scale, do_sample=False)
    assert torch.equal(ours, transformers_codes(backbone, PROMPTS, scale))
    assert ours.unique().numel() > 3


def test_teacher_forced_states_predict_the_greedy_codes(backbone: Emu3Backbone) -> None:
    greedy_BN = backbone.generate_codes(PROMPTS, guidance_scale=1.0, do_sample=False)
    images = backbone.render(greedy_BN)
    states_BNH = backbone.visual_states(images, PROMPTS, codes=greedy_BN).states_BNH
    assert torch.equal(backbone.image_logits(states_BNH).argmax(-1), greedy_BN)


def test_the_generation_loss_is_that_of_transformers_over_codes(backbone: Emu3Backbone) -> None:
    codes_BN = backbone.encode_images(random_images(2, SIDE))
    loss_B = backbone.generation_loss(random_images(2, SIDE), PROMPTS, codes=codes_BN)
    for row, prompt in enumerate(PROMPTS):
        head = backbone.layout.prompt_ids(prompt)
        grid = backbone.layout.grid_ids(backbone.token_V[codes_BN[row : row + 1]])[0]
        with torch.no_grad():
            logits = backbone.emu3(input_ids=torch.tensor([[*head, *grid.tolist()]])).logits[0]
        predicting = logits[len(head) - 1 : -1][grid != backbone.layout.row_end_id]
        scores = predicting[:, backbone.token_V].log_softmax(-1)
        expected = -scores.gather(1, codes_BN[row, :, None]).mean()
        torch.testing.assert_close(loss_B[row], expected, rtol=1e-4, atol=1e-4)


# ---- LoRA and files ----------------------------------------------------------------------------
def test_lora_sits_in_the_language_model_only(backbone: Emu3Backbone, tmp_path: Path) -> None:
    backbone.add_lora()
    names = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 7 * 2  # layers, linear layers, A and B
    assert all(".text_model.layers." in name for name in names)
    backbone.save_pretrained(tmp_path)
    pattern = json.loads((tmp_path / ADAPTER_CONFIG).read_text())["target_modules"]
    assert "text_model" in pattern
    for layer in backbone.language_model.modules():
        assert getattr(layer, "attention_dropout", 0.0) == 0.0


def published(folder: Path) -> None:
    """Rewrite a checkpoint as the Hub has it: template and pixels in files of their own."""
    weights = load_file(folder / "model.safetensors")
    names = ("text_model.model.norm.weight", "text_model.lm_head.weight")
    assert all(name in weights for name in names)  # the Hub's names, not those of the modules
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()


def test_a_checkpoint_as_published_loads(backbone: Emu3Backbone, checkpoint: Path) -> None:
    published(checkpoint)
    loaded = load_backbone(checkpoint, device="cpu")
    images = random_images(2, SIDE)
    expected = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    assert torch.equal(loaded.answer_loss(images, QUESTIONS, ANSWERS), expected)
    assert torch.equal(loaded.generate(PROMPTS), backbone.generate(PROMPTS))


def test_a_saved_model_opens_in_transformers(backbone: Emu3Backbone, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path)
    model = Emu3ForConditionalGeneration.from_pretrained(tmp_path)
    processor = Emu3Processor.from_pretrained(tmp_path)
    again = Emu3Backbone(model, processor)
    images = random_images(2, SIDE)
    ours, theirs = (b.answer_loss(images, QUESTIONS, ANSWERS) for b in (backbone, again))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("pixels", "side"), [(16 * 16, 16), (30 * 30, 32), (40 * 40, 40)])
def test_min_pixels_sets_the_size_of_pictures(checkpoint: Path, pixels: int, side: int) -> None:
    published(checkpoint)
    file = checkpoint / "preprocessor_config.json"
    settings = {**json.loads(file.read_text()), "min_pixels": pixels, "max_pixels": 4 * pixels}
    file.write_text(json.dumps(settings))
    backbone = load_backbone(checkpoint, device="cpu")
    assert isinstance(backbone, Emu3Backbone)
    assert backbone.facts.image_size == side
    assert backbone.facts.num_image_tokens == (side // 8) ** 2
    small = Image.new("RGB", (8, 8), (200, 30, 60))  # the processor makes it no larger than this
    assert processed(backbone, "is it red", [small])["pixel_values"].shape[-2:] == (side, side)
    assert backbone.generate(["a red circle"]).shape == (1, 3, side, side)
    assert len(backbone.answer(backbone.preprocess([small]), ["is it red"])) == 1


# ---- precision ---------------------------------------------------------------------------------
def test_bfloat16_reads_and_draws_with_a_float32_tokenizer(backbone: Emu3Backbone) -> None:
    half = tiny_emu3("bfloat16")
    assert half.codebook().dtype == torch.float32
    assert half.emu3.lm_head.weight.dtype == torch.bfloat16
    half.add_lora()
    stir_lora(half)
    images = random_images(1, SIDE)
    assert torch.equal(half.encode_images(images), backbone.encode_images(images))
    states = half.visual_states(images, PROMPTS[:1])
    assert states.states_BNH.dtype == torch.float32
    perturbed = states.states_BNH.clone().requires_grad_()
    drawing = half.draw(perturbed, states.codes)
    loss_B = half.answer_loss(drawing.images, QUESTIONS[:1], ANSWERS[:1])
    (gradient,) = torch.autograd.grad(loss_B.sum(), [perturbed])
    assert gradient.abs().sum() > 0 and loss_B.dtype == torch.float32


@pytest.mark.parametrize("family", [tiny_emu3, tiny_chameleon])
def test_autocast_changes_no_code(family: Any) -> None:
    """Latents between two near codes: a bfloat16 product would take the other one."""
    half = family("bfloat16")
    images = random_images(2, half.facts.image_size)
    expected = half.encode_images(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(half.encode_images(images), expected)
    book_VE = torch.tensor([[0.0, 64.0], [0.25, 64.0]])
    latents_1NE = torch.tensor([[[0.05, 64.0], [0.2, 64.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_codes(latents_1NE, book_VE).tolist() == [[0, 1]]


# ---- what cannot be used -----------------------------------------------------------------------
def refused(checkpoint: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(checkpoint, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_processor_of_another_patch_size_is_refused(backbone: Emu3Backbone) -> None:
    backbone.processor.downsample_ratio = 16
    with pytest.raises(UserError, match="one code of 8 px, its processor counts 16 px"):
        Emu3Backbone(backbone.emu3, backbone.processor)


def test_a_vocabulary_map_without_all_codes_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    del config["vocabulary_map"]["<|visual token 000007|>"]
    file.write_text(json.dumps(config))
    assert "names 63 image tokens, the image tokenizer has 64 codes" in refused(checkpoint)


def test_a_tokenizer_without_row_end_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text().replace("<|extra_200|>", "<|extra_299|>"))
    assert "no token '<|extra_200|>'" in refused(checkpoint)


def test_a_processor_without_template_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    assert "no chat template" in refused(checkpoint)


def test_a_resize_without_a_twin_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "processor_config.json"
    file.write_text(file.read_text().replace('"resample": 3', '"resample": 2'))
    assert "resamples with mode 2" in refused(checkpoint)
