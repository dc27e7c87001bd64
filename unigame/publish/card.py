"""The model card of a run: what it is, how to load it, what it scores, and what nobody knows.

Everything is read from the run's own files. Paths of this machine are shortened to their last name:
a card is public.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from unigame import __version__
from unigame.bundled import BUNDLED_MODELS, bundled_place
from unigame.publish.licences import UNKNOWN, Licence, base_licence, data_licence
from unigame.publish.public import public, public_command, public_value, public_values
from unigame.publish.trained import Trained, is_hub_id
from unigame.reports.compare import compare
from unigame.reports.records import Record
from unigame.reports.tables import to_markdown

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Wishes:
    """What the one who pushes says himself.

    Attributes:
        license: the Hub's name of the licence of these weights.
        data_license: of the training data, one sentence.
    """

    license: str | None = None
    data_license: str | None = None


def write_card(
    trained: Trained,
    hub_id: str,
    folder: Path,
    *,
    merged_class: str | None,
    others: Mapping[str, Record],
    wishes: Wishes,
) -> None:
    """Write README.md into ``folder``.

    Args:
        trained: the run.
        hub_id: where it goes.
        folder: with the other files.
        merged_class: transformers' class of the merged model; None: the adapter is pushed.
        others: further evaluations by label; the first is what differences are to.
        wishes: licences.
    """
    import jinja2

    licence = base_licence(trained.base.name, trained.base_place)
    own = _own_licence(wishes, licence)
    template = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string((files("unigame.publish") / "card.md").read_text(encoding="utf-8"))
    merged = merged_class is not None
    code, hint = _code(trained, hub_id, merged_class)
    text = template.render(
        metadata=_metadata(trained, hub_id, merged, own).to_yaml(),
        title=hub_id.partition("/")[2],
        summary=_summary(trained, merged),
        code=code,
        hint=hint,
        commands=_commands(trained, hub_id, merged),
        needs=_needs(trained, merged),
        tables=_tables(trained, others),
        findings=[_finding(found) for found in trained.about.get("findings", [])],
        facts=[(name, _cell(text)) for name, text in _facts(trained)],
        command=_command(trained),
        versions=_versions(trained),
        settings=_settings(trained),
        base_licence=licence.text,
        data_licence=data_licence(_sources(trained), wishes.data_license),
        own_licence=own.text,
    )
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def _cell(text: str) -> str:
    """A text for a cell of a Markdown table, which a bar or a new line would end."""
    return " ".join(text.split()).replace("|", "\\|")


# ---- metadata ------------------------------------------------------------------------------------
def _metadata(trained: Trained, hub_id: str, merged: bool, own: Licence) -> ModelCardData:
    library = "peft"
    if merged:
        library = "transformers" if trained.is_plain and not trained.is_composed else "unigame"
    hub_base = trained.base.name if "/" in trained.base.name and trained.base_is_public else None
    relation = "finetune" if merged else "adapter"
    return ModelCardData(
        base_model=hub_base,
        base_model_relation=relation if hub_base else None,
        datasets=_hub_datasets(trained) or None,
        library_name=library,
        license=own.id or None,
        license_name=own.name or None,
        license_link=own.link or None,
        pipeline_tag="any-to-any",
        tags=["unigame", *([] if merged else ["lora"]), *_methods(trained)],
    )


def _own_licence(wishes: Wishes, base: Licence) -> Licence:
    if wishes.license:
        return Licence(f"`{wishes.license}`, as said by the one who pushed them", wishes.license)
    if not base.id:
        return Licence(f"{UNKNOWN}: nobody chose one; ask who pushed this")
    return base._replace(text="not chosen by anyone: that of the base binds them in any case")


def _hub_datasets(trained: Trained) -> list[str]:
    named = [s.get("path") for s in _sources(trained) if s.get("hub")]
    return [str(name) for name in named if isinstance(name, str) and name.count("/") == 1]


def _known(trained: Trained) -> set[str]:
    """Ids of the Hub that the card names in any case."""
    base = {trained.base.name} if trained.base_is_public else set()
    return base | set(_hub_datasets(trained))


# ---- text ----------------------------------------------------------------------------------------
def _summary(trained: Trained, merged: bool) -> str:
    name = trained.base.name
    linked = f"[{name}](https://huggingface.co/{name})" if "/" in name else f"`{name}`"
    if not trained.base_is_public:
        linked = f"a base that is not published (`{Path(name).name or UNKNOWN}`)"
    what = "A whole model: a LoRA adapter merged into" if merged else "A LoRA adapter for"
    methods = " and ".join(_methods(trained)) or UNKNOWN
    return f"{what} {linked}, post-trained for {trained.steps} steps (method: {methods})."


def _needs(trained: Trained, merged: bool) -> str:
    """What of unigame it takes to load the weights."""
    if not trained.is_plain:
        return "transformers does not have this architecture; unigame has it:"
    if not merged and _is_of_a_private_language(trained):
        return "The language model under the adapter has no name on the Hub; unigame loads it:"
    if not merged and trained.base.name in BUNDLED_MODELS:
        return (
            "The base is not on the Hub: it comes with the Python package unigame, which must be "
            f"installed (in its repository it is `{bundled_place(trained.base.name)}`):"
        )
    rest = " to read pictures" if trained.is_composed else ""
    return f"Nothing of unigame is needed{rest}:"


def _code_of_own(trained: Trained, hub_id: str, merged: bool) -> tuple[str, str]:
    """An architecture that is unigame's own."""
    lines = ["from unigame.backbones import load_backbone", ""]
    if merged:
        name = hub_id.partition("/")[2]
        return "\n".join([*lines, f"model = load_backbone({hub_id!r})  # or its folder, {name}"]), (
            "The files are in the layout of the base, so that what reads it reads these."
        )
    lines.insert(0, "from peft import PeftModel")
    lines += [
        f"model = load_backbone({trained.base.name!r}, dtype='auto')",
        f"model.model = PeftModel.from_pretrained(model.model, {hub_id!r}).eval()",
    ]
    return "\n".join(lines), ""


def _is_of_a_private_language(trained: Trained) -> bool:
    """Whether the adapter lies on the language model of a composed one that nobody can name."""
    return trained.is_composed and not is_hub_id(trained.language)


def _code(trained: Trained, hub_id: str, merged_class: str | None) -> tuple[str, str]:
    """How plain libraries load it, and what must be known beside."""
    if not trained.is_plain:
        return _code_of_own(trained, hub_id, merged_class is not None)
    if merged_class is not None:
        return _code_of_merged(trained, hub_id, merged_class)
    if _is_of_a_private_language(trained):
        return _code_of_own(trained, hub_id, merged=False)
    kind = trained.base_class or "AutoModel"
    lines = [
        "from peft import PeftModel",
        f"from transformers import AutoProcessor, {kind}",
        "",
        f"base = {trained.base.name!r}",
    ]
    revision, hint = trained.base.revision, ""
    if trained.base.name in BUNDLED_MODELS:
        lines.insert(2, "from unigame.bundled import bundled_folder")
        lines[-1] = f"base = bundled_folder({trained.base.name!r})"
        revision = ""
    elif trained.is_composed:
        lines[-1] = f"base = {trained.language!r}  # its language model"
        revision = ""
        hint = (
            f"`{trained.base.name}` is composed of several models, and the adapter lies on its "
            "language model; to draw pictures takes the whole, which unigame loads."
        )
    pinned = f", revision={revision!r}" if revision else ""
    lines += [
        f"model = {kind}.from_pretrained(base{pinned})",
        f"model = PeftModel.from_pretrained(model, {hub_id!r}).eval()",
        f"processor = AutoProcessor.from_pretrained(base{pinned})",
    ]
    return "\n".join(lines), hint


def _code_of_merged(trained: Trained, hub_id: str, kind: str) -> tuple[str, str]:
    inside, hint = "", ""
    if trained.is_composed:
        inside = ', subfolder="language"'
        hint = (
            "This is the merged language model of a composed model. To draw pictures takes the "
            "whole, which unigame loads from a downloaded copy of this repository."
        )
    lines = [
        f"from transformers import AutoProcessor, {kind}",
        "",
        f"model = {kind}.from_pretrained({hub_id!r}{inside}).eval()",
        f"processor = AutoProcessor.from_pretrained({hub_id!r}{inside})",
    ]
    return "\n".join(lines), hint


def _commands(trained: Trained, hub_id: str, merged: bool) -> str:
    if merged and not trained.is_composed:
        return f'unigame answer PICTURE "a question" --model {hub_id}'
    name = hub_id.partition("/")[2]
    model = f"--model {name}" if merged else f"--model {trained.base.name} --adapter {name}"
    return f'hf download {hub_id} --local-dir {name}\nunigame answer PICTURE "a question" {model}'


def _facts(trained: Trained) -> Iterator[tuple[str, str]]:
    yield "base", f"`{_shown_base(trained) or UNKNOWN}`"
    if trained.base.name in BUNDLED_MODELS:
        version = (trained.about.get("versions") or {}).get("unigame", __version__)
        yield "base's revision", f"bundled with unigame {version}"
    else:
        yield "base's revision", f"`{trained.base.revision}`" if trained.base.revision else UNKNOWN
    yield "base's weights", f"digest `{trained.base.digest}`" if trained.base.digest else UNKNOWN
    if trained.base.quantization != "none":
        yield "base while training", f"quantised: `{trained.base.quantization}` (bitsandbytes)"
    counts = trained.about.get("data") or []
    sources = _sources(trained)
    for number, source in enumerate(sources):
        known = counts[number] if number < len(counts) else {}
        yield f"data {number + 1}", _source(source, known)
    if not sources:
        for number, known in enumerate(counts):
            yield f"data {number + 1}", _source({}, known)
    rows = (trained.record.get("data") or {}).get("rows")
    yield "rows", f"{rows:,}" if isinstance(rows, int) else UNKNOWN


def _shown_base(trained: Trained) -> str:
    name = trained.base.name
    return name if trained.base_is_public else Path(name).name


def _source(source: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """One source of the data: what it is, and how many rows were kept and left out."""
    named = source.get("path") or source.get("questions") or known.get("where") or ""
    names = ("name", "split", "revision", "size", "seed", "limit", "weight")
    more = [f"{name} {source[name]}" for name in names if source.get(name) is not None]
    parts = [
        str(source.get("type") or ""),
        f"`{_last(named, is_id=bool(source.get('hub')))}`" if named else "",
        *more,
    ]
    if known.get("rows") is not None:
        parts.append(f"{known['rows']:,} rows")
    if known.get("skipped"):
        parts.append(f"{known['skipped']:,} left out")
    return ", ".join(part for part in parts if part) or UNKNOWN


def _last(path: Any, is_id: bool = False) -> str:
    """Of a path its last name; what is an id of the Hub stays as it is."""
    text = str(path[0] if isinstance(path, list) and path else path)
    return text if is_id and is_hub_id(text) else Path(text).name or text


def _sources(trained: Trained) -> list[Mapping[str, Any]]:
    recipe = trained.record.get("recipe") or {}
    return [source for source in recipe.get("data") or [] if isinstance(source, Mapping)]


def _methods(trained: Trained) -> list[str]:
    return [str(name) for name in trained.record.get("methods") or {}]


def _versions(trained: Trained) -> str:
    about = trained.about
    versions = about.get("versions") or {}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN
    seeds = ", ".join(f"{name} {value}" for name, value in (about.get("seeds") or {}).items())
    device = about.get("device")
    more = [f"{seeds}." if seeds else "", f"On {device}." if device else ""]
    return " ".join([f"Versions: {listed}.", *filter(None, more), f"Card: unigame {__version__}."])


def _settings(trained: Trained) -> str:
    recipe = trained.record.get("recipe") or {}
    parts = {
        "methods": trained.record.get("methods"),
        "lora": trained.record.get("lora"),
        "dtype": recipe.get("dtype"),
        "quantization": recipe.get("quantization"),
        "training": trained.about.get("settings") or trained.settings,
    }
    filled = {name: value for name, value in parts.items() if value}
    hidden = ("output_dir", "run_name", "hub_", "resume_from_checkpoint", "logging_dir")
    training = filled.get("training")
    if isinstance(training, Mapping):
        filled["training"] = {k: v for k, v in training.items() if not k.startswith(hidden)}
    if not filled:
        return UNKNOWN
    shown = public_values(filled, _known(trained))
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()


def _finding(found: Mapping[str, Any]) -> str:
    """What a run found wrong with itself, in a line."""
    said = [str(found[name]) for name in ("symptom", "says") if found.get(name)]
    return public("; ".join(filter(None, [": ".join(said), str(found.get("knob") or "")])))


def _command(trained: Trained) -> str:
    """The command that trained it, for people elsewhere."""
    command = public_command(str(trained.about.get("command") or ""), _known(trained))
    return command or f"# {UNKNOWN}: not written down"


# ---- results -------------------------------------------------------------------------------------
def _tables(trained: Trained, others: Mapping[str, Record]) -> str:
    """Figures with 95 % intervals, and differences to the first of ``others``."""
    records = {**others, **trained.evaluations}
    if not records:
        return ""
    comparison = compare(list(records.values()), list(records), 0)
    text = to_markdown(comparison).partition("## Details")[0].partition("\n")[2]
    text = re.sub(r"^## ", "### ", text.strip(), flags=re.M)
    lines = [text, "", "Measured on:", ""]
    seen: dict[str, None] = {}
    for record in records.values():
        for found in record.benchmarks.values():
            parts = [found.dataset.get(key) for key in ("id", "config", "split", "revision")]
            where = ", ".join(public_value(str(part)) for part in parts if part) or UNKNOWN
            seen[f"- {found.title}: {where}; {found.counts.get('scored', '?')} items scored"] = None
    return "\n".join([*lines, *seen])
