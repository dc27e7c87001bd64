"""Look at a checkpoint folder before any weight is read: what is it, and is it complete?"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from unigame.backbones.foreign import (
    ADAPTER_FILE,
    PIPELINE_FILE,
    foreign_model,
    hub_refusal,
    no_config,
)
from unigame.backbones.model_files import MODEL_FAULT, check_json_files, read_json, weight_names
from unigame.backbones.registry import BUILT_IN, family_by_files
from unigame.bundled import BUNDLED, bundled_folder
from unigame.errors import UserError

DTYPES = ("float32", "bfloat16", "auto")
_WEIGHTS = "model.safetensors"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def find_checkpoint(name_or_path: str | Path) -> Path | str:
    """A local folder, a bundled model's folder, or a Hub id of the form ``owner/name``.

    Raises:
        UserError: neither a folder nor something that could be a Hub id.
    """
    if (bundled := bundled_folder(str(name_or_path))) is not None:
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
        UserError: the Hub does not have it, refuses it, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except RemoteEntryNotFoundError as error:
        folder = None
        for name in (PIPELINE_FILE, ADAPTER_FILE):
            with suppress(RemoteEntryNotFoundError):
                folder = Path(hf_hub_download(hub_id, name)).parent
        raise no_config(hub_id, folder) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise hub_refusal("model", hub_id, "config.json", error) from error


def read_model_type(
    config_file: Path, supported: Collection[str], hub_id: str | None = None
) -> str:
    """The ``model_type`` of a config.json, if it is a ``supported`` one.

    ``hub_id`` is where the file came from, for the error message; None: from a local folder.

    Raises:
        UserError: missing or broken file, or no unified model; it says what it is instead.
    """
    shown = hub_id or str(config_file.parent)
    if not config_file.is_file():
        raise no_config(shown, config_file.parent)
    model_type = read_json(config_file, MODEL_FAULT).get("model_type")
    if not isinstance(model_type, str):
        raise UserError(
            f"{str(config_file)!r} is no model configuration (model_type={model_type!r}); download "
            "or save the checkpoint again"
        )
    if model_type not in supported:
        raise foreign_model(shown, model_type, supported)
    return model_type


def find_family(checkpoint: Path | str, supported: Collection[str]) -> tuple[str, Path]:
    """The ``model_type`` of a folder or Hub id, and its ``config.json``, which may not be there.

    A family may publish folders that no ``config.json`` describes, or one that names a type of the
    authors' own (``FamilyInfo.files``).

    Raises:
        UserError: see ``read_model_type`` and ``fetch_config``.
    """
    if isinstance(checkpoint, Path):
        file = checkpoint / "config.json"
        info = family_by_files([each.name for each in checkpoint.iterdir()])
        return info.model_type if info else read_model_type(file, supported), file
    try:
        file = fetch_config(checkpoint)
        model_type = read_json(file, MODEL_FAULT).get("model_type")
        if model_type is None:
            raise no_config(checkpoint, file.parent)
    except UserError:
        for info in BUILT_IN:
            if info.files and (found := _fetched(checkpoint, info.files[-1])) is not None:
                return info.model_type, found.with_name("config.json")
        raise
    if isinstance(model_type, str) and model_type not in supported:
        for info in BUILT_IN:
            if info.files and _holds(checkpoint, info.files):
                return info.model_type, file
    return read_model_type(file, supported, checkpoint), file


def _fetched(hub_id: str, name: str) -> Path | None:
    """A small file of a Hub repository, if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _holds(hub_id: str, names: Sequence[str]) -> bool:
    """Whether a Hub repository has all of these files; none is sent, for some are large."""
    from huggingface_hub import file_exists, try_to_load_from_cache

    try:
        return all(
            isinstance(try_to_load_from_cache(hub_id, name), str) or file_exists(hub_id, name)
            for name in names
        )
    except Exception:  # a network that is down has as many errors as the Hub's client has versions
        return False


def require_parts(folder: Path, parts: Sequence[str]) -> None:
    """All that a family's folders hold (``FamilyInfo.parts``) is there, and a tokenizer.

    Raises:
        UserError: names everything that is missing, so that it is copied at once.
    """
    lacking = [name for name in parts if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        lacking.append(" or ".join(_TOKENIZER_FILES))
    if lacking:
        raise UserError(
            f"model folder {str(folder)!r} has no {', no '.join(lacking)}; copy the whole "
            "published folder"
        )


def check_files(folder: Path) -> None:
    """Weights (safetensors, all shards readable), tokenizer and processor files are there.

    Raises:
        UserError: names the first file that is missing or unreadable, or a setting that cannot be.
    """
    check_json_files(folder)
    check_weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"model folder {str(folder)!r} has no tokenizer.json; copy it there")
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise UserError(
            f"model folder {str(folder)!r} has neither {' nor '.join(_PROCESSOR_FILES)}; save the "
            "processor beside the model with processor.save_pretrained"
        )


def check_weight_files(folder: Path, plain: str = _WEIGHTS) -> int:
    """The number of values in the safetensors files of a folder, by their headers.

    ``plain`` is the file's name, where there is only one.

    Raises:
        UserError: names the first file that is missing, cut off or unreadable.
    """
    index = folder / f"{plain}.index.json"
    names = weight_names(index) if index.is_file() else [plain]
    if not index.is_file() and not (folder / plain).is_file():
        if (folder / "pytorch_model.bin").is_file():
            raise UserError(
                f"model folder {str(folder)!r} holds only pytorch_model.bin, a pickle that can run "
                "code when it is loaded; save the checkpoint as safetensors"
            )
    values = 0
    for name in names:
        opened = open_safetensors(folder / name)
        values += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return values


def open_safetensors(file: Path) -> Any:
    """A weight file, opened and not read.

    Raises:
        UserError: it is missing, cut off, unreadable or empty.
    """
    if not file.is_file():
        raise UserError(
            f"weight file {str(file)!r} is missing; download the checkpoint again, or check "
            "that the copy was complete"
        )
    try:
        opened = safe_open(file, framework="pt")
        empty = not opened.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weight file {str(file)!r} is unreadable ({error}); it may be cut off or a Git "
            "LFS pointer: download it again"
        ) from error
    if empty:
        raise UserError(f"weight file {str(file)!r} holds no tensors; download it again")
    return opened


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
