"""What makes a run the run that it is, so that another one is not resumed in its place.

``unigame_config.json`` of a checkpoint has every setting; ``run.json`` beside it has what is no
setting: the recipe's model and data, the LoRA layers, the base model's weights and the training
rows, these by a sample. What only says where, how often or how fast (folders, logging, saving,
evaluation, memory) may differ, and so may the length of the run.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from unigame.backbones.base import Backbone
from unigame.backbones.common.quantization import NONE
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.methods.registry import kind_of
from unigame.training.checkpoint import SETTINGS_FILE, saved_by
from unigame.training.config import UniGameConfig

RUN_FILE = "run.json"
SAMPLED_ROWS, SAMPLED_WEIGHTS, SHOWN = 16, 8, 6
# Settings that change nothing of what is learned.
FREE_PREFIXES = (
    "_",
    "dataloader_num",
    "dataloader_p",
    "ddp_",
    "debug",
    "disable_",
    "do_",
    "eval_",
    "activation_checkpointing",
    "gradient_checkpointing",
    "hub_",
    "include_",
    "log_",
    "logging_",
    "project",
    "push_to_hub",
    "save_",
    "shard_",
    "torch_compile",
    "trackio_",
)
FREE = (
    "batch_eval_metrics",
    "cache_codes",
    "coverage_points",
    "greater_is_better",
    "ignore_data_skip",
    "load_best_model_at_end",
    "max_steps",
    "metric_for_best_model",
    "num_train_epochs",
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "resume_anyway",
    "resume_from_checkpoint",
    "run_name",
    "skip_memory_metrics",
    "torch_empty_cache_steps",
    "understanding_micro_batch",
    "use_cache",
    "use_cpu",
)


def run_record(
    backbone: Backbone,
    dataset: Any,
    methods: Sequence[Method] = (),
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``run.json`` holds.

    Args:
        backbone: with its adapter.
        dataset: the training rows.
        methods: what is played beside fine-tuning.
        recipe: the recipe's blocks, where the run has one.
    """
    record = {
        "model": _model(backbone),
        "lora": _lora(backbone),
        "data": _rows(dataset),
        "methods": {method.name: method.as_dict() for method in methods},
        "method_order": [method.name for method in methods],  # keys are sorted when written
        "recipe": dict(recipe) if recipe else None,
    }
    return json.loads(to_json(record))


def to_json(record: Mapping[str, Any]) -> str:
    """As it is written to ``run.json``."""
    return json.dumps(record, indent=1, sort_keys=True, default=str)


def differences(
    folder: str | Path, args: UniGameConfig, record: Mapping[str, Any] | None
) -> list[str]:
    """What differs between a checkpoint's run and this one, such as ``"seed: 0 there, 1 here"``.

    Args:
        folder: the checkpoint.
        args: this run's settings.
        record: this run's :func:`run_record`, or the part of it that is known.

    Raises:
        UserError: what the checkpoint says of its run cannot be read.
    """
    there = _flat(_read(Path(folder) / SETTINGS_FILE))
    here = _flat(json.loads(args.to_json_string()))
    defaults = {item.name: _plain(item.default) for item in fields(UniGameConfig)}
    found, shared = _rows_of_a_step(folder, there, args)
    for name in sorted(here.keys() | there.keys()):
        setting = name.split(".")[0]
        # One that this version does not know cannot be followed, nor asked for.
        free = setting in FREE or setting in shared
        if free or setting not in defaults or name.startswith(FREE_PREFIXES):
            continue
        # A setting that one of the two versions does not know yet was at its default there.
        old, new = (side.get(name, defaults.get(name)) for side in (there, here))
        if old != new:
            found.append(_said(name, old, new))
    if record and (Path(folder) / RUN_FILE).is_file():
        there, here = _read(Path(folder) / RUN_FILE), json.loads(to_json(record))
        for side in (there, here):  # one that does not name it was not quantised
            for part in (side.get("model"), side.get("recipe")):
                if part:
                    part.setdefault("quantization", NONE)
        if "methods" not in there:
            raise UserError(
                f"{folder} comes from before methods were listed; start a new run from its adapter "
                "(adapter: FOLDER in the recipe)"
            )
        if "methods" in here:
            order = [side.pop("method_order", None) for side in (there, here)]
            found += _methods_between(there.pop("methods"), here.pop("methods"))
            found += _order_between(*order)
        found += _between(there, here)
    return found


def _rows_of_a_step(
    folder: str | Path, there: Mapping[str, Any], args: UniGameConfig
) -> tuple[list[str], tuple[str, ...]]:
    """On another number of processes: what differs, and the settings that may make up for it.

    Rows of an optimizer step are processes x batch x accumulation.
    """
    before = saved_by(folder)
    if before in (0, args.world_size):
        return [], ()
    if args.reading_order == "shards":  # whose shard a row lies in hangs on how many there are
        return [f"processes: {before} there, {args.world_size} here (reading_order=shards)"], ()
    name = "gradient_accumulation_steps"
    old, new = int(there.get(name, 1)), args.gradient_accumulation_steps
    if before * old == args.world_size * new:
        return [], (name,)
    return [f"{name}: {old} on {before} processes there, {new} on {args.world_size} here"], (name,)


def said(found: list[str]) -> str:
    """Some of the differences, for a message."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _between(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    found = []
    for part in here.keys() & there.keys():
        if not here[part] or not there[part]:  # unknown on one side: Python without a recipe
            continue
        old, new = _flat(there[part], part), _flat(here[part], part)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(_said(name.removeprefix("recipe."), old.get(name), new.get(name)))
    return sorted(found)


def _methods_between(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Other methods, or other settings of one; those that only cost time or memory may differ."""
    if list(there) != list(here):
        return [_said("methods", ", ".join(there) or "none", ", ".join(here) or "none")]
    found = []
    for name, settings in here.items():
        kind = kind_of(name)
        defaults = json.loads(to_json({i.name: i.default for i in fields(kind.Settings)}))
        for setting, new in settings.items():
            old = there[name].get(setting, defaults.get(setting))  # unknown there: at its default
            if old != new and setting not in kind.free():
                found.append(_said(f"{name}.{setting}", old, new))
    return found


def _order_between(there: list[str] | None, here: list[str] | None) -> list[str]:
    """The same methods in another order: one may take what those before it offer."""
    if there is None or here is None or there == here or sorted(there) != sorted(here):
        return []
    return [_said("methods", ", ".join(there), ", ".join(here))]


def _said(name: str, old: Any, new: Any) -> str:
    return f"{name}: {old} there, {new} here"


def _plain(default: Any) -> Any:
    return default.value if isinstance(default, Enum) else default


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from dotted paths."""
    if isinstance(value, dict):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {name: value}
    if not pairs:
        return {name: None}
    flat: dict[str, Any] = {}
    for key, item in pairs:
        flat.update(_flat(item, f"{name}.{key}" if name else key))
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read, so nobody can say whose checkpoint it is; give a whole one"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no settings; give a whole checkpoint")
    return found


def _model(backbone: Backbone) -> dict[str, Any]:
    """Family, a digest of a sample of the frozen weights, and how they are kept."""
    kept = backbone.kept_digests
    weights = sample_digest(backbone) if kept is None else kept["sample"]
    found = {"family": backbone.facts.family, "weights": weights}
    if backbone.quantization != NONE:
        found["quantization"] = backbone.quantization
    return found


def sample_digest(backbone: Backbone) -> str:
    """Of some values of some frozen weights, 16 digits."""
    frozen = [(n, p) for n, p in backbone.named_parameters() if not p.requires_grad]
    digest = hashlib.sha256()
    for _, weight in frozen[:: max(1, len(frozen) // SAMPLED_WEIGHTS)]:
        values = weight.detach().flatten()[:1024].to("cpu", torch.float32)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _lora(backbone: Backbone) -> dict[str, Any]:
    """PEFT's settings, without those that only say where the adapter came from."""
    for module in backbone.modules():
        if isinstance(module, peft.PeftModel):
            config = module.active_peft_config.to_dict()
            names = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
            chosen = {name: config.get(name) for name in names}
            targets = chosen["target_modules"]
            if isinstance(targets, set | list | tuple):
                chosen["target_modules"] = sorted(targets)
            return chosen
    return {}


def _rows(dataset: Any) -> dict[str, Any]:
    """How many there are, and a digest of the texts of some; a stream tells nothing."""
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):
        return {}
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(0)  # a mixture has other rows in each epoch; the Trainer sets it again
    digest = hashlib.sha256()
    with own_randomness():
        for place in range(0, count, max(1, count // SAMPLED_ROWS)):
            try:
                row = dataset[place]
                texts = [str(row.get(name)) for name in ("id", "question", "answer", "caption")]
            except Exception:  # the loader will say what is wrong with it
                continue
            digest.update("\n".join(texts).encode("utf-8", "surrogatepass"))
    return {"rows": count, "texts": digest.hexdigest()[:16]}


@contextmanager
def own_randomness(cuda: bool = False) -> Iterator[None]:
    """Within: what is drawn is not missing from the run's own random numbers.

    Args:
        cuda: also those of this process's GPU.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if cuda and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
