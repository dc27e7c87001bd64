"""``unigame convert``: from an original Janus folder to the Hub format, value for value.

``deepseek-ai/Janus-1.3B``, ``Janus-Pro-1B`` and ``Janus-Pro-7B`` have ``model_type:
multi_modality`` and module names of their own; facts here come from the authors' repository
(github.com/deepseek-ai/Janus, ``janus/models``).

No model is built: tensors are renamed one by one from mapped files into new ones, and the new
files are then compared with the old ones, bit for bit. transformers can rename while it loads
(``key_mapping``), but it undoes the renaming when it saves. Files are mapped into memory, not read,
so a 7B checkpoint of 15 GB is converted with little more memory than one output file takes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import HfApi, snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unigame.backbones.folder import fetch_config, find_checkpoint, open_safetensors
from unigame.backbones.foreign import ORIGINAL_JANUS, hub_refusal
from unigame.backbones.janus.layout import BEGIN_IMAGE, END_IMAGE, IMAGE
from unigame.backbones.model_files import (
    MODEL_FAULT,
    check_numbers,
    loading_from,
    read_json,
    reason_of,
    weight_names,
)
from unigame.errors import UserError

Dtype = Literal["keep", "float32", "bfloat16"]

# Also the most memory that a conversion takes: one output file is built at a time.
SHARD_BYTES = 2 * 10**9
_SPARE_BYTES = 50 * 10**6  # tokenizer and configuration files
_POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
_CODEBOOK = "model.vqmodel.quantize.embedding.weight"
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
PAD = "<｜▁pad▁｜>"
GUIDANCE = 5.0

# The authors' "deepseek" conversation: "<|User|>: ...\n\n<|Assistant|>: ...<end of sentence>".
# Line breaks around a picture are as in the converted checkpoints of deepseek-community.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] | lower -%}
{%- set marks = {'user': '<|User|>', 'assistant': '<|Assistant|>'} -%}
{{- marks.get(role, message['role'] | capitalize) ~ ':' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- (' ' if loop.first else '\\n') ~ 'IMAGE' ~ ('' if loop.last else '\\n') -}}
{%- else -%}
{%- set after_image = not loop.first and loop.previtem['type'] == 'image' -%}
{%- set text = part['text'].lstrip() if loop.first else part['text'] -%}
{%- set text = text.rstrip() if loop.last else text -%}
{{- '' if after_image or text == '' else ' ' -}}
{{- text -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or not loop.last -%}
{{- '\\n\\n' if role == 'user' else 'END' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|>:' -}}{%- endif -%}"""


@dataclass(frozen=True)
class OriginalTensor:
    """One tensor on disk; ``read`` gives its values, a view of the mapped file where it can."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Piece:
    """One tensor of the result, and where it comes from.

    Attributes:
        origin: the authors' name.
        third: which third of its rows, for query, key and value; None for all of it.
        source: the tensor on disk.
        shape: in the result.
        dtype: in the result.
    """

    origin: str
    third: int | None
    source: OriginalTensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    def read(self) -> Tensor:
        """The values, in memory of their own."""
        values = self.source.read()
        if self.third is not None:
            values = values.chunk(3)[self.third]
        # Position embeddings carry a batch axis that an embedding table has not.
        return values.reshape(self.shape).to(self.dtype, copy=True).contiguous()


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        output: the new folder.
        tensors: how many it holds.
        parameters: their values.
        dtype: type of the language model's weights.
        weight_files: how many files the weights are in.
        left_out: what the original holds and no forward pass reads, with the number of tensors.
        codebook_norms: smallest and largest length of the image codes' vectors.
    """

    output: Path
    tensors: int
    parameters: int
    dtype: str
    weight_files: int
    left_out: Mapping[str, int]
    codebook_norms: tuple[float, float]


def convert(
    source: str | Path,
    output: Path,
    *,
    dtype: Dtype = "keep",
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Write the original Janus of ``source`` into ``output`` in the Hub format.

    Configuration, tokenizer and the names and shapes of all tensors are checked first. Files go to
    a hidden folder beside ``output``, are compared with the original, and are renamed at the end.

    Args:
        source: folder, or Hub id (downloaded to the Hub's cache).
        output: folder to write; must not exist, or be empty.
        dtype: type of the new weights; "keep" changes no bit.
        shard_bytes: largest weight file, and about the memory that is needed.
        say: is told what goes on.

    Raises:
        UserError: what came in is no original Janus, is incomplete or does not fit together, or
            the output cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output {str(output)!r} is a file; name a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output {str(output)!r} is not empty; name a new folder")
    folder = _local_folder(source)
    original = read_original(folder / "config.json")
    settings = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
    with loading_from(folder, settings, "processor"):
        processor = hub_processor(folder)
    with loading_from(folder, ("config.json",)):
        config = hub_config(original, processor.tokenizer)
        tensors = open_weights(folder)
        left_out = Counter(reason for reason in map(why_unused, tensors) if reason is not None)
        kind = None if dtype == "keep" else getattr(torch, dtype)
        pieces = _plan(tensors, config, kind, folder)
    _check_space(output, sum(_bytes(piece) for piece in pieces.values()))
    kept = pieces["lm_head.weight"].dtype
    for part in (config, config.text_config, config.vision_config, config.vq_config):
        part.dtype = kept
    config.architectures = [JanusForConditionalGeneration.__name__]

    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        config.save_pretrained(partial)
        processor.save_pretrained(partial)
        hub_generation_config(processor.tokenizer).save_pretrained(partial)
        files = _write(pieces, partial, shard_bytes, say)
        say("comparing them with the original")
        norms = _compare(pieces, partial, files)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Conversion(
        output=output,
        tensors=len(pieces),
        parameters=sum(piece.size for piece in pieces.values()),
        dtype=str(kept).removeprefix("torch."),
        weight_files=len(files),
        left_out=dict(left_out),
        codebook_norms=norms,
    )


# ---- before anything is written ------------------------------------------------------------------


def _bytes(piece: Piece) -> int:
    return piece.size * piece.dtype.itemsize


def _check_space(output: Path, num_bytes: int) -> None:
    there = next(place for place in (output, *output.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes + _SPARE_BYTES:
        raise UserError(
            f"{str(output)!r} needs {(num_bytes + _SPARE_BYTES) / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB left; name a folder on another disk"
        )


def _local_folder(source: str | Path) -> Path:
    """The folder, or a Hub checkpoint's folder in the cache after its files were downloaded."""
    found = find_checkpoint(source)
    if isinstance(found, Path):
        return found
    read_original(fetch_config(found), found)
    try:
        safe = any(name.endswith(".safetensors") for name in HfApi().list_repo_files(found))
        weights = "*.safetensors*" if safe else "*.bin*"
        return Path(snapshot_download(found, allow_patterns=["*.json", weights]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise hub_refusal("model", found, "weights", error) from error


def _plan(
    tensors: Mapping[str, OriginalTensor],
    config: JanusConfig,
    dtype: torch.dtype | None,
    folder: Path,
) -> dict[str, Piece]:
    """Every tensor of the result and its origin, in the order of the original files.

    Raises:
        UserError: names the tensors that are missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        wanted = JanusForConditionalGeneration(config).state_dict()
    pieces: dict[str, Piece] = {}
    strange, misshapen = [], []
    for origin, tensor in tensors.items():
        if why_unused(origin):
            continue
        names = hub_names(origin)
        if not names or not wanted.keys() >= set(names):
            strange.append(repr(origin))
            continue
        thirds = len(names) == 3
        shape = tensor.shape  # of each tensor that is made of this one
        if thirds and shape and shape[0] % 3 == 0:
            shape = (shape[0] // 3, *shape[1:])
        elif names == (_POSITIONS,) and len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        for third, name in enumerate(names):
            if shape != tuple(wanted[name].shape):
                there = f"{tensor.shape} instead of {tuple(wanted[name].shape)}"
                misshapen.append(f"{origin!r} ({there}{' for each third' * thirds})")
                break
            part = third if thirds else None
            pieces[name] = Piece(origin, part, tensor, shape, dtype or tensor.dtype)
    found = {name for origin in tensors for name in hub_names(origin)}
    faults = {
        "lack": [repr(name) for name in wanted if name not in found],
        "hold the unexpected": strange,
        "give another shape to": misshapen,
    }
    told = [
        f"{verb} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
        for verb, names in faults.items()
        if names
    ]
    if told:
        raise UserError(
            f"the weights of {str(folder)!r} {'; they '.join(told)}: they do not belong to "
            "config.json, or the download is incomplete"
        )
    return pieces


# ---- writing and comparing -----------------------------------------------------------------------


def _write(
    pieces: Mapping[str, Piece], folder: Path, shard_bytes: int, say: Callable[[str], None]
) -> dict[str, list[str]]:
    """Weight files and their index; returns the names of the tensors in each file."""
    split = split_state_dict_into_shards_factory(
        dict(pieces),
        get_storage_size=_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    files: dict[str, list[str]] = split.filename_to_tensors
    for number, (file, names) in enumerate(files.items(), start=1):
        say(f"writing weight file {number} of {len(files)}")
        values = {name: pieces[name].read() for name in names}
        save_file(values, folder / file, metadata={"format": "pt"})
        del values  # before the next file's are read
        shutil.copymode(folder / "config.json", folder / file)  # safetensors leaves it private
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return files


def _compare(
    pieces: Mapping[str, Piece], folder: Path, files: Mapping[str, list[str]]
) -> tuple[float, float]:
    """Read the new files back and put each original tensor together again: the same bits?

    Returns the smallest and largest length of the image codes' vectors.

    Raises:
        UserError: the disk gave back something else.
    """
    opened = {file: safe_open(folder / file, framework="pt") for file in files}
    place = {name: file for file, written in opened.items() for name in written.keys()}  # noqa: SIM118
    if place.keys() != pieces.keys():
        raise UserError("the weights were not written in full; check the disk and run it again")

    def new(name: str) -> Tensor:
        return cast(Tensor, opened[place[name]].get_tensor(name))

    for piece in pieces.values():
        names = hub_names(piece.origin)
        if piece.third:
            continue  # compared with its first third
        again = torch.cat([new(name) for name in names]).reshape(piece.source.shape)
        bits, own = (
            value.contiguous().view(torch.uint8)  # a NaN equals itself
            for value in (again, piece.source.read().to(piece.dtype))
        )
        if again.dtype != piece.dtype or not torch.equal(bits, own):
            raise UserError(
                f"{names[0]!r} is not {piece.origin!r} after it was written; check the disk and "
                "run it again"
            )
    lengths_V = new(_CODEBOOK).float().norm(dim=-1)
    return float(lengths_V.min()), float(lengths_V.max())


# ---- names and configuration ---------------------------------------------------------------------
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
    return next((reason for pattern, reason in _UNUSED if re.fullmatch(pattern, name)), None)


def read_original(config_file: Path, hub_id: str | None = None) -> dict[str, Any]:
    """The authors' config.json, if it is one; ``hub_id`` is where it came from, for the message.

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
    """The Hub format's configuration of the same model, with the converted tokenizer's ids.

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
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")
    }
    return LlamaConfig(**(named | ids | {"tie_word_embeddings": False}))


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


# ---- the processor -------------------------------------------------------------------------------
def hub_processor(folder: Path) -> JanusProcessor:
    """Tokenizer, image processor and chat template of an original folder.

    Raises:
        UserError: a file is missing or broken, a special token is not in the vocabulary, or the
            conversation format is another one.
    """
    settings = _read(folder, "processor_config.json", required=False)
    if settings.get("sft_format", "deepseek") != "deepseek":
        raise UserError(
            f"{str(folder / 'processor_config.json')!r} has sft_format="
            f"{settings['sft_format']!r}; only the 'deepseek' conversations of Janus are supported"
        )
    tokenizer = _original_tokenizer(folder, settings)
    pictures = _read(folder, "preprocessor_config.json")
    side = int(pictures.get("image_size", 384))
    kept = ("min_size", "image_mean", "image_std", "rescale_factor", "do_normalize")
    template = _CHAT_TEMPLATE.replace("IMAGE", str(tokenizer.image_token))
    template = template.replace("END", str(tokenizer.eos_token))
    return JanusProcessor(
        image_processor=JanusImageProcessorPil(
            size={"height": side, "width": side}, **{k: pictures[k] for k in kept if k in pictures}
        ),
        tokenizer=tokenizer,
        chat_template=template,
        # The authors open every question with their system prompt, and no drawing.
        use_default_system_prompt=True,
        num_image_tokens=int(settings.get("num_image_tokens", 576)),
    )


def hub_generation_config(tokenizer: Any) -> GenerationConfig:
    """What transformers' ``generate`` needs, for text and for ``generation_mode="image"``."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=GUIDANCE,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_IMAGE)},
    )


def _original_tokenizer(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"folder {str(folder)!r} has no tokenizer.json; copy it there")
    config = _read(folder, "tokenizer_config.json")
    marks = _read(folder, "special_tokens_map.json", required=False) | config
    try:
        rules = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exceptions
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{str(file)!r} does not load ({reason}); download it again") from error
    named = {
        "bos_token": _text(marks.get("bos_token")),
        "eos_token": _text(marks.get("eos_token")),
        "pad_token": settings.get("pad_tag", PAD),
        "boi_token": settings.get("image_start_tag", BEGIN_IMAGE),
        "eoi_token": settings.get("image_end_tag", END_IMAGE),
    }
    for name, mark in named.items():
        if mark is None or rules.token_to_id(mark) is None:
            raise UserError(
                f"{str(file)!r} has no token for {name}={mark!r}; tokenizer.json and the other "
                "files are not of the same checkpoint: download them again"
            )
    # The placeholder alone may be new: the authors' code adds it where it is not there.
    placeholder = {"image_token": settings.get("image_tag", IMAGE)}
    text_marks = {name: named.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        **text_marks,
        # LlamaTokenizerFast, by whose name the folders go, adds it unless told otherwise.
        add_bos_token=config.get("add_bos_token") is not False,
        model_max_length=config.get("model_max_length"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=placeholder | named,
    )


def _read(folder: Path, name: str, required: bool = True) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        if required:
            raise UserError(f"folder {str(folder)!r} has no {name}; copy it there")
        return {}
    settings = read_json(file, "is broken")
    check_numbers(settings, file)
    return settings


def _text(mark: Any) -> str | None:
    """A special token, which may be written with its settings."""
    return mark["content"] if isinstance(mark, dict) else mark


# ---- the weights, one at a time ------------------------------------------------------------------
def open_weights(folder: Path) -> dict[str, OriginalTensor]:
    """Every tensor of a folder, by the authors' name, in the order of the files.

    Raises:
        UserError: files are missing, cut off, or pickles that hold anything but plain tensors.
    """
    found: dict[str, OriginalTensor] = {}
    for file in _weight_files(folder):
        opened = _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
        if not opened:
            raise UserError(f"weight file {str(file)!r} holds no tensors; download it again")
        if twice := opened.keys() & found.keys():
            raise UserError(
                f"tensor {min(twice)!r} is in two weight files of {str(folder)!r}; the folder "
                "mixes checkpoints: download it again into an empty one"
            )
        found |= opened
    return found


def _weight_files(folder: Path) -> list[Path]:
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(
            f"folder {str(folder)!r} has no weights ({', '.join(WEIGHT_FILES)}); check that the "
            "download was complete"
        )
    names = weight_names(folder / name) if name.endswith(".index.json") else [name]
    return [folder / name for name in names]


def _safetensors(file: Path) -> dict[str, OriginalTensor]:
    opened, found = open_safetensors(file), {}
    for name in opened.keys():  # noqa: SIM118
        piece = opened.get_slice(name)
        shape, kind = tuple(piece.get_shape()), piece.get_dtype()
        if kind not in _DTYPES:
            raise UserError(f"tensor {name!r} of {str(file)!r} has type {kind}, which no Janus has")
        found[name] = OriginalTensor(shape, _DTYPES[kind], partial(opened.get_tensor, name))
    return found


def _pickle(file: Path) -> dict[str, OriginalTensor]:
    """A PyTorch file. ``weights_only`` refuses everything that could run code."""
    if not file.is_file():
        raise UserError(f"weight file {str(file)!r} is missing; download the checkpoint again")
    try:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format before PyTorch 1.6 cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weight file {str(file)!r} is no file of plain tensors, and loading anything else "
            "could run code; it may also be a Git LFS pointer: download it again from its authors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"weight file {str(file)!r} is unreadable ({reason_of(error)}); it may be cut off: "
            "download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"weight file {str(file)!r} holds no table of tensors; download it again")
    found = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"weight file {str(file)!r} holds {name!r}, a {type(value).__name__} and no "
                "tensor; it is no Janus checkpoint"
            )
        if not value.is_floating_point():
            raise UserError(
                f"tensor {name!r} of {str(file)!r} has type {value.dtype}, which no Janus has"
            )
        found[name] = OriginalTensor(tuple(value.shape), value.dtype, value.detach)
    return found
