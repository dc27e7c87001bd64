"""An adapter's files: PEFT's own format, and which base model they belong to.

An adapter of another base of equal shapes loads without complaint and answers nonsense. PEFT writes
the base's name only; a digest of its weights goes into the header of ``adapter_model.safetensors``
beside it, where it stays with the weights and PEFT takes no notice of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unigame.backbones.common.lora_settings import check_base_stays
from unigame.backbones.model_files import (
    check_numbers,
    loading_from,
    read_json,
    refuse_not_finite,
)
from unigame.errors import UserError
from unigame.system.say import warn

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME_KEY, DIGEST_KEY = "base_model", "base_model_digest"
REVISION_KEY = "base_model_revision"
QUANTIZATION_KEY = "base_model_quantization"
PLACES = 65_536  # of each tensor count in a digest; smaller tensors count as a whole


# ---- the adapter ---------------------------------------------------------------------------------
def read_adapter(folder: str | Path) -> tuple[peft.LoraConfig, dict[str, Tensor]]:
    """Settings and weights of a saved adapter.

    Raises:
        UserError: the folder or a file is missing, unreadable, empty, or no LoRA adapter; a
            setting or a weight is no finite number; it changes the model beside LoRA.
    """
    folder = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"adapter folder {str(folder)!r} has no {name}; give the folder that "
                "save_pretrained or a training run wrote"
            )
    settings = read_json(folder / ADAPTER_CONFIG, "is no PEFT configuration")
    kind = settings.get("peft_type")
    if kind is None:
        raise UserError(
            f"{str(folder / ADAPTER_CONFIG)!r} is no PEFT configuration (it has no peft_type); "
            "save it again"
        )
    if kind != "LORA":
        raise UserError(
            f"adapter in {str(folder)!r} is of peft_type {kind!r}; only LORA is supported"
        )
    # With such a start PEFT would make W - BA anew, with pissa_niter from other numbers each time.
    # An adapter that PEFT converted for the base itself no longer names its start, and loads.
    check_base_stays(
        settings,
        f"{str(folder / ADAPTER_CONFIG)!r}: ",
        "such an adapter is not loaded: train it without this setting, or merge it with PEFT where "
        "it was trained and give the merged model as the base",
    )
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(folder / ADAPTER_WEIGHTS)!r} is unreadable ({error}); copy or save it again"
        ) from error
    if not weights:
        raise UserError(
            f"{str(folder / ADAPTER_WEIGHTS)!r} holds no weights; the run that wrote it saved an "
            "empty adapter, save it again"
        )
    refuse_not_finite(weights, f"adapter in {str(folder)!r}")
    check_numbers(settings, folder / ADAPTER_CONFIG)
    with loading_from(folder, (ADAPTER_CONFIG,), "adapter"):
        config = peft.LoraConfig.from_pretrained(str(folder))
    _check_settings(config, folder / ADAPTER_CONFIG)
    config.inference_mode = False
    config.base_model_name_or_path = None  # filled in anew by the model that takes it
    return config, weights


def _check_settings(config: peft.LoraConfig, file: Path) -> None:
    """Settings that would make an adapter do nothing, or nonsense, without an error."""
    wanted = {
        "r": isinstance(config.r, int) and config.r > 0,
        "lora_alpha": _is_number(config.lora_alpha) and config.lora_alpha != 0,
        "lora_dropout": _is_number(config.lora_dropout) and 0 <= config.lora_dropout < 1,
        "use_rslora": isinstance(config.use_rslora, bool),
        "rank_pattern": _all(config.rank_pattern, lambda rank: isinstance(rank, int) and rank > 0),
        "alpha_pattern": _all(config.alpha_pattern, _is_number),
    }
    for name, fine in wanted.items():
        if not fine:
            raise UserError(
                f"{str(file)!r}: {name}={getattr(config, name)!r} is no value of a LoRA adapter; "
                "save it again, or correct the file"
            )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _all(table: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(table, dict) and all(fits(value) for value in table.values())


def load_weights(model: peft.PeftModel, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Copy saved adapter weights into ``model``.

    Raises:
        UserError: names or shapes differ from the model's own LoRA weights.
    """
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or foreign:
        example = f"lacks {missing[0]!r}" if missing else f"has the unknown {foreign[0]!r}"
        raise UserError(
            f"adapter in {str(folder)!r} does not belong to this model: it {example} "
            f"({len(missing)} missing, {len(foreign)} unknown); load the base model it was made for"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"adapter in {str(folder)!r} has {name!r} of shape {tuple(tensor.shape)}, the "
                f"model expects {tuple(own[name].shape)}; check the LoRA rank and the base model"
            )
    set_peft_model_state_dict(model, weights)


# ---- its base model ------------------------------------------------------------------------------
class Base(NamedTuple):
    """A base model: Hub id, bundled name or absolute path; ``weights_digest``; the Hub's commit.

    ``quantization`` is how its weights were kept while the adapter learned.
    """

    name: str
    digest: str
    revision: str = ""
    quantization: str = "none"


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Which weights a model has, LoRA's left out: the same on every device and in every precision.

    Values are rounded to bfloat16, so that a checkpoint has one digest in whatever precision it is
    loaded, and of a large tensor evenly spaced values stand for all: fine-tuning moves most of
    them. So it tells models apart that have the same shapes, in a second for 7 B parameters.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // PLACES)][: 2 * PLACES]
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(picked.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_base(folder: str | Path, base: Base) -> None:
    """Add the base to the weights that PEFT has just written.

    safetensors writes the header's texts in a random order; here they are sorted, so that equal
    weights are equal files, and a run that is repeated can be compared byte for byte. The file is 8
    bytes of length, the header in JSON, and the weights.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata() or {}
        weights = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    whole = file.with_name(f"{file.name}.part")
    named = {NAME_KEY: base.name, DIGEST_KEY: base.digest}
    if base.revision:
        named[REVISION_KEY] = base.revision
    if base.quantization != "none":
        named[QUANTIZATION_KEY] = base.quantization
    save_file(weights, whole, {**header, **named})
    content = whole.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    whole.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    os.replace(whole, file)


def read_base(folder: str | Path) -> Base:
    """What an adapter says of its base; texts are empty where it does not."""
    with safe_open(Path(folder) / ADAPTER_WEIGHTS, framework="pt") as opened:
        header = opened.metadata() or {}
    name = header.get(NAME_KEY)
    if not name:  # written by PEFT, or by a version before this
        config = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
    return Base(
        str(name or ""),
        header.get(DIGEST_KEY, ""),
        header.get(REVISION_KEY, ""),
        header.get(QUANTIZATION_KEY, "none"),
    )


@contextmanager
def naming_its_base(folder: str | Path, name: str) -> Iterator[None]:
    """Within: an adapter that does not fit the model ``name`` is said to be another model's.

    Names of layers say little to whoever gave the wrong model.

    Raises:
        UserError: in the place of one from within, if the adapter names another base.
    """
    try:
        yield
    except UserError as error:
        own = read_base(folder).name
        if not own or _same_name(own, name):
            raise
        raise UserError(
            f"adapter {str(folder)!r} was made for the base model {own!r} and does not fit "
            f"{name!r}; load it with its own base: --model {shlex.quote(own)} ({error})"
        ) from error


def warn_if_other(folder: str | Path, base: Base) -> None:
    """Warn if an adapter was made for another base model than ``base``.

    By the digests where it has one: a model may lie in another folder by now. Else by the names.
    The same base, quantised otherwise, gives slightly other answers, which is said too.
    """
    made_for = read_base(folder)
    if made_for.digest and made_for.quantization != base.quantization:
        warn(
            f"adapter {str(folder)!r} learned on a base with quantization="
            f"{made_for.quantization}, and this one has quantization={base.quantization}: "
            "answers differ a little from training's; evaluate the pair that you use"
        )
    if made_for.digest and made_for.digest != base.digest:
        warn(
            f"adapter {str(folder)!r} was made for the base model {made_for.name!r} (weights "
            f"{made_for.digest}), but this is {base.name!r} (weights {base.digest}): its answers "
            "will be wrong; load it with its own base model"
        )
    elif not made_for.digest and not _same_name(made_for.name, base.name):
        warn(
            f"adapter {str(folder)!r} was made for the base model {made_for.name!r}, but this is "
            f"{base.name!r}; it holds no digest of its base, so check that they are the same model"
        )


def _same_name(one: str, other: str) -> bool:
    """Whether two names may mean one model; a name that is not given may mean any."""
    last = [Path(name).name.lower().replace("_", "-") for name in (one, other)]
    return not all(last) or last[0] == last[1]
