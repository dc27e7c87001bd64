"""In which order items are asked, how many at once, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psutil
import torch

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.evaluation.base import Item, Task
from unigame.system.at_once import AtOnce, is_out_of_memory

R = TypeVar("R")
T = TypeVar("T")

MOST_ANSWERS, MOST_DRAWINGS = 64, 32
_TEXT_TOKENS = 192
"""Room for a question with options and its answer, in tokens."""


def in_order(items: Sequence[Item]) -> list[Item]:
    """Items of one cluster together, shortest prompts first: little padding, shared pictures.

    The order of equally long prompts is the dataset's, so it is the same in every run.
    """
    groups: dict[str, list[Item]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.cluster or f"\0{number}", []).append(item)
    ordered = sorted(groups.values(), key=lambda group: max(len(item.prompt) for item in group))
    return [item for group in ordered for item in sorted(group, key=lambda i: len(i.prompt))]


def in_batches(items: Sequence[Item], size: BatchSize) -> Iterator[list[Item]]:
    """Batches of the size that is allowed at that moment; a cluster is split only if it must be."""
    start = 0
    while start < len(items):
        stop = min(start + size.value, len(items))
        cluster = items[stop - 1].cluster
        if cluster and stop < len(items) and items[stop].cluster == cluster:
            first = stop
            while first > start and items[first - 1].cluster == cluster:
                first -= 1
            stop = first if first > start else stop
        yield list(items[start:stop])
        start = stop


class BatchSize(AtOnce):
    """Rows per batch; halved for the rest of the run when memory did not suffice."""

    def each(self, rows: Sequence[R], work: Callable[[Sequence[R]], list[T]]) -> list[T]:
        """See ``AtOnce.each``.

        Raises:
            UserError: a single row does not fit.
        """
        try:
            return super().each(rows, work)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise UserError(
            "out of memory with a batch of one; use --dtype bfloat16, a device with more memory, "
            "or close what else runs there"
        )


def automatic_size(backbone: Backbone, task: Task, pictures: int = 1) -> int:
    """A batch size that should fit into half of the memory that is free now.

    Args:
        backbone: the model.
        task: drawings need two rows each, for guidance.
        pictures: the most pictures that one question shows.
    """
    facts = backbone.facts
    most = MOST_ANSWERS if task == "answer" else MOST_DRAWINGS
    # A picture may be drawn in more tokens than it is read in: BAGEL's at 1024 px.
    drawn = max(facts.num_image_tokens, facts.state_tokens)
    tokens = (pictures * facts.num_image_tokens if task == "answer" else drawn) + _TEXT_TOKENS
    element = torch.finfo(facts.dtype).bits // 8
    row = tokens * numbers_of_a_token(backbone) * element * (1 if task == "answer" else 2)
    fitting = max(1, _free_bytes(backbone.device) // 2 // row)
    return min(most, 1 << (fitting.bit_length() - 1))


def numbers_of_a_token(backbone: Backbone) -> int:
    """Numbers that the language model holds for a token at the most: cache and activations."""
    facts, config = backbone.facts, _language_config(backbone)
    hidden = facts.hidden_size
    # Without a config: twelve H^2 weights a layer are the rule for transformers; it overestimates
    # the layers where towers and vocabulary weigh much, which errs on the safe side.
    layers = _whole(config, "num_hidden_layers") or max(1, facts.num_parameters // (12 * hidden**2))
    heads = _whole(config, "num_attention_heads")
    groups = _whole(config, "num_key_value_heads") or heads
    width = _whole(config, "head_dim") or hidden // (heads or 1)
    kept = 2 * layers * (groups * width or hidden)  # keys and values
    # Of one layer, while it reads the prompts: the stream and its norm, query, key, value and what
    # was attended, and gate, value and product of the MLP.
    passing = 6 * hidden + 3 * (_whole(config, "intermediate_size") or 4 * hidden)
    return 2 * kept + passing  # keys and values are there twice while they grow by a token


def _language_config(backbone: Backbone) -> object:
    """The language model's config; None where the family does not show one."""
    config: Any = getattr(getattr(backbone, "language_model", None), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _whole(config: object, name: str) -> int:
    """A size of the config; 0 where it has none, or one for each layer."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # torch's own reserve is free, too
    return int(psutil.virtual_memory().available)
