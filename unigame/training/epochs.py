"""Which rows an epoch has, on every rank and after every resume."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from unigame.errors import UserError


class EpochOfData(TrainerCallback):
    """Tell the dataset which epoch begins.

    accelerate's data loader does so only where no sampler below it takes the epoch itself. On
    several ranks, and where a resumed epoch skips its first batches, there is one, and a mixture
    would stay at epoch 0.

    Args:
        dataset: one with ``set_epoch``, such as ``Mixture``; any other is left alone.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the loader's workers, if any, get their copy of the dataset."""
        if hasattr(self.dataset, "set_epoch"):
            # A resumed run begins within its epoch; a finished one may end a rounding below 1.
            self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


def require_map_style(dataset: Any, world_size: int) -> None:
    """Streams are for one process: accelerate would merge their batches, which hold texts.

    Raises:
        UserError: an iterable dataset with several processes.
    """
    if isinstance(dataset, IterableDataset) and world_size > 1:
        raise UserError(
            f"train_dataset is a stream ({type(dataset).__name__}) and there are {world_size} "
            "processes; give a dataset with a length, or train on one"
        )
