"""Which model lies in a folder, by SHA-256: records name it by the same digests.

Weights have one of their own, because the same weights lie in many places; what they are read with
(configuration, tokenizer, processor, and the parts of a composed model) has another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from unigame.errors import UserError

_WEIGHTS = ("*.safetensors", "*.bin")
WHOLE_MODEL = ("model*.safetensors", "connector.safetensors")
"""Names of a whole model's weights; the latter is what a warm-up of a composed one trains."""
_SETUP = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "llm_config.json",
    "vit_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)
"""What a checkpoint or adapter is read with, beside its weights."""

_PLACES = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "revision",
    "transformers_version",
    "peft_version",
)
"""Keys of it that say where something lay, or what wrote it, and change no answer."""

_PARTS = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
_REMEMBERED = 1 << 26  # smaller files are read in a moment


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a checkpoint or adapter folder, and their names.

    Raises:
        UserError: the folder holds no weights.
    """
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no weights ({' or '.join(_WEIGHTS)})")
    lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def whole_model(folder: Path) -> list[Path]:
    """Weights in a folder that are a model's own, or those of a composed model; of none: empty."""
    return sorted(file for pattern in WHOLE_MODEL for file in folder.glob(pattern))


def setup_sha256(folder: Path) -> str:
    """SHA-256 over what the weights of a folder are read with: another one gives other answers.

    A value of ``config.json`` that names a folder counts as what lies in it: a composed model is
    made of such parts. Of a part on the Hub the name counts.
    """
    lines = []
    for file in sorted({file for pattern in _SETUP for file in folder.glob(pattern)}):
        if file.is_file():
            lines.append(f"{file.name} {_setup_digest(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _setup_digest(file: Path) -> str:
    if not file.name.endswith("config.json"):
        return file_sha256(file)
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return file_sha256(file)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _PLACES}
        if file.name == "config.json":
            content = {key: _part(file.parent, value) for key, value in content.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _part(beside: Path, value: Any) -> Any:
    """The value; of a folder the digest of all that makes up a model in it."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        folder = beside / Path(value).expanduser()
        if not folder.is_dir():
            return value
    except (OSError, RuntimeError, ValueError):  # a long text, "~nobody", a zero byte: no folder
        return value
    lines = [
        f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n"
        for file in sorted(folder.rglob("*"))
        if file.suffix in _PARTS and file.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; a large one is read once and remembered by place, size and time."""
    status = path.resolve().stat()
    if status.st_size < _REMEMBERED:
        return _digest(path)
    memory = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unigame"
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    note = memory / f"sha256-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    try:
        if len(known := note.read_text()) == 64:
            return known
    except OSError:
        pass  # not known yet, or nowhere to remember it
    digest = _digest(path)
    try:
        memory.mkdir(parents=True, exist_ok=True)
        note.write_text(digest)
    except OSError:
        pass
    return digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
