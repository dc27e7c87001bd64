"""The files of a model folder, read with care: what is odd in them becomes one line.

Three guards, in the order in which a loader meets them. ``check_json_files`` reads every
configuration before any library does. ``loading_from`` stands around a library's loader: what it
raises over the folder's files becomes a ``UserError`` that names them. ``refuse_not_finite`` looks
at the weights that came in.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unigame
from unigame.errors import UserError

CONFIGURATIONS = (
    "config.json",
    "llm_config.json",
    "vit_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "model_index.json",
    "scheduler_config.json",
)
"""Small files of settings: their values are looked at, too."""
TABLES = (
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "chat_template.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)
TEXTS = ("chat_template.jinja", "merges.txt")

MODEL_FAULT = "is no model configuration"
_PACKAGE = Path(unigame.__file__).parent
MOST_LAYERS = 1000
# Endings of settings that count something or measure a width; none of them is ever below zero.
_COUNTS = ("_size", "_dim", "_heads", "_channels", "_embeddings", "_theta")
_STACKS = ("_layers", "_blocks", "_per_block", "depth")


# ---- configurations ----------------------------------------------------------------------------
def read_json(file: Path, fault: str = "is no JSON") -> dict[str, Any]:
    """The object that a JSON file holds; ``fault`` is what to say of a file that holds none.

    Raises:
        UserError: it cannot be read, is not UTF-8, no JSON, nested without end, or no object.
    """
    try:
        content = json.loads(file.read_bytes().decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} where an object should be")
    except (OSError, ValueError, RecursionError) as error:
        empty = file.is_file() and file.stat().st_size == 0
        reason = "empty file" if empty else f"{type(error).__name__}: {error}"
        raise UserError(f"{str(file)!r} {fault} ({reason}); download or save it again") from error
    return content


def check_numbers(settings: Mapping[str, Any], file: Path) -> None:
    """Refuse numbers that no configuration means, at any depth.

    A NaN spreads through the model without an error; a size below zero may, by chance, fit.

    Raises:
        UserError: names file, setting and value.
    """
    for path, name, value in _numbers(settings):
        fault = None
        if not math.isfinite(value) and not name.endswith("_limit"):  # mamba's time_step_limit
            fault = "is not finite"
        elif name.endswith((*_COUNTS, *_STACKS)) or name.startswith("num_"):
            if value < 0:
                fault = "is below 0"
            elif name.endswith(_STACKS) and value > MOST_LAYERS:
                fault = f"is above {MOST_LAYERS}"
        if fault:
            raise UserError(
                f"{str(file)!r}: {path}={value!r} {fault}; correct it, or download or save the "
                "file again"
            )


def _numbers(settings: Any) -> Iterator[tuple[str, str, float]]:
    """Every number within, with its dotted path and the name of its setting."""
    waiting: list[tuple[str, str, Any]] = [("", "", settings)]
    while waiting:
        path, name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}".lstrip("."), str(key), v) for key, v in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{number}", name, v) for number, v in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, name, value


def check_json_files(folder: Path) -> None:
    """Every known JSON file of a folder is one, and no setting holds an impossible number.

    Raises:
        UserError: names the first file that is not, or the setting.
    """
    for name in (*CONFIGURATIONS, *TABLES):
        file = folder / name
        if file.is_file():
            content = read_json(file, MODEL_FAULT if name == "config.json" else "is no JSON")
            if name in CONFIGURATIONS:
                check_numbers(content, file)
    for name in TEXTS:
        file = folder / name
        if file.is_file():
            try:
                file.read_bytes().decode("utf-8")
            except (OSError, ValueError) as error:
                raise UserError(f"{str(file)!r} is no text ({error}); download it again") from error


def weight_names(index: Path) -> list[str]:
    """The weight files that an index names.

    Raises:
        UserError: it is no index, or names something else than files beside it.
    """
    table = read_json(index, "is no weight index").get("weight_map")
    names = table.values() if isinstance(table, dict) else ()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise UserError(
            f"{str(index)!r} is no weight index: its weight_map names no files; download it again"
        )
    return sorted(set(names))


# ---- libraries ---------------------------------------------------------------------------------
@contextmanager
def loading_from(
    reference: str | Path, files: Sequence[str] | Callable[[], Sequence[str]], what: str = "model"
) -> Iterator[None]:
    """Within: what a library raises over the files of a checkpoint becomes one line about them.

    Only loaders belong within. Faults of our own that show themselves as such (a failed
    ``assert``, an unknown name) and exhausted memory pass.

    Args:
        reference: the checkpoint's folder or Hub id.
        files: the suspects, or what finds them once something failed; of a folder, those that
            are there are named.
        what: does not load.

    Raises:
        UserError: in the place of anything else; one from within is made to name the checkpoint.
    """
    try:
        yield
    except UserError as error:
        if str(reference) in str(error):
            raise
        raise UserError(f"{what} {str(reference)!r}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _is_our_fault(error):
            raise
        suspects = files() if callable(files) else files
        if type(error).__module__.startswith("jinja2"):
            suspects = ("chat_template.jinja", "chat_template.json")
        named = [name for name in suspects if (Path(reference) / name).is_file()] or suspects
        raise UserError(
            f"{what} {str(reference)!r}: its {' or '.join(named)} does not load: "
            f"{reason_of(error)}; download or save the checkpoint again"
        ) from error


def _is_our_fault(error: Exception) -> bool:
    """Whether our own code failed an ``assert``, or used a name that is not there."""
    if not isinstance(error, AssertionError | NameError):
        return False
    *_, innermost = traceback.extract_tb(error.__traceback__)
    return Path(innermost.filename).is_relative_to(_PACKAGE)


def reason_of(error: BaseException) -> str:
    """Type and words of an exception, in one line of reasonable length."""
    text = str(error).encode("utf-8", "backslashreplace").decode()  # half a surrogate pair
    words = " ".join(text.split())
    if len(words) > 300:
        words = words[:300] + " ..."
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def processor_from(reference: str | Path) -> AbstractContextManager[None]:
    """``loading_from`` for a processor: the suspect is the file that does not load by itself."""
    return loading_from(reference, lambda: _processor_suspects(reference), "processor")


def _processor_suspects(reference: str | Path) -> Sequence[str]:
    if not Path(reference).is_dir():
        return ["tokenizer and processor files"]
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    try:
        Tokenizer.from_file(str(Path(reference) / "tokenizer.json"))
    except Exception:  # the Rust library raises bare Exceptions
        return ["tokenizer.json"]
    try:
        AutoTokenizer.from_pretrained(reference)
    except Exception:  # whatever it raised over this folder, it will have raised again
        return ["tokenizer_config.json", "special_tokens_map.json"]
    return ["processor_config.json", "preprocessor_config.json", "tokenizer_config.json"]


# ---- weights -----------------------------------------------------------------------------------
@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity.

    A sum carries both, and takes one pass without memory. The sums are looked at together, so that
    a GPU is waited for once. A sum that is not finite may be an overflow, so its tensor is looked
    at again.
    """
    floating = [(name, t.detach()) for name, t in tensors if t.is_floating_point() and t.numel()]
    # No sums of 8-bit floats, which hold packed weights, nor of what is not there.
    floating = [(n, t) for n, t in floating if t.itemsize > 1 and t.device.type != "meta"]
    if not floating:
        return None
    place = floating[0][1].device
    sums = torch.stack([t.sum().to(place, torch.float32) for _, t in floating])
    for number in (~sums.isfinite()).nonzero().flatten().tolist():
        name, tensor = floating[number]
        if not bool(tensor.isfinite().all()):
            return name
    return None


def refuse_not_finite(tensors: Mapping[str, Tensor] | nn.Module, shown: str) -> None:
    """Weights that hold a NaN or an infinity answer nothing, and training on them looks perfect.

    ``shown`` is whose they are, for the message: "adapter in '/a/folder'".

    Raises:
        UserError: names one such tensor.
    """
    named = tensors.named_parameters() if isinstance(tensors, nn.Module) else tensors.items()
    name = first_not_finite(named)
    if name is not None:
        raise UserError(
            f"{shown} holds a NaN or an infinity in {name!r}: the run that wrote it has diverged, "
            "or the file is damaged; take an earlier checkpoint, or download it again"
        )
