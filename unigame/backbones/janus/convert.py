"""From an original Janus folder to the Hub format, value for value.

No model is built: tensors are renamed one by one from mapped files into new ones, and the new
files are then compared with the old ones, bit for bit. transformers can rename while it loads
(``key_mapping``), but it undoes the renaming when it saves.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from huggingface_hub import HfApi, snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration

from unigame.backbones.folder import fetch_config, find_checkpoint
from unigame.backbones.foreign import hub_refusal
from unigame.backbones.janus.original.names import hub_config, hub_names, read_original, why_unused
from unigame.backbones.janus.original.processor import hub_generation_config, hub_processor
from unigame.backbones.janus.original.weights import OriginalTensor, open_weights
from unigame.backbones.model_files import loading_from
from unigame.errors import UserError

Dtype = Literal["keep", "float32", "bfloat16"]

# Also the most memory that a conversion takes: one output file is built at a time.
SHARD_BYTES = 2 * 10**9
_SPARE_BYTES = 50 * 10**6  # tokenizer and configuration files
_POSITIONS = "model.vision_model.embeddings.position_embedding.weight"
_CODEBOOK = "model.vqmodel.quantize.embedding.weight"


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
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

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
        parameters: their elements.
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
    _check_output(output)
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
    _check_space(output, sum(piece.num_bytes for piece in pieces.values()))
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
        parameters=sum(torch.Size(piece.shape).numel() for piece in pieces.values()),
        dtype=str(kept).removeprefix("torch."),
        weight_files=len(files),
        left_out=dict(left_out),
        codebook_norms=norms,
    )


# ---- before anything is written ------------------------------------------------------------------


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output {str(output)!r} is a file; name a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output {str(output)!r} is not empty; name a new folder")


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
        shape = _shape(names, tensor)
        for third, name in enumerate(names):
            if shape != tuple(wanted[name].shape):
                there = f"{tensor.shape} instead of {tuple(wanted[name].shape)}"
                misshapen.append(f"{origin!r} ({there}{' for each third' * (len(names) == 3)})")
                break
            part = third if len(names) == 3 else None
            pieces[name] = Piece(origin, part, tensor, shape, dtype or tensor.dtype)
    found = {name for origin in tensors for name in hub_names(origin)}
    missing = [repr(name) for name in wanted if name not in found]
    faults = [
        ("lack", missing),
        ("hold the unexpected", strange),
        ("give another shape to", misshapen),
    ]
    told = [f"{verb} {_some(names)}" for verb, names in faults if names]
    if told:
        raise UserError(
            f"the weights of {str(folder)!r} {'; they '.join(told)}: they do not belong to "
            "config.json, or the download is incomplete"
        )
    return pieces


def _shape(names: tuple[str, ...], tensor: OriginalTensor) -> tuple[int, ...]:
    """Shape of each tensor that is made of this one."""
    shape = tensor.shape
    if len(names) == 3 and shape and shape[0] % 3 == 0:
        return (shape[0] // 3, *shape[1:])
    if names == (_POSITIONS,) and len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    return shape


def _some(names: list[str]) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


# ---- writing and comparing -----------------------------------------------------------------------


def _write(
    pieces: Mapping[str, Piece], folder: Path, shard_bytes: int, say: Callable[[str], None]
) -> dict[str, list[str]]:
    """Weight files and their index; returns the names of the tensors in each file."""
    split = split_state_dict_into_shards_factory(
        dict(pieces),
        get_storage_size=lambda piece: piece.num_bytes,
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

    Returns:
        The smallest and largest length of the image codes' vectors.

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
        if not _same_bits(again, piece.source.read().to(piece.dtype)):
            raise UserError(
                f"{names[0]!r} is not {piece.origin!r} after it was written; check the disk and "
                "run it again"
            )
    lengths_V = new(_CODEBOOK).float().norm(dim=-1)
    return float(lengths_V.min()), float(lengths_V.max())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit; a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
