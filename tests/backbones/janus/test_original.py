"""A converted Janus computes what the original computes; its prompts and settings are theirs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import JanusForConditionalGeneration, JanusProcessor

from tests.tiny import random_images
from tests.tiny_janus_files import (
    BOS,
    EOS,
    byte_level_tokenizer,
    original_config,
    save_original,
    tiny_shapes,
)
from tests.tiny_janus_original import HIDDEN, SIZE, TOKENIZER, OriginalJanus, make_original
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.janus import convert as janus_original
from unigame.backbones.janus.convert import convert, hub_config, hub_names, why_unused
from unigame.backbones.janus.model import JanusBackbone
from unigame.backbones.janus.size import pro_config
from unigame.errors import UserError

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


@pytest.fixture(scope="module", autouse=True)
def small_shapes() -> Any:
    with tiny_shapes():
        yield


@pytest.fixture(scope="module")
def original() -> OriginalJanus:
    return make_original(depth=3)


@pytest.fixture(scope="module")
def folder(original: OriginalJanus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("janus")
    save_original(original, root / "original", layout="sharded", depth=3)
    convert(root / "original", root / "hub", shard_bytes=10**6)
    return root / "hub"


@pytest.fixture(scope="module")
def hub(folder: Path) -> JanusForConditionalGeneration:
    """The result, loaded by plain transformers."""
    model, info = JanusForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> JanusProcessor:
    return JanusProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(folder, device="cpu")


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.05  # not all alike, which any converter would get right


# ---- what it computes ----------------------------------------------------------------------------


@torch.no_grad()
def test_it_reads_pictures_as_the_original(
    original: OriginalJanus, hub: JanusForConditionalGeneration
) -> None:
    pixels = 2 * random_images(2, SIZE) - 1
    features = hub.model.vision_model(pixel_values=pixels).last_hidden_state
    same(features, original.image_features(pixels))
    same(hub.model.aligner(features), original.image_embeds(pixels))


@torch.no_grad()
def test_it_draws_pictures_as_the_original(
    original: OriginalJanus, hub: JanusForConditionalGeneration, processor: JanusProcessor
) -> None:
    original, hub = copy.deepcopy(original), copy.deepcopy(hub)
    tokenizer = original.gen_vision_model
    images = random_images(2, SIZE, seed=1)
    pixels = 2 * images - 1
    # As after a training that did not keep the code vectors at length 1.
    lengths = 0.5 + torch.rand(len(tokenizer.quantize.embedding.weight), 1)
    tokenizer.quantize.embedding.weight.mul_(lengths)
    hub.model.vqmodel.quantize.embedding.weight.mul_(lengths)
    codes = JanusBackbone(hub, processor).encode_images(images)
    assert torch.equal(codes, tokenizer.codes(pixels)) and len(codes.unique()) > 4
    same(hub.model.vqmodel.decode(codes), tokenizer.decode(codes))
    same(hub.prepare_embeddings_for_image_generation(codes), original.code_embeds(codes))
    states = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(0))
    same(hub.model.generation_head(states), original.code_scores(states))


@torch.no_grad()
def test_it_answers_as_the_original(
    original: OriginalJanus, hub: JanusForConditionalGeneration, processor: JanusProcessor
) -> None:
    text = processor.apply_chat_template(asking("how many shapes are there?"))
    pixels = 2 * random_images(1, SIZE, seed=2) - 1
    text = text.replace("<image_placeholder>", "<image_placeholder>" * 16)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    ours = hub(input_ids=ids, pixel_values=pixels).logits
    same(ours, original.text_logits(ids, hub.config.image_token_id, pixels))


def test_the_backbone_answers_trains_and_draws(backbone: Backbone) -> None:
    images = random_images(2, SIZE)
    assert backbone.facts.family == "janus" and backbone.facts.num_image_tokens == 16
    assert len(backbone.answer(images, ["what colour?"] * 2, max_new_tokens=3)) == 2
    loss_B = backbone.answer_loss(images, ["what colour?"] * 2, ["red", "blue"])
    assert loss_B.shape == (2,) and loss_B.isfinite().all()
    drawn = backbone.generate(["a red circle"], seed=0)
    assert drawn.shape == (1, 3, SIZE, SIZE) and drawn.std() > 0


@pytest.mark.xfail(
    Version(transformers.__version__) < Version("5.23"),
    raises=TypeError,
    strict=False,
    reason="Janus's generate of transformers 5.17 misses an argument of its own cache helper",
)
def test_transformers_draws_with_the_saved_settings(
    hub: JanusForConditionalGeneration, processor: JanusProcessor
) -> None:
    inputs = processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
    codes = hub.generate(**inputs, generation_mode="image", do_sample=False)
    assert codes.shape == (1, 16)
    assert hub.generation_config.guidance_scale == 5.0


# ---- what it says --------------------------------------------------------------------------------


def asking(question: str) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": text("")}]


def text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


def their_prompt(turns: list[tuple[str, str]]) -> str:
    """The authors' conversation format: turns with ends that alternate, an open one at last."""
    ends = ("\n\n", EOS)
    return "".join(
        f"{role}: {words.strip()}{ends[i % 2]}" if words else f"{role}:"
        for i, (role, words) in enumerate(turns)
    )


def test_prompts_are_laid_out_as_theirs(processor: JanusProcessor) -> None:
    user, assistant = "<|User|>", "<|Assistant|>"
    one = [(user, "<image_placeholder>\nwhat colour?"), (assistant, "")]
    assert processor.apply_chat_template(asking("what colour? ")) == their_prompt(one)
    messages = [
        *asking("what colour?")[:1],
        {"role": "assistant", "content": text(" red ")},
        {"role": "user", "content": text("how many?")},
    ]
    more = [one[0], (assistant, "red"), (user, "how many?"), (assistant, "")]
    shown = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert shown == their_prompt(more)


def test_text_becomes_the_ids_of_their_tokenizer(processor: JanusProcessor) -> None:
    words = "how many  shapes are there?\n\n"
    theirs = byte_level_tokenizer()
    ids = processor.tokenizer(words)["input_ids"]
    assert ids == [theirs.token_to_id(BOS), *theirs.encode(words).ids]
    assert processor.tokenizer.decode(ids[1:]) == words
    for mark in ("<image_placeholder>", "<begin_of_image>", "<|User|>"):
        assert processor.tokenizer.convert_tokens_to_ids(mark) == theirs.token_to_id(mark)


def test_questions_open_with_their_system_prompt_and_drawings_do_not(backbone: Backbone) -> None:
    layout: Any = backbone.layout  # type: ignore[attr-defined]
    decode = layout.tokenizer.decode
    picture = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    asked = f"{BOS}{SYSTEM}\n\n<|User|>: {picture}\nwhat colour?\n\n<|Assistant|>:"
    assert decode(layout.question_ids("what colour?")) == asked
    drawn = f"{BOS}<|User|>: a circle\n\n<|Assistant|>:<begin_of_image>"
    assert decode(layout.prompt_ids("a circle")) == drawn


# ---- configuration -------------------------------------------------------------------------------


class PublishedIds:
    """Special tokens of the published Janus-Pro tokenizers."""

    image_token = "<image_placeholder>"
    bos_token_id, eos_token_id, pad_token_id = 100000, 100001, 100015

    def convert_tokens_to_ids(self, token: str) -> int:
        return {"<image_placeholder>": 100581}[token]

    def __len__(self) -> int:
        return 100594


def published(hidden: int, language: dict[str, int]) -> dict[str, Any]:
    """config.json of deepseek-ai's Janus-Pro, whose language_config leaves defaults out."""
    config = original_config()
    config["vision_config"]["params"] |= {
        "image_size": 384,
        "model_name": "siglip_large_patch16_384",
        "select_feature": "same",
    }
    config["aligner_config"]["params"] |= {"n_embed": hidden}
    config["gen_aligner_config"]["params"] |= {"n_embed": hidden}
    config["gen_vision_config"] |= {
        "cls": "VQ-16",
        "params": {"image_token_size": 16384, "n_embed": 8},
    }
    config["gen_head_config"]["params"] = {
        "image_token_embed": hidden,
        "image_token_size": 16384,
        "n_embed": hidden,
    }
    config["language_config"] = language | {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    }
    return config


@pytest.mark.parametrize(
    ("size", "hidden", "language"),
    [
        (
            "1B",
            2048,
            {
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "num_key_value_heads": 16,
            },
        ),
        ("7B", 4096, {"num_hidden_layers": 30}),
    ],
)
def test_published_configurations_become_those_of_the_hub_format(
    size: Any, hidden: int, language: dict[str, int]
) -> None:
    ours = hub_config(published(hidden, language), PublishedIds()).to_dict()
    hub = pro_config(size).to_dict()
    expected = {"bos_token_id": 100000, "eos_token_id": 100001, "pad_token_id": 100015}
    hub["text_config"] |= expected | {"max_position_embeddings": 16384}
    for config in (ours, hub):  # a list, or the class's own tuple
        config["vq_config"]["channel_multiplier"] = [*config["vq_config"]["channel_multiplier"]]
    assert ours == hub


def change(part: str, **params: Any) -> Any:
    def edit(config: dict[str, Any]) -> None:
        section = config[f"{part}_config"]
        section.get("params", section).update(params)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("vision", model_name="siglip_so400m"), "model_name='siglip_so400m' is not supp"),
        (change("vision", pixel_mean=[0.5] * 3), "pixel_mean normalises pictures inside"),
        (change("aligner", projector_type="linear"), "aligner_config.*projector_type='linear'"),
        (change("gen_vision", n_embed="8"), "gen_vision_config.params.n_embed='8' should be a"),
        (change("gen_head", image_token_embed=16), "32 wide and gen_head_config 16"),
        (change("language", model_type="qwen2"), "language_config.model_type='qwen2'"),
        (change("language", vocab_size=100), "tokenizer has 308 tokens and the language model .*1"),
        (lambda c: c["gen_vision_config"].update(cls="VQ-8"), "gen_vision_config.cls='VQ-8'"),
    ],
)
def test_parts_that_the_hub_format_lacks_are_named(
    edit: Any, message: str, processor: JanusProcessor
) -> None:
    config = original_config()
    edit(config)
    with pytest.raises(UserError, match=message):
        hub_config(config, processor.tokenizer)


def test_a_tower_that_stops_early_has_fewer_layers(processor: JanusProcessor) -> None:
    config = original_config()
    config["vision_config"]["params"]["select_layer"] = -2
    assert hub_config(config, processor.tokenizer).vision_config.num_hidden_layers == 1


def test_patches_and_codes_must_cover_the_same_pixels(
    processor: JanusProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = TOKENIZER | {"channel_multiplier": [1, 2]}
    monkeypatch.setitem(janus_original.IMAGE_TOKENIZERS, "VQ-tiny", shape)
    with pytest.raises(UserError, match="patches are 4 px wide and the image tokenizer's 2 px"):
        hub_config(original_config(), processor.tokenizer)


# ---- names ---------------------------------------------------------------------------------------


def test_names_that_are_not_theirs_have_no_place() -> None:
    assert hub_names("vision_model.vision_tower.cls_token") == ()
    assert hub_names("aligner.layers.1.weight") == ()
    assert hub_names("aligner.high_up_proj.weight") == ()
    assert hub_names("gen_aligner.layers.4.bias") == (
        "model.generation_aligner.hidden_layers.1.bias",
    )


def test_what_no_forward_pass_reads_is_left_out(original: OriginalJanus) -> None:
    unused = {name for name in original.state_dict() if why_unused(name)}
    assert all(
        name.startswith("vision_model.vision_tower.attn_pool.")
        for name in unused - {"gen_vision_model.quantize.codebook_used"}
    )
    assert len(unused) == 6
