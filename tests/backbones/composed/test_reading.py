"""Composed models read as transformers' own forward pass does: places, positions, features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.tiny import VOCAB_WORDS, random_images
from tests.tiny_composed import (
    Size,
    build_tokenizer,
    save_llava,
    save_sd,
    save_smolvlm,
    save_vlm,
    shared_llm_dit,
    shared_vlm_unet,
)
from unigame.backbones import load_backbone
from unigame.backbones.composed.config import ComposedConfig, ConnectorConfig
from unigame.backbones.composed.layout import IMAGE, QUERY, ComposedLayout
from unigame.backbones.composed.load import compose
from unigame.backbones.composed.model import ComposedBackbone
from unigame.errors import UserError

QUESTIONS = ["what colour is the circle", "how many objects are there in this picture"]
ANSWERS = ["red", "two red squares"]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ComposedBackbone]:
    """A backbone on each VLM family, all with the same image branch."""
    folder = tmp_path_factory.mktemp("families")
    savers = {"llava": save_llava, "smolvlm": save_smolvlm, "qwen2_5_vl": save_vlm}
    save_sd(folder / "pipeline", Size())
    made: dict[str, ComposedBackbone] = {}

    def get(family: str) -> ComposedBackbone:
        if family not in made:
            torch.manual_seed(0)
            savers[family](folder / family, Size(), VOCAB_WORDS)
            config = ComposedConfig(
                language=str(folder / family),
                denoiser=str(folder / "pipeline"),
                image_size=16,
                connector=ConnectorConfig(num_queries=3, hidden=32),
            )
            made[family] = load_backbone(compose(folder / f"{family}-model", config), device="cpu")
        return made[family]

    return get


def pixel_inputs(backbone: ComposedBackbone, image: torch.Tensor) -> dict[str, Any]:
    """One image as each family's own processing hands it to the model."""
    kind = backbone.language.config.model_type
    pixels = backbone.vision_pixels.normalise(image[None])
    if kind == "smolvlm":
        return {"pixel_values": pixels[:, None]}
    if kind == "llava":
        return {"pixel_values": pixels}
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    processor = Qwen2VLImageProcessorPil.from_pretrained(backbone.settings.language)
    return dict(processor(images=[picture], return_tensors="pt"))


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_answer_loss_is_that_of_the_models_own_forward(
    composed: Callable[[str], ComposedBackbone], family: str
) -> None:
    backbone = composed(family)
    images = (random_images(2) * 255).round() / 255
    model = AutoModelForImageTextToText.from_pretrained(backbone.settings.language).eval()
    expected = []
    for image, question, answer in zip(images, QUESTIONS, ANSWERS, strict=True):
        prompt = backbone.layout.question_ids(question)
        target = backbone.layout.answer_ids(question, answer)
        row = torch.tensor([prompt + target])
        is_image = row == IMAGE
        ids = row.masked_fill(is_image, model.config.image_token_id)
        extra = {"mm_token_type_ids": is_image.int()} if family == "qwen2_5_vl" else {}
        with torch.no_grad():
            logits = model(input_ids=ids, **pixel_inputs(backbone, image), **extra).logits[0]
        expected.append(F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target)).item())
    loss_B = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    torch.testing.assert_close(loss_B, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_answers_are_those_of_the_models_own_generate(
    composed: Callable[[str], ComposedBackbone], family: str
) -> None:
    backbone = composed(family)
    images = (random_images(2, seed=3) * 255).round() / 255
    answers = backbone.answer(images, QUESTIONS, max_new_tokens=5)
    model = AutoModelForImageTextToText.from_pretrained(backbone.settings.language).eval()
    for image, question, answer in zip(images, QUESTIONS, answers, strict=True):
        row = torch.tensor([backbone.layout.question_ids(question)])
        ids = row.masked_fill(row == IMAGE, model.config.image_token_id)
        extra = {"mm_token_type_ids": (row == IMAGE).int()} if family == "qwen2_5_vl" else {}
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pixel_inputs(backbone, image),
            **extra,
            max_new_tokens=5,
            do_sample=False,
        )
        text = backbone.processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()


@pytest.mark.parametrize("pictures", [1, 2])
def test_positions_of_an_image_are_rows_and_columns(pictures: int) -> None:
    backbone = load_backbone(shared_vlm_unet(), device="cpu")
    assert isinstance(backbone, ComposedBackbone)
    rows = [backbone.layout.question_ids(question, pictures) for question in QUESTIONS]
    padded = backbone.layout.pad(rows, "left", backbone.device)
    is_image = padded.ids_BL == IMAGE
    ids = padded.ids_BL.masked_fill(is_image, backbone.reader.image_token_id)
    grid = torch.tensor([[1, backbone.reader.grid, backbone.reader.grid]] * 2 * pictures)
    expected, delta = backbone.language.model.get_rope_index(
        ids, is_image.int(), image_grid_thw=grid, attention_mask=padded.mask_BL
    )
    kept = padded.mask_BL.bool()
    assert torch.equal(padded.positions[:, kept], expected[:, kept])
    assert torch.equal(padded.next_position_B1, expected.amax(0).amax(-1, keepdim=True) + 1)


def test_image_places_are_written_as_the_processor_writes_them(
    composed: Callable[[str], ComposedBackbone],
) -> None:
    backbone = composed("smolvlm")
    tokens = backbone.reader.num_tokens
    expected = get_image_prompt_string(
        0,
        0,
        tokens,
        fake_token_around_image="<fake_token_around_image>",
        image_token="<|image_pad|>",
        global_image_token="<global-img>",
    )
    assert backbone.reader.expand("<|image_pad|>", backbone.processor) == expected
    ids = backbone.layout.question_ids(QUESTIONS[0])
    first, last = ids.index(IMAGE), len(ids) - ids[::-1].index(IMAGE)
    around = backbone.processor.convert_ids_to_tokens([*ids[first - 2 : first], ids[last]])
    assert around == ["<fake_token_around_image>", "<global-img>", "<fake_token_around_image>"]


def test_a_grey_picture_is_a_picture(composed: Callable[[str], ComposedBackbone]) -> None:
    backbone = composed("smolvlm")
    grey = torch.full((2, 3, 16, 16), 0.5)
    assert backbone.embed_images(grey).shape[:2] == (2, backbone.reader.num_tokens)


def test_a_drawing_prompt_is_the_same_row_in_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(shared_llm_dit(), device="cpu")
    assert isinstance(backbone, ComposedBackbone)
    seen: list[list[int]] = []
    pad = backbone.layout.pad

    def watch(rows: Any, side: str, device: torch.device) -> Any:
        seen.extend(list(row) for row in rows)
        return pad(rows, side, device)

    monkeypatch.setattr(backbone.layout, "pad", watch)
    images = random_images(1)
    backbone.visual_states(images, ["a red circle"])
    backbone.generation_loss(images, ["a red circle"])
    backbone.generate(["a red circle"], guidance_scale=1.0)
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2]
    assert seen[0][-6:] == [QUERY] * 6 and QUERY not in seen[0][:-6]


THINKING = """\
{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + ' ' -}}
{%- if m['role'] == 'assistant' -%}{{- 'no thought ' -}}{%- endif -%}
{{- m['content'] + '<|im_end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant ' -}}{%- endif -%}"""


def test_what_a_template_writes_before_an_answer_belongs_to_the_prompt() -> None:
    backbone = load_backbone(shared_llm_dit(), device="cpu")
    tokenizer = build_tokenizer([*VOCAB_WORDS, "thought"])
    tokenizer.chat_template = THINKING
    layout = ComposedLayout(tokenizer, backbone.reader, 2)
    prompt = layout.question_ids("what colour is it")
    words = tokenizer.convert_ids_to_tokens([token for token in prompt if token != IMAGE])
    assert words[-4:] == ["<|im_start|>", "assistant", "no", "thought"]
    answer = layout.answer_ids("what colour is it", "red")
    assert tokenizer.convert_ids_to_tokens(answer) == ["red", "<|im_end|>"]


def test_a_placeholder_in_the_question_is_refused() -> None:
    backbone = load_backbone(shared_vlm_unet(), device="cpu")
    with pytest.raises(UserError, match="holds the image placeholder"):
        backbone.layout.question_ids("what is <|image_pad|> here")


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone(shared_vlm_unet(), device="cpu")
    tokenizer = build_tokenizer(VOCAB_WORDS)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ComposedLayout(tokenizer, backbone.reader, 2)
