"""Janus as its authors publish it: their configuration and tensor names, and what ours are.

``deepseek-ai/Janus-1.3B``, ``Janus-Pro-1B`` and ``Janus-Pro-7B`` have ``model_type:
multi_modality`` and module names of their own; facts here come from the authors' repository
(github.com/deepseek-ai/Janus, ``janus/models``). ``convert.py`` writes the Hub format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from unigame.backbones.foreign import ORIGINAL_JANUS
from unigame.backbones.model_files import MODEL_FAULT, check_numbers, read_json
from unigame.errors import UserError

_HINT = "of deepseek-ai's Janus checkpoints, Janus-1.3B and Janus-Pro-1B and -7B can be converted"

# Shapes that the authors' code holds under a name instead of writing them to config.json.
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4.0,
    }
}
IMAGE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "VQ-16": {
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "latent_channels": 256,
    }
}

_TOWER, _LAYERS = r"vision_model\.vision_tower\.", "model.vision_model.encoder.layers"
_VQ = r"gen_vision_model\."
_RENAMES: tuple[tuple[str, str], ...] = (
    (rf"{_TOWER}patch_embed\.proj\.(\w+)", r"model.vision_model.embeddings.patch_embedding.\1"),
    (rf"{_TOWER}pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    (rf"{_TOWER}blocks\.(\d+)\.norm([12])\.(\w+)", rf"{_LAYERS}.\1.layer_norm\2.\3"),
    (rf"{_TOWER}blocks\.(\d+)\.attn\.qkv\.(\w+)", rf"{_LAYERS}.\1.self_attn.qkv.\2"),
    (rf"{_TOWER}blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{_LAYERS}.\1.self_attn.projection_layer.\2"),
    (rf"{_TOWER}blocks\.(\d+)\.mlp\.(fc[12]\.\w+)", rf"{_LAYERS}.\1.mlp.\2"),
    (rf"{_TOWER}norm\.(\w+)", r"model.vision_model.post_layernorm.\1"),
    # Both list the decoder's levels in the order in which they run, so no index changes.
    (rf"{_VQ}encoder\.conv_blocks\.(\d+)\.res\.(.+)", r"model.vqmodel.encoder.down.\1.block.\2"),
    (rf"{_VQ}encoder\.conv_blocks\.(.+)", r"model.vqmodel.encoder.down.\1"),
    (rf"{_VQ}decoder\.conv_blocks\.(\d+)\.res\.(.+)", r"model.vqmodel.decoder.up.\1.block.\2"),
    (rf"{_VQ}decoder\.conv_blocks\.(.+)", r"model.vqmodel.decoder.up.\1"),
    (rf"{_VQ}(en|de)coder\.mid\.0\.(.+)", r"model.vqmodel.\1coder.mid.block_1.\2"),
    (rf"{_VQ}(en|de)coder\.mid\.1\.(.+)", r"model.vqmodel.\1coder.mid.attn_1.\2"),
    (rf"{_VQ}(en|de)coder\.mid\.2\.(.+)", r"model.vqmodel.\1coder.mid.block_2.\2"),
    (rf"{_VQ}(.+)", r"model.vqmodel.\1"),
    (r"gen_embed\.weight", "model.generation_embeddings.weight"),
    (r"gen_head\.output_mlp_projector\.(\w+)", r"model.generation_head.proj_out.\1"),
    (r"gen_head\.vision_head\.(\w+)", r"model.generation_head.vision_head.\1"),
    (r"language_model\.model\.(.+)", r"model.language_model.\1"),
    (r"language_model\.lm_head\.weight", "lm_head.weight"),
)
# What the checkpoints hold and no forward pass of Janus reads.
_UNUSED: tuple[tuple[str, str], ...] = (
    (rf"{_TOWER}attn_pool\..+", "SigLIP's pooling head, which Janus does not run"),
    (rf"{_VQ}quantize\.codebook_used", "the image tokenizer's usage counter"),
    (r"language_model\.model\.(.+\.)?rotary_emb\.inv_freq", "rotary frequencies, computed anew"),
)


def hub_names(name: str) -> tuple[str, ...]:
    """Names in the Hub format of one of the authors' tensors.

    One name; three, in the order of its rows, for the fused query, key and value of a vision
    layer; none for a name that is not theirs.
    """
    projector = re.fullmatch(r"(gen_)?aligner\.layers\.(\d+)\.(\w+)", name)
    if projector is not None:
        module = "model.generation_aligner" if projector[1] else "model.aligner"
        # Linear layers alternate with activations, which have no weights but count.
        depth, is_activation = divmod(int(projector[2]), 2)
        if is_activation:
            return ()
        layer = "fc1" if depth == 0 else f"hidden_layers.{depth - 1}"
        return (f"{module}.{layer}.{projector[3]}",)
    for pattern, replacement in _RENAMES:
        found = re.fullmatch(pattern, name)
        if found is not None:
            new = found.expand(replacement)
            if ".qkv." in new:
                return tuple(new.replace(".qkv.", f".{which}_proj.") for which in "qkv")
            return (new,)
    return ()


def why_unused(name: str) -> str | None:
    """What a tensor is that Janus does not need, or None for one that it may need."""
    for pattern, reason in _UNUSED:
        if re.fullmatch(pattern, name):
            return reason
    return None


def read_original(config_file: Path, hub_id: str | None = None) -> dict[str, Any]:
    """The authors' config.json, if it is one.

    Args:
        config_file: to read.
        hub_id: where it came from, for the error message; None: from a local folder.

    Raises:
        UserError: missing or broken file, the Hub format already, or another architecture.
    """
    shown = hub_id or str(config_file.parent)
    if not config_file.is_file():
        raise UserError(f"folder {shown!r} has no config.json; {_HINT}")
    config = read_json(config_file, MODEL_FAULT)
    check_numbers(config, config_file)
    model_type = config.get("model_type")
    if model_type == "janus":
        raise UserError(f"{shown!r} is in the Hub format already; load it as it is")
    if model_type != ORIGINAL_JANUS:
        raise UserError(f"{shown!r} is a model of type {model_type!r}; {_HINT}")
    sections = ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head", "language")
    lacking = [
        f"{name}_config" for name in sections if not isinstance(config.get(f"{name}_config"), dict)
    ]
    if lacking:
        raise UserError(
            f"{str(config_file)!r} has no {lacking[0]}, so it is no Janus (DeepSeek-VL and "
            f"JanusFlow share its model_type); {_HINT}"
        )
    return config


def hub_config(original: Mapping[str, Any], tokenizer: Any) -> JanusConfig:
    """The Hub format's configuration of the same model.

    Args:
        original: the authors' config.json (``read_original``).
        tokenizer: the converted tokenizer, which knows the ids of the special tokens.

    Raises:
        UserError: a part of a kind or shape that transformers' Janus does not have.
    """
    projector = _part(original, "aligner", ("MlpProjector",))
    head = _part(original, "gen_head", ("vision_head",))
    vision, vq = _vision(original, projector), _image_tokenizer(original, head)
    halvings = len(vq.channel_multiplier) - 1
    if vision.patch_size != 2**halvings:
        raise UserError(
            f"the vision tower's patches are {vision.patch_size} px wide and the image "
            f"tokenizer's {2**halvings} px; transformers' Janus needs them equal"
        )
    text = _language(original["language_config"], tokenizer)
    if len(tokenizer) > text.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the language model only "
            f"{text.vocab_size}; tokenizer.json and config.json are not of the same checkpoint"
        )
    return JanusConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings=False,
    )


def _vision(original: Mapping[str, Any], projector: Mapping[str, Any]) -> JanusVisionConfig:
    params = _part(original, "vision", ("CLIPVisionTower",))
    name = str(params.get("model_name"))
    if name not in TOWERS:
        _refuse("vision_config.params.model_name", name, TOWERS)
    if params.get("pixel_mean") is not None:
        raise UserError(
            "vision_config.params.pixel_mean normalises pictures inside the model, which "
            f"transformers' Janus cannot; {_HINT}"
        )
    shape = dict(TOWERS[name])
    depth, last = shape["num_hidden_layers"], int(params.get("select_layer", -1))
    shape["num_hidden_layers"] = min(depth, last if last > 0 else depth + last + 1)
    size = int(params.get("image_size", 384))
    return JanusVisionConfig(
        **shape,
        image_size=size,
        num_image_tokens=(size // shape["patch_size"]) ** 2,
        projection_dim=_number(projector, "aligner", "n_embed"),
        depth=_projector_depth(projector, "aligner"),
    )


def _image_tokenizer(original: Mapping[str, Any], head: Mapping[str, Any]) -> JanusVQVAEConfig:
    params = _part(original, "gen_vision", IMAGE_TOKENIZERS)
    shape = IMAGE_TOKENIZERS[original["gen_vision_config"]["cls"]]
    projector = _part(original, "gen_aligner", ("MlpProjector",))
    width = _number(projector, "gen_aligner", "n_embed")
    if width != _number(head, "gen_head", "image_token_embed"):
        raise UserError(
            f"gen_aligner_config is {width} wide and gen_head_config "
            f"{head['image_token_embed']}; transformers' Janus needs them equal"
        )
    return JanusVQVAEConfig(
        **shape,
        embed_dim=_number(params, "gen_vision", "n_embed"),
        num_embeddings=_number(params, "gen_vision", "image_token_size"),
        num_hidden_layers=_projector_depth(projector, "gen_aligner"),
        projection_dim=width,
        image_token_embed_dim=_number(head, "gen_head", "n_embed"),
    )


def _language(section: Mapping[str, Any], tokenizer: Any) -> LlamaConfig:
    if section.get("model_type", "llama") != "llama":
        _refuse("language_config.model_type", section["model_type"], ("llama",))
    # What is left out has the same default in LlamaConfig as when the checkpoints were written.
    ours = {"model_type", "torch_dtype", "dtype", "architectures", "transformers_version"}
    named = {k: v for k, v in section.items() if k not in ours and not k.startswith("_")}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in _MARKS}
    return LlamaConfig(**(named | ids | {"tie_word_embeddings": False}))


_MARKS = ("bos", "eos", "pad")


def _part(original: Mapping[str, Any], name: str, classes: Any) -> Mapping[str, Any]:
    """The ``params`` of one part, if its class is known."""
    section = original[f"{name}_config"]
    if section.get("cls") not in classes:
        _refuse(f"{name}_config.cls", section.get("cls"), classes)
    params: Mapping[str, Any] = section.get("params", {})
    return params


def _projector_depth(params: Mapping[str, Any], name: str) -> int:
    kind = params.get("projector_type")
    if kind != "mlp_gelu":
        _refuse(f"{name}_config.params.projector_type", kind, ("mlp_gelu",))
    return int(params.get("depth", 1))


def _number(params: Mapping[str, Any], name: str, key: str) -> int:
    if not isinstance(params.get(key), int):
        raise UserError(
            f"{name}_config.params.{key}={params.get(key)!r} should be a whole number; download "
            "config.json again"
        )
    return int(params[key])


def _refuse(setting: str, value: Any, known: Any) -> None:
    raise UserError(f"{setting}={value!r} is not supported, only {', '.join(known)}; {_HINT}")
