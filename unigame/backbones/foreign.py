"""Checkpoints that are no unified model here: what they are, and what to do, in one line each.

A folder or Hub repository may hold a VLM or an LLM alone, half of Janus's files under other names,
a diffusers pipeline, an adapter, or lie behind a licence. The errors here are raised from
configurations alone, before any weight is read or sent.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from shlex import quote

from unigame.errors import UserError

EXAMPLE_DENOISER = "stable-diffusion-v1-5/stable-diffusion-v1-5"
EXAMPLE_ENCODER = "google/siglip2-base-patch16-384"
PIPELINE_FILE, ADAPTER_FILE = "model_index.json", "adapter_config.json"
ORIGINAL_JANUS = "multi_modality"


def foreign_model(shown: str, model_type: str, supported: Collection[str]) -> UserError:
    """The error for a ``config.json`` of a model type that no family has, at ``shown``."""
    path = quote(shown)
    if model_type == ORIGINAL_JANUS:
        return UserError(
            f"{shown!r} is a Janus checkpoint in DeepSeek's original layout (model_type "
            f"{model_type!r}); convert it once with `unigame convert {path} OUT` and give OUT"
        )
    kind = _kind(model_type)
    if kind == "vlm":
        from unigame.backbones.composed.vision import VLMS

        if model_type in VLMS:
            return UserError(
                f"{shown!r} is a VLM of type {model_type!r}: it reads pictures but draws none; "
                f"`unigame compose OUT --language {path} --denoiser {EXAMPLE_DENOISER}` gives it "
                "an image branch"
            )
        return UserError(
            f"{shown!r} is a VLM of type {model_type!r}: it reads pictures but draws none, and "
            f"`unigame compose` gives an image branch to {', '.join(sorted(VLMS))} only; use one "
            "of these, or see docs/add-a-backbone.md"
        )
    if kind == "llm":
        return UserError(
            f"{shown!r} is a text-only LLM of type {model_type!r}: it neither reads nor draws "
            f"pictures; `unigame compose OUT --language {path} --vision-encoder "
            f"{EXAMPLE_ENCODER} --denoiser {EXAMPLE_DENOISER}` gives it eyes and an image branch"
        )
    return UserError(
        f"{shown!r} is a model of type {model_type!r}; supported families: "
        f"{', '.join(sorted(supported))} (`unigame backbones` says what each can do); for another "
        "architecture see docs/add-a-backbone.md"
    )


def no_config(shown: str, folder: Path | None) -> UserError:
    """The error for a model without ``config.json``, by another telling file in ``folder``."""
    if folder is not None and (folder / PIPELINE_FILE).is_file():
        return UserError(
            f"{shown!r} is a diffusers pipeline: it draws but reads no pictures; "
            f"`unigame compose OUT --language VLM --denoiser {quote(shown)}` joins it to a VLM"
        )
    if folder is not None and (folder / ADAPTER_FILE).is_file():
        return UserError(
            f"{shown!r} is a PEFT adapter, not a model; give the model that it was made for "
            f"({_base_of(folder / ADAPTER_FILE)}) as the model and this folder as the adapter"
        )
    return UserError(
        f"model {shown!r} has no config.json; give a checkpoint in the Hub format "
        "(config.json, model.safetensors, tokenizer and processor files)"
    )


def hub_refusal(what: str, reference: str, file: str, error: BaseException) -> UserError:
    """The error for a file that the Hub did not give: gated, private or misspelt, or no network.

    ``what`` is the part's role, such as "model", and ``error`` what huggingface_hub raised, or
    transformers around it.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes = list(_causes(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in reason:
        return UserError(
            f"{what} {reference!r} is gated, and the Hub refused its {file}; accept its licence "
            f"on https://huggingface.co/{reference} and log in with 'hf auth login' (or set "
            "HF_TOKEN), or give a local folder"
        )
    status = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    absent = any(isinstance(cause, RepositoryNotFoundError) for cause in causes)
    if absent or status & {401, 403}:
        return UserError(
            f"{what} {reference!r}: no such folder here, and on the Hub there is none, or it is "
            "private and you have no access; check the spelling, or log in with 'hf auth login' "
            "(or set HF_TOKEN)"
        )
    return UserError(
        f"{what} {reference!r}: no such folder here, and the Hub did not give its {file} "
        f"({reason}); check the spelling and the network, or download it and give the folder"
    )


def _kind(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vlm"
    return "llm" if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


def _base_of(adapter_config: Path) -> str:
    try:
        base = json.loads(adapter_config.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    return repr(base) if base else "its configuration does not say which"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
