"""The model families: which there are, what each can do, and what it needs. Imports nothing heavy.

``load_backbone`` finds a loader here and ``unigame backbones`` prints what is here. A plug-in
(entry point group ``unigame.backbones``) may describe itself as the built-in families do, by a
``FAMILY_INFO: FamilyInfo`` in the module that its entry point names.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Literal

from unigame.errors import UserError

ENTRY_POINT_GROUP = "unigame.backbones"


@dataclass(frozen=True)
class FamilyInfo:
    """What a user can know of a family before choosing a checkpoint.

    Attributes:
        model_type: as in the checkpoint's ``config.json``.
        loader: ``"module:attribute"`` of what builds a backbone.
        title: the models' own name.
        reads: what carries a picture into the language model.
        draws: what the language model's states become a picture by.
        drawing: "codes" of an image tokenizer, straight-through, or "latents", continuous.
        differentiable: how the gradient gets from drawn pixels back to the states.
        max_images: pictures that one question may show.
        guidance: whether ``generate`` knows classifier-free guidance.
        examples: Hub ids.
        page: its page, relative to the repository.
        needs: installed distributions that it cannot do without.
        extra: what ``pip install "unigame[extra]"`` brings them.
        note: one sentence that a user of this family must know.
        wraps: ``"module:attribute"`` of what makes a backbone of a transformers model that is
            loaded already, and its processor.
        reading: ``"module:function"`` of how it reads records, without weights:
            ``(folder or Hub id) -> Reading``.
        size: ``"module:function"`` by which ``unigame doctor`` estimates memory:
            ``(name, config file, Hub id or None) -> ModelSize``.
        published: ``"module:function"`` that lists the sizes of published checkpoints.
        files: what a folder of this family holds, and no other does: it is known by them where its
            ``config.json`` does not name the family, or is missing.
        parts: all that its folders must hold beside a tokenizer, so that what is missing is said at
            once; none: the loader looks.
        lora_targets: names of the language model's linear layers, where every checkpoint of the
            family has the same; none: they are known when the weights are loaded.
    """

    model_type: str
    loader: str
    title: str
    reads: str
    draws: str
    drawing: Literal["codes", "latents"]
    differentiable: str
    max_images: int = 1
    guidance: bool = True
    examples: tuple[str, ...] = ()
    page: str | None = None
    needs: tuple[str, ...] = ()
    extra: str | None = None
    note: str | None = None
    wraps: str | None = None
    reading: str | None = None
    size: str | None = None
    published: str | None = None
    files: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = ()


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")

BUILT_IN = (
    FamilyInfo(
        model_type="janus",
        loader="unigame.backbones.janus.load:from_pretrained",
        wraps="unigame.backbones.janus.model:JanusBackbone",
        reading="unigame.backbones.janus.load:load_reading",
        size="unigame.backbones.janus.size:size_of",
        lora_targets=(*_ATTENTION, *_MLP),
        published="unigame.backbones.janus.size:published",
        title="Janus, Janus-Pro",
        reads="SigLIP tower and aligner",
        draws="VQ tokenizer, codes one after another",
        drawing="codes",
        differentiable="straight-through over the codebook, in drawing",
        max_images=8,
        examples=("deepseek-community/Janus-Pro-1B", "deepseek-community/Janus-Pro-7B"),
        page="docs/backbones/janus.md",
        note="a checkpoint in DeepSeek's own layout: unigame convert SRC OUT",
    ),
    FamilyInfo(
        model_type="emu3",
        loader="unigame.backbones.emu3.load:from_pretrained",
        wraps="unigame.backbones.emu3.model:Emu3Backbone",
        reading="unigame.backbones.emu3.load:load_reading",
        size="unigame.backbones.emu3.size:size_of",
        lora_targets=(*_ATTENTION, *_MLP),
        title="Emu3",
        reads="its VQ tokenizer's codes",
        draws="the same tokenizer, codes one after another",
        drawing="codes",
        differentiable="straight-through over the codebook, in drawing and reading",
        max_images=2,
        examples=("BAAI/Emu3-Chat-hf", "BAAI/Emu3-Gen-hf"),
        page="docs/backbones/emu3.md",
        note="Chat was trained to read and Gen to draw; the game wants both",
    ),
    FamilyInfo(
        model_type="chameleon",
        loader="unigame.backbones.chameleon.load:from_pretrained",
        wraps="unigame.backbones.chameleon.model:ChameleonBackbone",
        reading="unigame.backbones.chameleon.load:load_reading",
        size="unigame.backbones.chameleon.size:size_of",
        lora_targets=(*_ATTENTION, *_MLP),
        title="Chameleon",
        reads="its VQGAN's codes",
        draws="the same VQGAN, codes one after another",
        drawing="codes",
        differentiable="straight-through over the codebook, in drawing and reading",
        max_images=3,
        examples=("facebook/chameleon-7b",),
        page="docs/backbones/chameleon.md",
        note="draws only with Meta's vqgan.ckpt in the checkpoint's folder",
    ),
    FamilyInfo(
        model_type="bagel",
        loader="unigame.backbones.bagel.load:from_pretrained",
        reading="unigame.backbones.bagel.load:load_reading",
        size="unigame.backbones.bagel.size:size_of",
        title="BAGEL",
        reads="SigLIP and a connector",
        draws="latents of FLUX's VAE, by flow matching",
        drawing="latents",
        differentiable="by a linear head, exactly, then the VAE",
        max_images=4,
        examples=("ByteDance-Seed/BAGEL-7B-MoT",),
        page="docs/backbones/bagel.md",
        needs=("diffusers",),
        extra="bagel",
        note="LoRA: on the understanding expert; all-linear adds the other",
        files=("ema.safetensors", "llm_config.json"),
        parts=("llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"),
        lora_targets=tuple(
            [*_ATTENTION, *(f"mlp.{name}" for name in _MLP)]
            + [f"{name}_moe_gen" for name in _ATTENTION]
            + [f"mlp_moe_gen.{name}" for name in _MLP]
        ),
    ),
    FamilyInfo(
        model_type="unigame_composed",
        loader="unigame.backbones.composed.load:from_pretrained",
        reading="unigame.backbones.composed.load:load_reading",
        size="unigame.backbones.composed.size:size_of",
        title="VLM or LLM with a diffusion branch",
        reads="the VLM's own eyes, or SigLIP/CLIP and a projector",
        draws="connector, then a UNet or DiT of diffusers",
        drawing="latents",
        differentiable="by denoising under the states, then the VAE",
        max_images=4,
        examples=(
            "Qwen/Qwen2.5-VL-3B-Instruct",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        page="docs/backbones/composed.md",
        needs=("diffusers",),
        extra="composed",
        note="made by: unigame compose OUT --language ID --denoiser ID",
    ),
)


@dataclass(frozen=True)
class Family:
    """A family as it is found here.

    Attributes:
        model_type: as in the checkpoint's ``config.json``.
        loader: ``"module:attribute"``.
        source: ``"unigame"``, or the distribution whose entry point it is.
        info: None where a plug-in does not describe itself.
        installed: version of each distribution that it needs; None where it is not there.
        problem: one line on why it cannot be used, or None.
    """

    model_type: str
    loader: str
    source: str
    info: FamilyInfo | None
    installed: dict[str, str | None] = field(default_factory=dict)
    problem: str | None = None


def available_backbones() -> dict[str, str]:
    """``model_type`` -> ``"module:loader"`` of every family, built-in ones first."""
    return {
        **{info.model_type: info.loader for info in BUILT_IN},
        **{entry.name: entry.value for entry in _plug_ins()},
    }


def list_families() -> list[Family]:
    """Every family with what is installed of it. Imports plug-ins, and no built-in family."""
    own = [_described(info, "unigame") for info in BUILT_IN]
    return [*own, *(_plugged_in(entry) for entry in _plug_ins())]


def find_info(model_type: str) -> FamilyInfo | None:
    """What a family says of itself; a plug-in is imported for it."""
    own = next((info for info in BUILT_IN if info.model_type == model_type), None)
    entry = next((entry for entry in _plug_ins() if entry.name == model_type), None)
    return own if own is not None or entry is None else _plugged_in(entry).info


def family_by_files(names: Collection[str]) -> FamilyInfo | None:
    """The family whose folders hold all of these files, whatever ``config.json`` says."""
    return next((i for i in BUILT_IN if i.files and all(f in names for f in i.files)), None)


def resolve(model_type: str, reference: str) -> Any:
    """What ``"module:attribute"`` of a family names.

    Raises:
        UserError: it does not import.
    """
    module_name, _, attributes = reference.partition(":")
    try:
        target: Any = import_module(module_name)
        for attribute in attributes.split("."):
            target = getattr(target, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backbone family {model_type!r} is registered as {reference!r}, which does not load "
            f"({error}); reinstall or fix the package that provides it"
        ) from error
    return target


def _plug_ins() -> Iterator[EntryPoint]:
    """Entry points by name; a built-in family cannot be replaced by one."""
    taken = {info.model_type for info in BUILT_IN}
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        if entry.name not in taken:
            taken.add(entry.name)
            yield entry


def _described(info: FamilyInfo, source: str) -> Family:
    installed = {name: _version(name) for name in info.needs}
    missing = [name for name, found in installed.items() if found is None]
    problem = None
    if missing:
        fix = f"pip install 'unigame[{info.extra}]'" if info.extra else f"pip install {missing[0]}"
        problem = f"{missing[0]} is not installed: {fix}"
    return Family(info.model_type, info.loader, source, info, installed, problem)


def _plugged_in(entry: EntryPoint) -> Family:
    source = entry.dist.name if entry.dist is not None else entry.value.partition(":")[0]
    try:
        entry.load()
        info = getattr(sys.modules[entry.module], "FAMILY_INFO", None)
    except Exception as error:  # code of others may raise anything; the list goes on
        reason = next(iter(str(error).strip().splitlines()), "")
        problem = f"does not import: {type(error).__name__}: {reason}".rstrip(": ")
        return Family(entry.name, entry.value, source, None, problem=problem)
    if isinstance(info, FamilyInfo):
        return _described(info, source)
    return Family(entry.name, entry.value, source, None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
