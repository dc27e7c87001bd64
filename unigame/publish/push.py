"""``push``: a run's adapter, or its merged model, with a filled card, on the Hub.

The folder that is uploaded is made first, whole, and ``dry_run`` ends there. In it are the weights
in safetensors, what loads them, and the card: no picture of the training data, no optimizer state,
no path of this machine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from unigame.backbones.common.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_base
from unigame.backbones.merging import merge
from unigame.errors import UserError
from unigame.publish.card import Wishes, write_card
from unigame.publish.merged_base import require_its_base
from unigame.publish.trained import Trained, read_trained, refuse_pickles
from unigame.reports.records import Record, read_record

PARTS = ("denoiser", "vae", "vision_encoder")


@dataclass(frozen=True)
class Pushed:
    """What was made or sent.

    Attributes:
        url: of the repository; empty after a dry run.
        files: names and sizes in bytes.
        passed_over: evaluations beside the run that are of other weights.
        twice: a line for each benchmark that was left out, because another evaluation has it.
    """

    url: str
    files: tuple[tuple[str, int], ...]
    passed_over: tuple[str, ...]
    twice: tuple[str, ...] = ()


def push(
    run: str | Path,
    hub_id: str,
    *,
    merged: bool = False,
    base: str | None = None,
    private: bool = False,
    dry_run: str | Path | None = None,
    evaluations: Sequence[str | Path] = (),
    wishes: Wishes | None = None,
    dtype: str = "auto",
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Publish the result of a run.

    Args:
        run: its output_dir, or a checkpoint of it.
        hub_id: ``owner/name``; the repository is made if it is not there.
        merged: push base and adapter as one model, in the place of the adapter.
        base: Hub id of the base, where the adapter names a folder of this machine.
        private: make a new repository private. One that is there stays as it is.
        dry_run: folder, new or empty; the files are left there and nothing is sent.
        evaluations: further records for the card, such as the base's: differences are to the first.
        wishes: licences, as the user says them.
        dtype: of merged weights; "auto": the base's own.
        device: where they are merged; None: a GPU if there is one.
        say: takes a line on what is done now.

    Raises:
        UserError: no finished run with an adapter, a pickle, a malformed id, a base that nobody
            else can get or that is not the adapter's, no token, or a Hub that does not take it.
            All of this before anything is merged or sent, except what only the Hub's own answer
            to an upload can tell.
    """
    _require_id(hub_id)
    trained = read_trained(run, base)
    if not merged and not trained.base_is_public:
        raise UserError(
            f"the adapter's base is {trained.base.name or 'not named'!r}, which nobody else can "
            "get; name its Hub id by --base OWNER/NAME, or push a whole model by --merged"
        )
    if merged:
        _require_public_parts(trained)
    others = _records(evaluations)
    if dry_run is not None:
        _require_new(Path(dry_run))
    else:
        api = _logged_in()
    if merged:
        place = trained.base_place or None
        digest = require_its_base(trained.adapter, model=place, dtype=dtype, device=device, say=say)
        trained = replace(trained, base=trained.base._replace(digest=digest))
    if dry_run is None:
        url, hub_id = _repository(api, hub_id, private)
    with _workplace(dry_run) as folder:
        kind = _write_merged(trained, folder, dtype, device, say) if merged else None
        if not merged:
            _write_adapter(trained, folder)
        write_card(
            trained,
            hub_id,
            folder,
            merged_class=kind,
            others=others,
            wishes=wishes or Wishes(),
        )
        refuse_pickles(folder)
        files = listed(folder)
        if dry_run is not None:
            return Pushed("", files, trained.passed_over, trained.twice)
        say(f"uploading {len(files)} files to {url}")
        _upload(api, folder, hub_id, f"{'Merged model' if merged else 'Adapter'} and card")
    return Pushed(url, files, trained.passed_over, trained.twice)


def listed(folder: Path) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the files that an upload of the folder sends."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((file.relative_to(folder).as_posix(), file.stat().st_size) for file in files)


# ---- what must hold before anything is written ---------------------------------------------------
def _require_id(hub_id: str) -> None:
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise UserError(f"{hub_id!r} is no Hub id: {' '.join(str(error).split())}") from error
    if "/" not in hub_id:
        raise UserError(f"{hub_id!r} has no owner; write OWNER/{hub_id}")


def _require_public_parts(trained: Trained) -> None:
    """A merged composed model names its other parts; folders of this machine help nobody."""
    if not trained.is_composed:
        return
    file = Path(trained.base_place) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in PARTS:
        place = config.get(name)
        if place and (Path(place).is_absolute() or Path(place).is_dir()):
            raise UserError(
                f"the {name} of this composed model is the folder {place!r} of this machine, so "
                "nobody else could draw with it; compose it from Hub ids, or push the adapter"
            )


def _records(places: Sequence[str | Path]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for place in places:
        record = read_record(place)
        label = Path(record.name).name
        if label in found or label == "this model":
            label = record.path.parent.name
        if label in found:
            raise UserError(f"--evaluation {place}: {label} is named twice; give each one once")
        found[label] = record
    return found


def _require_new(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--dry-run {str(folder)!r} is not empty; name a new folder")


def _logged_in() -> HfApi:
    """An API with a token that the Hub knows.

    Raises:
        UserError: there is none, it is not known, or the Hub cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing is sent; unset it, or add --dry-run DIR")
    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            "nobody is logged in to the Hub; run `hf auth login` with a token that may write, set "
            "HF_TOKEN, or look at what would be sent by --dry-run DIR"
        )
    api = HfApi(token=token)
    try:
        api.whoami()
    except Exception as error:  # of the network, the Hub: many kinds
        raise UserError(
            f"the Hub does not take the token: {_reason(error)}; run `hf auth login` again, or "
            "check the connection"
        ) from error
    return api


def _repository(api: HfApi, hub_id: str, private: bool) -> tuple[str, str]:
    """Make the repository now: not after the merge of a large model.

    Returns:
        Its address, and its id as the Hub writes it.
    """
    make: Callable[..., Any] = api.create_repo
    try:
        made = make(hub_id, private=private or None, exist_ok=True, repo_type="model")
    except Exception as error:
        raise UserError(
            f"the Hub does not take {hub_id!r}: {_reason(error)}; check the owner's name and what "
            "the token may do"
        ) from error
    return str(made), str(getattr(made, "repo_id", None) or hub_id)


def _upload(api: HfApi, folder: Path, hub_id: str, message: str) -> None:
    send: Callable[..., Any] = api.upload_folder
    try:
        send(repo_id=hub_id, folder_path=str(folder), commit_message=message, repo_type="model")
    except Exception as error:
        raise UserError(
            f"the upload to {hub_id!r} was not finished: {_reason(error)}; run the same command "
            "again, what has arrived is not sent twice"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ---- the folder ----------------------------------------------------------------------------------
@contextmanager
def _workplace(dry_run: str | Path | None) -> Iterator[Path]:
    """A folder that stays (a dry run that failed leaves none), or one that goes."""
    if dry_run is None:
        with tempfile.TemporaryDirectory(prefix="unigame-push-") as name:
            yield Path(name)
        return
    folder = Path(dry_run)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_adapter(trained: Trained, folder: Path) -> None:
    """PEFT's two files; in both the base has its public name."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(trained.adapter / name, folder / name)
    write_base(folder, trained.base)
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = trained.base.name
    config["revision"] = trained.base.revision or config.get("revision")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_merged(
    trained: Trained, folder: Path, dtype: str, device: str | None, say: Callable[[str], None]
) -> str:
    """The merged model, compared with the adapter; returns transformers' class of it."""
    model = trained.base_place or None
    merge(trained.adapter, folder, model=model, dtype=dtype, device=device, say=say)
    place = folder / "language" if trained.is_composed else folder
    file = place / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kinds = config.get("architectures") or []
    _make_public(folder)
    return str(kinds[0]) if kinds else (trained.base_class or "AutoModel")


def _make_public(folder: Path) -> None:
    """Take the base's folder out of the configurations: it is of this machine alone."""
    for file in sorted(folder.rglob("*.json")):
        if file.name == "tokenizer.json" or file.name.endswith(".index.json"):
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            continue
        here = [key for key in ("_name_or_path", "name_or_path") if key in content]
        if here:
            for key in here:
                del content[key]
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            file.write_text(text, encoding="utf-8")
