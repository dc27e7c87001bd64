"""Frozen weights in shards over the processes (FSDP2), so that a model need not fit on one GPU.

    frozen layers of the      ``fully_shard``: each process holds 1 / world_size of them, and a
    language model            layer is whole only while it computes
    LoRA, C                   whole on every process; DDP averages LoRA's gradients
    vision, image tokenizer,  whole on every process
    heads, embeddings

Nearly all memory of a large model is in those layers, and they have no gradient and no optimizer.
What learns is small. So it is left to DDP as in any other run: losses and updates are those of DDP,
and a checkpoint is the same files, which any run reads, sharded or not, on one process or several.

A sharded layer is gathered by all processes together. So all must run equally many passes through
the language model, in one order: a method says by ``Method.uneven_passes`` where they do not, and
such a run is refused instead of waiting for ever. Texts that are decoded end at different
lengths; who is done first runs on with the others (``Backbone.still_decoding``). Sources: Zhao et
al., PyTorch FSDP (arXiv 2304.11277); ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.training.config import UniGameConfig
from unigame.training.identity import sample_digest
from unigame.training.ranks import any_rank

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
NO_MAP = "the frozen weights are sharded, and the map is made by one process alone"


def shards(args: UniGameConfig) -> bool:
    """Whether this run shards: it is asked for, and there is more than one process."""
    return args.shard_frozen != "none" and args.world_size > 1


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


def shard_frozen(backbone: Backbone, args: UniGameConfig) -> None:
    """Shard the frozen layers of the language model, in place. Every process must call it.

    The weights may be on the CPU: layers move to the device one by one.

    Args:
        backbone: with its adapter.
        args: settings of the run.

    Raises:
        UserError: there is no list of layers that carry LoRA; their weights are quantised.
    """
    if args.shard_frozen == "none":
        return
    if not shards(args):
        logger.warning("shard_frozen=%s changes nothing: there is one process", args.shard_frozen)
        return
    layers = list(lora_layers(backbone))
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
    backbone.still_decoding = partial(any_rank, args.device)
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


def lora_layers(module: nn.Module) -> Iterator[nn.Module]:
    """All layers of each list of which some carry LoRA: the language model's blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and _carries_lora(child):
            for layer in child:
                if type(layer).forward is nn.Module.forward:  # never called as a whole
                    yield from lora_layers(layer)
                else:
                    yield layer
        else:
            yield from lora_layers(child)


def _carries_lora(module: nn.Module) -> bool:
    return any("lora_" in name for name, _ in module.named_parameters())


def loading_device(args: UniGameConfig) -> torch.device:
    """Where weights are read to: a model to be sharded may be too large for one GPU."""
    return torch.device("cpu") if shards(args) else args.device
