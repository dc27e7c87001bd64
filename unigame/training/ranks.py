"""Sums and means over the processes of a run, errors that all of them share, and their noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed
from transformers import TrainerCallback

from unigame.errors import UserError
from unigame.seeds import derive_seed

T = TypeVar("T")


def _on_numbered_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None


# accelerate numbers the CPUs of several processes, and transformers loads an optimizer onto
# "cpu:0", which torch before 2.13 does not know.
torch.serialization.register_package(17, lambda storage: None, _on_numbered_cpu)


def launched_processes() -> int:
    """How many processes the launcher says that this run has; 1 without a launcher.

    Raises:
        UserError: ``WORLD_SIZE`` says several, but nothing says which of them this one is.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit():
        raise UserError(f"WORLD_SIZE={text!r} is no number of processes; unset it, or use torchrun")
    if int(text) > 1 and not {"RANK", "LOCAL_RANK"} & os.environ.keys():
        raise UserError(
            f"WORLD_SIZE={text} with neither RANK nor LOCAL_RANK: this is one process; start all "
            "of them with torchrun, or unset WORLD_SIZE"
        )
    return int(text)


def require_processes(launched: int, found: int) -> None:
    """Refuse a run of several processes that do not know of each other.

    Raises:
        UserError: each would train a model of its own and write it into the same folder.
    """
    if launched > 1 and found == 1:
        raise UserError(
            f"WORLD_SIZE={launched}, but the processes are not connected, so each would train "
            "alone; start them with torchrun, and set use_cpu=true where there is no GPU"
        )


class OwnNoise(TrainerCallback):
    """Each process but the first draws from torch generators of its own as soon as a run begins.

    With the run's seed on all of them, the rows of a step would share their dropout, and where
    drawing is learned by noise also the noise and its level: of W processes with one row each,
    every step would see one level in the place of W. What must be equal is made by then (LoRA's
    first weights) or has a seed of its own (the order of the data). Python's and numpy's generators
    stay as they are. A checkpoint keeps each process's states, which are loaded after this.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seed this process."""
        if args.process_index > 0:
            torch.manual_seed(derive_seed(args.seed, "rank", args.process_index))


def sum_over_ranks(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum over all processes; on one, the values themselves."""
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values, reduction="sum")


def average_over_ranks(accelerator: Accelerator, gradients: list[Tensor]) -> None:
    """The mean of each gradient over all processes, in place and in one collective."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = sum_over_ranks(accelerator, flat) / accelerator.num_processes
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_from_ranks(accelerator: Accelerator, values_E: Tensor) -> Tensor:
    """The values of all processes, one after another; each may hold another number of them.

    They are padded with NaN, so who takes them must leave out what is not finite.
    """
    if accelerator.num_processes == 1:
        return values_E
    padded_E = accelerator.pad_across_processes(values_E, pad_index=float("nan"))
    return accelerator.gather(padded_E)


def agreed(work: Callable[[], T]) -> T:
    """``work`` on every process; what one of them refuses, all of them refuse.

    Without this a process whose data or checkpoint is bad leaves, and the others wait for it.

    Raises:
        UserError: the first process's that met one, on all.
    """
    result, error = None, None
    try:
        result = work()
    except UserError as refused:
        if not _several():
            raise
        error = refused
    if _several():
        found: list[str | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, None if error is None else str(error))
        for rank, text in enumerate(found):
            if text is not None:
                raise UserError(text if rank == 0 else f"process {rank}: {text}") from error
    return result  # type: ignore[return-value]


def from_rank_zero(work: Callable[[], T]) -> T:
    """What ``work`` gives, or refuses, on the first process, without doing it on the others."""
    if not _several():
        return work()
    first = distributed.get_rank() == 0
    told: list[Any] = [agreed(lambda: work() if first else None)]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def _several() -> bool:
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1
