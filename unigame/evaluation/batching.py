"""In which order items are asked, how many at once, and what happens when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil
import torch

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.evaluation.base import Item, Task

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


class BatchSize:
    """Rows per batch; halved for the rest of the run when memory did not suffice."""

    def __init__(self, value: int) -> None:
        self.value = value

    def each(self, rows: Sequence[R], ask: Callable[[Sequence[R]], list[T]]) -> list[T]:
        """``ask`` for all rows, in parts of this size; a part that is too large is asked in halves.

        Raises:
            UserError: a single row does not fit.
        """
        done: list[T] = []
        while len(done) < len(rows):
            part = rows[len(done) : len(done) + self.value]
            try:
                done += ask(part)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, when the exception and the tensors in its frames are gone, is memory free.
            if len(part) == 1:
                raise UserError(
                    "out of memory with a batch of one; use --dtype bfloat16, a device with more "
                    "memory, or close what else runs there"
                )
            self.value = len(part) // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory, rather than something being wrong."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def automatic_size(backbone: Backbone, task: Task, pictures: int = 1) -> int:
    """A batch size that should fit into half of the memory that is free now.

    Args:
        backbone: the model.
        task: drawings need two rows each, for guidance.
        pictures: the most pictures that one question shows.
    """
    facts = backbone.facts
    most = MOST_ANSWERS if task == "answer" else MOST_DRAWINGS
    # Twelve H^2 weights a layer are the rule for transformers; it overestimates the layers where
    # towers and vocabulary weigh much, which errs on the safe side.
    layers = max(1, facts.num_parameters // (12 * facts.hidden_size**2))
    tokens = pictures * facts.num_image_tokens + _TEXT_TOKENS
    element = torch.finfo(facts.dtype).bits // 8
    # Keys and values, as much again while they grow by a token, and the activations beside them.
    row = 2 * layers * tokens * facts.hidden_size * element * 3 * (1 if task == "answer" else 2)
    fitting = max(1, _free_bytes(backbone.device) // 2 // row)
    return min(most, 1 << (fitting.bit_length() - 1))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # torch's own reserve is free, too
    return int(psutil.virtual_memory().available)
