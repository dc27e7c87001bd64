"""Look at a checkpoint folder before any weight is read: what is it, and is it complete?"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from unigame.errors import UserError

BUNDLED = "janus-nano"
DTYPES = ("float32", "bfloat16", "auto")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def find_checkpoint(name_or_path: str | Path) -> Path | str:
    """A local folder, the bundled model's folder, or a Hub id of the form ``owner/name``.

    Raises:
        UserError: neither a folder nor something that could be a Hub id.
    """
    if str(name_or_path) == BUNDLED:
        bundled = Path(str(resources.files("unigame"))) / "synthetic" / "janus_nano"
        if not bundled.is_dir():
            raise UserError(
                f"the bundled model {BUNDLED!r} is not part of this installation; reinstall "
                "unigame from its wheel or a full clone"
            )
        return bundled
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"model {str(name_or_path)!r} is a file; give the folder that holds it")
    text = str(name_or_path)
    parts = text.split("/")
    if len(parts) == 2 and all(parts) and not text.startswith((".", "~")):
        return text
    raise UserError(
        f"model {text!r}: no such folder; give a checkpoint folder, {BUNDLED!r}, or a Hub id "
        "such as deepseek-community/Janus-Pro-1B"
    )


def fetch_config(hub_id: str) -> Path:
    """``config.json`` of a Hub checkpoint, so that its kind is known before its weights are sent.

    Raises:
        UserError: the Hub does not have it, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {hub_id!r}: no such folder here, and the Hub did not give its config.json "
            f"({reason}); check the spelling and the network, or download it and give the folder"
        ) from error


def read_model_type(config_file: Path, supported: Collection[str]) -> str:
    """The ``model_type`` of a config.json, if it is one that we support.

    Raises:
        UserError: missing or broken file, or another architecture.
    """
    families = ", ".join(sorted(supported))
    if not config_file.is_file():
        raise UserError(
            f"model folder {str(config_file.parent)!r} has no config.json; give a checkpoint in "
            "the Hub format (config.json, model.safetensors, tokenizer and processor files)"
        )
    try:
        model_type = json.loads(config_file.read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(config_file)!r} is no model configuration ({type(error).__name__}: {error}); "
            "download or save the checkpoint again"
        ) from error
    if model_type in supported:
        return str(model_type)
    hint = (
        "; this is the original DeepSeek layout, use the converted deepseek-community checkpoint"
        if model_type == "multi_modality"
        else "; a VLM or LLM alone draws nothing, give it an image branch with 'unigame compose'; "
        "for another architecture see docs/add-a-backbone.md"
    )
    raise UserError(
        f"{str(config_file.parent)!r} is a model of type {model_type!r}; "
        f"supported families: {families}{hint}"
    )


def check_files(folder: Path) -> None:
    """Weights (safetensors, all shards readable), tokenizer and processor files are there.

    Raises:
        UserError: names the first file that is missing or unreadable.
    """
    for name in _weight_files(folder):
        file = folder / name
        if not file.is_file():
            raise UserError(
                f"weight file {str(file)!r} is missing; download the checkpoint again, or check "
                "that the copy was complete"
            )
        try:
            with safe_open(file, framework="pt") as opened:
                empty = not list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"weight file {str(file)!r} is unreadable ({error}); it may be cut off or a Git "
                "LFS pointer: download it again"
            ) from error
        if empty:
            raise UserError(f"weight file {str(file)!r} holds no tensors; download it again")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"model folder {str(folder)!r} has no tokenizer.json; copy it there")
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise UserError(
            f"model folder {str(folder)!r} has neither {' nor '.join(_PROCESSOR_FILES)}; save the "
            "processor beside the model with processor.save_pretrained"
        )


def _weight_files(folder: Path) -> list[str]:
    index = folder / _INDEX
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{str(index)!r} is no weight index ({error}); download it again"
            ) from error
    if not (folder / _WEIGHTS).is_file() and (folder / "pytorch_model.bin").is_file():
        raise UserError(
            f"model folder {str(folder)!r} holds only pytorch_model.bin, a pickle that can run "
            "code when it is loaded; save the checkpoint as safetensors"
        )
    return [_WEIGHTS]


def check_dtype(dtype: str) -> str:
    """One of "float32", "bfloat16" and "auto".

    Raises:
        UserError: any other name.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}")
    return dtype


def check_device(device: str | torch.device | None) -> torch.device:
    """The device to load onto; None is the accelerator if there is one, else the CPU.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}); "
            "try 'cpu', or leave it out"
        ) from error
    return chosen
