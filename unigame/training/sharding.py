"""Frozen weights in shards over the processes (FSDP2), so that a model need not fit on one GPU.

    frozen layers of the      ``fully_shard``: each process holds 1 / world_size of them, and a
    language model            layer is whole only while it computes
    vision transformer        the same with ``shard_frozen="language+vision"``, else whole
    LoRA, C                   whole on every process, their gradients averaged
    image tokenizer, decoder, whole on every process: pictures are encoded and drawn unequally
    heads, embeddings         often, and these parts are small

Nearly all memory of a large model is in its layers, and they have no gradient and no optimizer.
What learns is small. So it is treated as in any other run: losses and updates are those of it, and
a checkpoint is the same files, which any run reads, sharded or not, on one process or several.

A sharded layer is gathered by all processes together. So all must run equally many passes through
the model, in one order, or say that they do not (``in_step``). A method of others that does not
know of it (``Method.uneven_passes``) is refused instead of waiting for ever. Sources: Zhao et al.,
PyTorch FSDP (arXiv 2304.11277); ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.system.say import warn
from unigame.training.config import UniGameConfig
from unigame.training.identity import sample_digest
from unigame.training.in_step import InStep, Pass

logger = logging.getLogger(__name__)
# What a trainer or a method calls of a backbone beside ``forward``. The first call of any of them
# must be the backbone's own, else a layer would take itself for the whole model.
VERBS = (
    "answer",
    "answer_loss",
    "answer_token_losses",
    "caption",
    "draw",
    "embed_images",
    "embed_shrunk",
    "encode_images",
    "generate",
    "generate_compact",
    "generation_loss",
    "image_features",
    "read_images",
    "reconstruction_loss",
    "render",
    "reply",
    "same_codes",
    "visual_states",
)


def shards(args: UniGameConfig) -> bool:
    """Whether this run shards: it is asked for, and there is more than one process."""
    return args.shard_frozen != "none" and args.world_size > 1


def shards_vision(args: UniGameConfig) -> bool:
    """Whether the vision transformer is sharded, too."""
    return shards(args) and args.shard_frozen == "language+vision"


def require_shardable(args: UniGameConfig, methods: Sequence[Method]) -> None:
    """Refuse what cannot be sharded, before any weight is read. Of one process nothing is asked.

    Raises:
        UserError: naming the setting.
    """
    if not shards(args):
        return
    shown = f"shard_frozen={args.shard_frozen!r}"
    if args.train_parts:
        raise UserError(
            f"{shown} with train_parts={args.train_parts}: only a model under LoRA is sharded; set "
            "shard_frozen=none"
        )
    if args.torch_compile:
        raise UserError(f"{shown} with torch_compile=True: not supported; leave one of them out")
    for method in methods:
        why = method.uneven_passes()
        if why:
            raise UserError(
                f"{shown} with {why}: processes would run unequal passes and wait for each other "
                "for ever; change that, or set shard_frozen=none"
            )


def shard_frozen(
    backbone: Backbone, args: UniGameConfig
) -> Callable[[], AbstractContextManager[None]]:
    """Shard the frozen layers, in place. Every process must call it.

    The weights may be on the CPU: layers move to the device one by one.

    Args:
        backbone: with its adapter.
        args: settings of the run.

    Returns:
        A context within which processes may run unequal passes; see ``in_step``.

    Raises:
        UserError: the family has no ``language_model``, or no list of layers that carry LoRA;
            their weights are quantised.
    """
    if args.shard_frozen == "none":
        return nullcontext
    if not shards(args):
        warn(f"shard_frozen={args.shard_frozen} changes nothing: there is one process")
        return nullcontext
    if not isinstance(getattr(backbone, "language_model", None), nn.Module):
        raise UserError(
            f"shard_frozen={args.shard_frozen!r}: family {backbone.facts.family!r} does not say "
            "what its language model is (HubModel.language_model); set shard_frozen=none"
        )
    layers = list(lora_layers(backbone))
    if layers and shards_vision(args):
        layers += vision_layers(backbone)
    sharded = {p for layer in layers for p in layer.parameters() if not p.requires_grad}
    if not sharded:
        raise UserError(
            f"shard_frozen={args.shard_frozen!r}: no list of layers of family "
            f"{backbone.facts.family!r} carries LoRA; set shard_frozen=none"
        )
    if not all(p.is_floating_point() for p in sharded):
        raise UserError(
            f"shard_frozen={args.shard_frozen!r} with quantised weights: not supported; leave one "
            "of them out"
        )
    # Of whole weights; afterwards no process has them.
    backbone.kept_digests = {
        "whole": backbone.weights_digest(),
        "sample": sample_digest(backbone),
    }
    mesh = init_device_mesh(args.device.type, (args.world_size,))
    whole = {p for p in backbone.parameters() if p not in sharded}
    size = sum(p.numel() * p.element_size() for p in sharded)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(backbone, mesh=mesh, ignored_params=whole)  # it holds the layers together
    for verb in VERBS:
        register_fsdp_forward_method(backbone, verb)
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(backbone, frozen)
    if args.process_index == 0:
        logger.warning(
            "shard_frozen=%s: %d layers, %.2f GiB, are shared out over %d processes",
            args.shard_frozen,
            len(layers),
            size / 2**30,
            args.world_size,
        )
    return in_step(backbone, args)


def in_step(backbone: Backbone, args: UniGameConfig) -> InStep:
    """Idle passes of a sharded model."""

    def total(wishes: Tensor) -> Tensor:
        wishes = wishes.to(args.device)
        distributed.all_reduce(wishes)
        return wishes.cpu()

    def read_nothing() -> None:
        side = backbone.facts.image_size
        backbone.embed_images(torch.zeros(1, 3, side, side, device=args.device))

    def reply_nothing() -> None:
        backbone.reply(["."], max_new_tokens=1)

    passes = [Pass(backbone.language_model, reply_nothing)]  # type: ignore[arg-type]
    if shards_vision(args):
        passes += [Pass(tower, read_nothing) for tower in backbone.frozen_towers()]
    return InStep(passes, total)


def lora_layers(module: nn.Module) -> Iterator[nn.Module]:
    """All layers of each list of which some carry LoRA: the language model's blocks."""
    return _layers(module, _carries_lora)


def _layers(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """The layers of each outermost list that is wanted."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and wanted(child):
            for layer in child:
                if type(layer).forward is nn.Module.forward:  # never called as a whole
                    yield from _layers(layer, wanted)
                else:
                    yield layer
        else:
            yield from _layers(child, wanted)


def vision_layers(backbone: Backbone) -> list[nn.Module]:
    """All layers of the vision transformers.

    Raises:
        UserError: the family has none.
    """
    found = [
        layer for tower in backbone.frozen_towers() for layer in _layers(tower, lambda _: True)
    ]
    if not found:
        raise UserError(
            f"shard_frozen='language+vision': family {backbone.facts.family!r} has no vision "
            "transformer; set shard_frozen=language"
        )
    return found


def _carries_lora(module: nn.Module) -> bool:
    return any("lora_" in name for name, _ in module.named_parameters())


def loading_device(args: UniGameConfig) -> torch.device:
    """Where weights are read to: a model to be sharded may be too large for one GPU."""
    return torch.device("cpu") if shards(args) else args.device
