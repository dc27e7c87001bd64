"""One rank of a run in which only the second one is asked to end, or meets a NaN."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.training.helpers import Records, make_trainer
from unigame.errors import UserError
from unigame.system.signals import Stopped
from unigame.training.trainer import UniGameTrainer

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 50,
    "max_steps": 4,
    "use_cpu": False,  # as typed by somebody who did not think of it
}


class SecondIsAsked(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class SecondIsBad(UniGameTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        bad = self.args.process_index == 1 and self.state.global_step == 1
        return super().compute_loss(*args, **kwargs) + (float("nan") if bad else 0.0)


def said(work: Any) -> str:
    try:
        work()
    except (UserError, Stopped) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    stopped = make_trainer(model, folder / "run", Records(16), **SETTINGS)
    stopped.add_callback(SecondIsAsked())
    found: dict[str, Any] = {"stopped": said(stopped.train), "ranks": stopped.args.world_size}
    resumed = make_trainer(model, folder / "run", Records(16), **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    straight = make_trainer(model, folder / "straight", Records(16), **SETTINGS)
    straight.train()
    found["losses"] = [one.guard.mean_loss for one in (resumed, straight)]
    weights = [one.backbone.trainable_parameters() for one in (resumed, straight)]
    found["equal"] = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    bad = make_trainer(model, folder / "bad", Records(16), kind=SecondIsBad, **SETTINGS)
    found["diverged"] = said(bad.train)
    other = make_trainer(model, folder / "other", Records(16), **SETTINGS, beta=0.1)
    checkpoint = str(folder / "run" / "checkpoint-2")
    found["refused"] = said(lambda: other.train(resume_from_checkpoint=checkpoint))
    (folder / f"rank{stopped.args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
