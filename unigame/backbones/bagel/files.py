"""A BAGEL's folder as it is published: which files, what they must hold, and how they are read.

``ema.safetensors`` (language model, eyes, what joins them), ``ae.safetensors`` (the image
autoencoder), ``llm_config.json``, ``vit_config.json``, the tokenizer's files, and perhaps
``config.json``. Weights are read tensor by tensor, straight to where they shall be: the model is
never in memory twice. Every tensor is accounted for before the first one is read.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from unigame.backbones.bagel.configuration import (
    FLUX_VAE,
    MODEL_TYPE,
    SETTINGS,
    SIZES,
    BagelConfig,
)
from unigame.backbones.bagel.modeling import BagelModel
from unigame.backbones.bagel.vae import file_names, from_file, settings_of, to_file
from unigame.backbones.folder import open_safetensors
from unigame.backbones.model_files import MODEL_FAULT, check_json_files, loading_from, read_json
from unigame.errors import UserError
from unigame.system.say import warn

WEIGHTS, VAE_WEIGHTS = "ema.safetensors", "ae.safetensors"
LLM_CONFIG, VIT_CONFIG, CONFIG = "llm_config.json", "vit_config.json", "config.json"
FILES = (LLM_CONFIG, VIT_CONFIG, WEIGHTS, VAE_WEIGHTS)
HUB_FILES = (*FILES, CONFIG, "tokenizer*.json", "vocab.json", "merges.txt", "*tokens*.json")
"""What is downloaded of a Hub repository."""
# Sines and cosines that follow from their size; copies of a model may leave them out.
COMPUTED = ("vit_pos_embed.pos_embed", "latent_pos_embed.pos_embed")
OF_LATENTS = ("scaling_factor", "shift_factor")
"""What of ``vae_config`` no tensor's shape says."""
# In config.json, but read elsewhere or by others: none of them is a setting misspelt.
OTHERS = ("model_type", "architectures", "llm_config", "vit_config", "interpolate_pos")
Shapes = Mapping[str, Sequence[int]]


# ---- configuration -------------------------------------------------------------------------------
def read_config(
    folder: Path, shapes: Shapes | None = None, vae: Shapes | None = None
) -> BagelConfig:
    """What a folder says of its model, weights unread.

    Args:
        folder: with ``llm_config.json`` and ``vit_config.json``.
        shapes: of the tensors in ``ema.safetensors``, which count more than ``config.json``; None:
            not at hand, so of the published size where ``config.json`` does not say another.
        vae: of those in ``ae.safetensors``; None: the same, and FLUX's.

    Raises:
        UserError: a file is missing or odd, or a setting outside its range or not supported.
    """
    check_json_files(folder)
    for name in (LLM_CONFIG, VIT_CONFIG):
        if not (folder / name).is_file():
            raise UserError(
                f"model folder {str(folder)!r} has no {name}; copy the whole published folder"
            )
    own = read_json(folder / CONFIG, MODEL_FAULT) if (folder / CONFIG).is_file() else {}
    _look_at_others(own, folder / CONFIG)
    settings: dict[str, Any] = {n: own[n] for n in (*SETTINGS, *SIZES) if n in own}
    of_file = settings.get("vae_config") or {}
    scale = {name: of_file[name] for name in OF_LATENTS if name in of_file}
    if "block_out_channels" not in of_file:
        # The authors' words for FLUX's; the shift beside them is what their code begins with.
        theirs = settings.pop("vae_config", None) is not None
        if theirs and settings.get("timestep_shift") == 1.0:
            del settings["timestep_shift"]
        settings["vae_config"] = {**FLUX_VAE, **scale}
    if vae is not None:
        settings["vae_config"] = settings_of(vae, repr(str(folder / VAE_WEIGHTS))) | scale
        if shapes is not None and "vae2llm.weight" in shapes:
            values = shapes["vae2llm.weight"][1] // settings["vae_config"]["latent_channels"]
            settings["latent_patch_size"] = max(1, math.isqrt(values))
    for name, table in zip(
        ("vit_max_num_patch_per_side", "max_latent_size"), COMPUTED, strict=True
    ):
        if shapes is not None and table in shapes:
            settings[name] = math.isqrt(shapes[table][0])
    with loading_from(folder, (CONFIG, LLM_CONFIG, VIT_CONFIG)):
        return BagelConfig(
            llm_config=_part(folder / LLM_CONFIG),
            vit_config=_part(folder / VIT_CONFIG),
            **settings,
        )


def _look_at_others(own: Mapping[str, Any], file: Path) -> None:
    """What ``config.json`` says beside our settings would be passed over in silence.

    Raises:
        UserError: it wants places that are not counted here.
    """
    if own.get("interpolate_pos"):
        raise UserError(
            f"{str(file)!r}: interpolate_pos={own['interpolate_pos']!r} is not supported: places "
            "of a picture are counted from the upper left corner of the largest grid, as with "
            "false, which the published model has; set it to false"
        )
    for name in sorted(own.keys() - {*SETTINGS, *SIZES, *OTHERS}):
        near = difflib.get_close_matches(name, (*SETTINGS, *SIZES), n=1, cutoff=0.8)
        if near:
            warn(f"{str(file)!r}: {name!r} is no setting of BAGEL's; did you mean {near[0]!r}?")


def _part(file: Path) -> dict[str, Any]:
    """A part's configuration without the kernel that the authors' own code attends by."""
    content = read_json(file)
    return {name: value for name, value in content.items() if "attn_implementation" not in name}


def shapes_in(opened: Any) -> dict[str, list[int]]:
    """Shapes of the tensors in an opened weight file."""
    return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118


# ---- reading -------------------------------------------------------------------------------------
def read_model(folder: Path, dtype: str, device: torch.device) -> BagelModel:
    """The model of a folder; its image autoencoder is float32 in any ``dtype``.

    Args:
        folder: see the module docstring.
        dtype: "float32", "bfloat16", or "auto": the file's own (float16 becomes bfloat16).
        device: where to put it.

    Raises:
        UserError: a file is missing or unreadable, tensors are missing, unknown or of another
            shape than the configurations say.
    """
    opened = open_safetensors(folder / WEIGHTS)
    images = open_safetensors(folder / VAE_WEIGHTS)
    shapes, vae_shapes = shapes_in(opened), shapes_in(images)
    config = read_config(folder, shapes, vae_shapes)
    with loading_from(folder, (LLM_CONFIG, VIT_CONFIG, CONFIG)), torch.device("meta"):
        model = BagelModel(config)
    wanted = {name: value for name, value in model.state_dict().items() if name[:4] != "vae."}
    vae_names = file_names(model.vae)
    vae_state = model.vae.state_dict()
    _account(
        {name: list(value.shape) for name, value in wanted.items()},
        shapes,
        folder / WEIGHTS,
        COMPUTED,
    )
    _account(
        {there: list(to_file_shape(vae_state[name])) for there, name in vae_names.items()},
        vae_shapes,
        folder / VAE_WEIGHTS,
    )
    kind = _dtype(dtype, opened)
    for name in wanted:
        if name in shapes:
            put(model, name, opened.get_tensor(name).to(device, kind))
        else:
            table: Any = model.get_submodule(name.rpartition(".")[0])
            put(model, name, table.values().to(device, kind))
    for there, name in vae_names.items():
        value = from_file(images.get_tensor(there), vae_state[name].shape)
        put(model.vae, name, value.to(device, torch.float32))
    # What is computed and not kept in files has no values yet.
    model.decoder.rotary_emb = Qwen2RotaryEmbedding(config=config.llm_config).to(device)
    model.name_or_path = model.config._name_or_path = str(folder)
    return model.eval()


def to_file_shape(value: Tensor) -> Sequence[int]:
    """The shape that a tensor of the image autoencoder has in its file."""
    return [*value.shape, 1, 1] if value.dim() == 2 else value.shape


def put(model: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter its value, in the place of one without."""
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, nn.Parameter(value.contiguous(), requires_grad=False))


def _account(wanted: Shapes, there: Shapes, file: Path, optional: Sequence[str] = ()) -> None:
    missing = sorted(wanted.keys() - there.keys() - set(optional))
    unknown = sorted(there.keys() - wanted.keys())
    for names, fault in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            raise UserError(
                f"weight file {str(file)!r} {fault} {names[0]!r} ({len(names)} such tensors) by "
                f"the configurations beside it; download the checkpoint again"
            )
    for name in sorted(wanted.keys() & there.keys()):
        if list(there[name]) != list(wanted[name]):
            raise UserError(
                f"weight file {str(file)!r} has {name!r} of shape {tuple(there[name])}, the "
                f"configurations beside it say {tuple(wanted[name])}; they do not belong together: "
                "download the checkpoint again"
            )


def _dtype(dtype: str, opened: Any) -> torch.dtype:
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    own = opened.get_tensor("llm2vae.bias").dtype
    return own if own == torch.float32 else torch.bfloat16


# ---- writing -------------------------------------------------------------------------------------
def _authors_words(language: dict[str, Any]) -> dict[str, Any]:
    """A Qwen2 configuration as transformers wrote it before 5, and as the authors' code reads it.

    It knows ``rope_theta`` at the top alone, and without it takes 10,000 in silence.
    """
    rope = dict(language.pop("rope_parameters"))
    theta, kind = rope.pop("rope_theta"), rope.get("rope_type", "default")
    scaling = None if kind == "default" else rope
    more = {"layer_module": "Qwen2MoTDecoderLayer", "qk_norm": True}
    return {**language, "rope_theta": theta, "rope_scaling": scaling, **more}


def write_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, which the authors' slow tokenizer reads.

    transformers 5 writes ``tokenizer.json`` alone. A tokenizer without merges has no such files.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
        return
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def write_model(model: BagelModel, folder: Path) -> None:
    """Write the published layout but the tokenizer, and the settings in ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    language, eyes = _authors_words(config.llm_config.to_dict()), config.vit_config.to_dict()
    own = {"model_type": MODEL_TYPE, "architectures": ["BagelModel"], **config.settings()}
    own |= {"llm_config": language, "vit_config": eyes}  # for ``BagelConfig.from_pretrained``
    for name, content in ((CONFIG, own), (LLM_CONFIG, language), (VIT_CONFIG, eyes)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    keep: Callable[[Tensor], Tensor] = lambda value: value.detach().cpu().contiguous()  # noqa: E731
    weights = {n: keep(v) for n, v in model.state_dict().items() if not n.startswith("vae.")}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    state = model.vae.state_dict()
    images = {there: keep(to_file(state[name])) for there, name in file_names(model.vae).items()}
    save_file(images, folder / VAE_WEIGHTS, metadata={"format": "pt"})
