"""The trackers of ``report_to``: the package that each needs, and pictures in three of them.

Figures reach every tracker by transformers' own callbacks. Pictures reach TensorBoard, W&B and
trackio, by the writer that transformers' callback has opened, so that they lie in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from unigame.errors import UserError
from unigame.methods.base import Shown
from unigame.system.say import warn
from unigame.training.config import UniGameConfig

EXTRAS = (
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)
"""Trackers that ``pip install 'unigame[NAME]'`` brings; the others belong to a platform."""
TAG = "examples"
SMALLEST = 128  # pixels: smaller pictures are enlarged, by whole numbers
GAP = 4  # white pixels between the pictures of a strip


def require_trackers(args: UniGameConfig) -> None:
    """Refuse a tracker whose package is not here, before data and weights are read.

    Raises:
        UserError: naming it, and what installs it.
    """
    installed = get_available_reporting_integrations()
    for name in args.report_to or []:
        # transformers has no test for flyte's package in that list; its callback makes one.
        if name in installed or name == "flyte" and _has("flytekit"):
            continue
        found = ", ".join(installed) or "none of them"
        fix = f"pip install 'unigame[{name}]'" if name in EXTRAS else "install it as its page says"
        raise UserError(
            f"report_to={name!r}: the package of this tracker is not installed (installed: "
            f"{found}); {fix}, or set report_to=none"
        )


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


class GalleryCallback(TrainerCallback):
    """Sends the pictures that methods make to the trackers of the run that take pictures.

    It stands before the trackers' own callbacks, so that a run's last pictures still find them
    open: ``finish`` is called as training ends, and not where it was stopped by a signal.

    Args:
        callbacks: those of the trainer, in which the trackers' are looked for.
        finish: makes the last pictures.
    """

    def __init__(
        self,
        callbacks: Callable[[], Sequence[TrainerCallback]],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.callbacks, self.finish = callbacks, finish

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The methods end before the trackers do."""
        self.finish()

    def show(self, step: int, shown: Sequence[Shown]) -> None:
        """Log pictures, one strip each. A tracker that fails costs the run nothing but them.

        Args:
            step: optimizer steps done.
            shown: what to log.
        """
        for callback in self.callbacks() if shown else ():
            for kind, send in _SENDERS.items():
                if isinstance(callback, kind):
                    try:
                        send(callback, step, shown)
                    except Exception as error:  # of someone else's service
                        reason = " ".join(str(error).split()) or type(error).__name__
                        warn(f"{kind.__name__} did not take the pictures of step {step}: {reason}")


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, on white."""
    width, height = pictures[0].size
    times = max(1, -(-SMALLEST // height))
    size = (width * times, height * times)
    whole = Image.new("RGB", (len(pictures) * (size[0] + GAP) - GAP, size[1]), "white")
    for place, picture in enumerate(pictures):
        large = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
        whole.paste(large, (place * (size[0] + GAP), 0))
    return whole


def _to_tensorboard(callback: TensorBoardCallback, step: int, shown: Sequence[Shown]) -> None:
    writer = callback.tb_writer
    if writer is None:
        return
    for number, one in enumerate(shown):
        tag = f"{TAG}/{number:02}"
        writer.add_image(tag, np.asarray(strip(one.pictures)), step, dataformats="HWC")
        writer.add_text(tag, one.caption, step)
    writer.flush()


def _to_wandb(callback: WandbCallback, step: int, shown: Sequence[Shown]) -> None:
    wandb = callback._wandb
    if wandb is None or wandb.run is None:
        return
    images = [wandb.Image(strip(one.pictures), caption=one.caption) for one in shown]
    # transformers' callback counts steps by this figure, too.
    wandb.log({TAG: images, "train/global_step": step})


def _to_trackio(callback: TrackioCallback, step: int, shown: Sequence[Shown]) -> None:
    trackio = callback._trackio
    images = {  # it takes no list of pictures
        f"{TAG}/{number:02}": trackio.Image(strip(one.pictures), caption=one.caption)
        for number, one in enumerate(shown)
    }
    trackio.log({**images, "train/global_step": step})


_SENDERS: dict[type, Callable[[Any, int, Sequence[Shown]], None]] = {
    TensorBoardCallback: _to_tensorboard,
    WandbCallback: _to_wandb,
    TrackioCallback: _to_trackio,
}
