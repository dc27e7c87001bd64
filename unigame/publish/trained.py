"""What a finished run left behind, as far as it can be published: adapter, base, record.

    adapter_config.json, adapter_model.safetensors   LoRA, in PEFT's format; names the base
    trainer_state.json, about.json                   the run reached its end; how it was made
    run.json, unigame_config.json                    model, data, methods; every setting
    results.json, */results.json                     evaluations

Everything is checked here, before anything is written, merged or sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unigame.backbones.common.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Base,
    read_adapter,
    read_base,
)
from unigame.bundled import BUNDLED_MODELS
from unigame.errors import UserError
from unigame.reports.joined import joined
from unigame.reports.records import Record, read_record, results_in
from unigame.reports.weights import folder_sha256, whole_model
from unigame.system.json_text import parse_json
from unigame.training.checkpoint import TRAINER_STATE_FILE
from unigame.training.run_folder import checkpoints, step_of

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
_COMPOSED = "composed"


@dataclass(frozen=True)
class Trained:
    """A run with an adapter.

    Attributes:
        run: its output_dir.
        adapter: the folder of the adapter: ``run``, or a checkpoint of it.
        base: the model that the adapter is for, as the card names it.
        base_place: where that model can be loaded from here.
        base_class: of the base model; empty if nobody wrote it down.
        base_library: the module that has it, such as ``transformers.models.janus.modeling_janus``.
        family: such as ``"janus"``; empty if nobody wrote it down.
        language: of a composed model the language model that the adapter lies on.
        steps: optimizer steps that the adapter has behind it.
        about: of ``about.json``.
        record: of ``run.json``.
        settings: of ``unigame_config.json``.
        evaluations: records of this very adapter, by label; those of one model are one.
        passed_over: evaluations beside it that are of other weights.
        twice: a line for each benchmark that was left out, because another evaluation has it.
    """

    run: Path
    adapter: Path
    base: Base
    base_place: str
    base_class: str = ""
    base_library: str = ""
    family: str = ""
    language: str = ""
    steps: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Record] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()

    @property
    def is_composed(self) -> bool:
        """Whether the adapter lies on the language model of a composed one."""
        return self.family == _COMPOSED

    @property
    def is_plain(self) -> bool:
        """Whether transformers has the architecture."""
        return (self.base_library or "transformers").partition(".")[0] == "transformers"

    @property
    def base_is_public(self) -> bool:
        """Whether others can get the base by its name."""
        return self.base.name in BUNDLED_MODELS or is_hub_id(self.base.name)


def read_trained(folder: str | Path, base: str | None = None) -> Trained:
    """Read a run, or a checkpoint of it.

    Args:
        folder: ``output_dir`` of a run, or its ``checkpoint-N``.
        base: Hub id of the base, where the adapter names a folder of this machine.

    Raises:
        UserError: no adapter is there, or a pickled, damaged or unfinished one; ``base`` is no id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give the output_dir of a finished run")
    is_checkpoint = step_of(folder) >= 0
    run = folder.parent if is_checkpoint else folder
    _require_adapter(folder)
    steps = _steps(folder, run)
    named = read_base(folder)
    shown = named._replace(name=_checked_base(base)) if base else named
    mapping = _read(folder / ADAPTER_CONFIG).get("auto_mapping") or {}
    record = _read(folder / "run.json")
    family = str((record.get("model") or {}).get("family") or "")
    evaluations, passed_over, twice = _evaluations(folder, run)
    return Trained(
        run=run,
        adapter=folder,
        base=shown,
        base_place=named.name or (base or ""),
        base_class=str(mapping.get("base_model_class") or ""),
        base_library=str(mapping.get("parent_library") or ""),
        family=family,
        language=_language(named.name) if family == _COMPOSED else "",
        steps=steps,
        about=_read(run / "about.json"),
        record=record,
        settings=_read(folder / "unigame_config.json"),
        evaluations=evaluations,
        passed_over=passed_over,
        twice=twice,
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is ``owner/name`` and no folder here."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).is_dir()


def _checked_base(base: str) -> str:
    if base not in BUNDLED_MODELS and not is_hub_id(base):
        raise UserError(
            f"--base {base!r} is no Hub id; give OWNER/NAME, as in deepseek-community/Janus-Pro-1B"
        )
    return base


def refuse_pickles(folder: Path) -> None:
    """Only files that run no code when they are read may leave this machine.

    Raises:
        UserError: naming the first that may.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.suffix.lower() in PICKLES:
            raise UserError(
                f"{file} may be a pickle, which runs code where it is loaded; save the weights as "
                "safetensors (unigame writes nothing else) and take this file away"
            )


def _require_adapter(folder: Path) -> None:
    """An adapter in safetensors that can be read.

    Raises:
        UserError: naming what is there in its place.
    """
    if (folder / ADAPTER_WEIGHTS).is_file():
        read_adapter(folder)
        return
    for file in sorted(folder.glob("adapter_model.*")):
        if file.suffix.lower() in PICKLES:
            raise UserError(
                f"{file} is a pickled adapter; load it with PEFT and save it again by "
                "save_pretrained, which writes safetensors"
            )
    newest = next(iter(checkpoints(folder)), None)
    # First: a finished run of a whole model has checkpoints too, and is none that goes on.
    for place in filter(None, (folder, newest)):
        weights = whole_model(place)
        if weights:
            raise UserError(
                f"{str(folder)!r} has no {ADAPTER_WEIGHTS}: its run trained {weights[0].name}, "
                f"weights of a whole model, and push sends adapters; upload {str(place)!r} by "
                "`hf upload`"
            )
    if newest is not None:
        raise UserError(
            f"the run in {str(folder)!r} is not finished, it has no adapter yet; go on with "
            f"--resume_from_checkpoint true, or push what there is: unigame push {newest} HUB_ID"
        )
    also = " (but config.json: a model that was not trained here)"
    also = also if (folder / "config.json").is_file() else ""
    raise UserError(
        f"{str(folder)!r} has no {ADAPTER_WEIGHTS}{also}; give the output_dir of a finished run"
    )


def _steps(folder: Path, run: Path) -> int:
    """Optimizer steps of the adapter.

    Raises:
        UserError: nothing says that the run ended, or newer steps are in a checkpoint.
    """
    if folder != run:
        return step_of(folder)
    state, about = _read(run / TRAINER_STATE_FILE), _read(run / "about.json")
    if not state and not about:
        raise UserError(
            f"nothing in {str(run)!r} says that its run reached its end (no {TRAINER_STATE_FILE}, "
            "no about.json); finish it, or train anew with this version"
        )
    steps = int(state.get("global_step", about.get("steps", 0)))
    newest = next(iter(checkpoints(run)), None)
    if newest is not None and step_of(newest) > steps:
        raise UserError(
            f"the run in {str(run)!r} goes on: its adapter is of step {steps}, {newest.name} is "
            f"newer; finish it, or push the checkpoint: unigame push {newest} HUB_ID"
        )
    return steps


def _evaluations(
    adapter: Path, run: Path
) -> tuple[dict[str, Record], tuple[str, ...], tuple[str, ...]]:
    """Records of this adapter by label, files of those of others, and what is there twice."""
    digest = folder_sha256(adapter)
    own, passed_over = list[Record](), list[str]()
    for place in results_in(adapter, run):
        record = read_record(place)
        if record.is_of_adapter(digest):
            own.append(record)
        else:
            passed_over.append(str(place))
    groups = joined(own)
    found: dict[str, Record] = {}
    for group in groups:
        label = "this model"
        if found:  # the same adapter in another precision, or on another base
            label = f"this model ({group.record.kept or group.record.path.parent.name})"
        if label in found:
            label = f"this model ({group.record.path.parent.name})"
        found[label] = group.record
    return found, tuple(passed_over), tuple(line for group in groups for line in group.twice)


def _language(place: str) -> str:
    """The language model of a composed folder, as that names it."""
    file = Path(place) / "config.json"
    return str(_read(file).get("language") or "") if place else ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); take it away, or train anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no file of a run; take it away, or train anew")
    return found
