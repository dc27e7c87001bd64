"""Which rows an epoch has, on every rank and after every resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from unigame.errors import UserError


class EpochOfData(TrainerCallback):
    """Tell the data set, and what orders it, which epoch begins.

    accelerate's data loader does so only where no sampler below it takes the epoch itself. On
    several ranks, and where a resumed epoch skips its first batches, there is one, and a mixture
    would stay at epoch 0.

    Args:
        data: those with ``set_epoch``, such as ``Mixture``, are told; any other is left alone.
    """

    def __init__(self, *data: Any) -> None:
        self.data = list(data)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the loader's workers, if any, get their copy of the dataset."""
        for one in self.data:
            if hasattr(one, "set_epoch"):
                # A resumed run begins within its epoch; a finished one may end a rounding below 1.
                one.set_epoch(int((state.epoch or 0) + 1e-6))


def require_rows(dataset: Any) -> None:
    """Refuse what no loader can count or draw rows from; None is left to the Trainer.

    Raises:
        UserError: no rows, a single record, a path, or an iterator without a length.
    """
    if dataset is None or isinstance(dataset, IterableDataset):
        return
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping | str | bytes | Path):
        raise UserError(
            f"train_dataset is one {kind}; give a list of records, or build_dataset([...]) of files"
        )
    if hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"train_dataset is a {kind} without a length; make a list of it, or a torch "
            "IterableDataset"
        )
    if hasattr(dataset, "__len__") and not len(dataset):
        raise UserError(f"train_dataset ({kind}) has 0 rows; give at least one")


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
