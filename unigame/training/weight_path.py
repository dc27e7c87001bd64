"""The way of the LoRA weights through a run, for its picture in two dimensions.

    output_dir/dynamics/path.jsonl    {"step": 0, "start": [...]}, then {"step": n, "moved": [...]}

Kept is not a copy of the weights but a sketch S of them: every weight, with a random sign, is added
to one of ``SKETCH`` sums (Alon, Matias and Szegedy 1996; Weinberger et al. 2009). It keeps lengths
and angles to about 1 / sqrt(SKETCH), 9 %, which is enough for the two main directions of a path,
and takes 1 kB a point instead of a checkpoint. ``moved`` is S(w_n) - S(w_0). The signs depend on a
weight's name alone, so any run of the same adapter draws the same path, and the global random state
stays as it is.

At most ``POINTS`` points are kept. Each costs one pass over the adapter: 5 ms for the bundled model
on one core, under 1 % of its steps, and half a second for the 40 M of Janus-Pro-7B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from unigame.seeds import derive_seed
from unigame.system.say import warn

DYNAMICS, PATH_FILE = "dynamics", "path.jsonl"
SKETCH, POINTS = 128, 128
NO_LORA = "no LoRA weight was trained, and the path is that of LoRA weights"


class WeightPath(TrainerCallback):
    """Takes down where the LoRA weights are, at equal distances of steps. First process only.

    A resumed run goes on with what its folder holds up to the checkpoint's step.

    Args:
        model: its weights with ``lora_`` in their names are followed; there may be none.

    Attributes:
        why_not: the reason, where nothing is taken down.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.why_not = ""
        self._file: Path | None = None
        self._start_S = torch.zeros(SKETCH, dtype=torch.float64)
        self._every = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first point, or those of the run that goes on."""
        if not state.is_world_process_zero:
            return
        if not lora_weights(self.model):
            self.why_not = NO_LORA
            return
        self._every = max(1, math.ceil(state.max_steps / POINTS))
        self._file = Path(args.output_dir) / DYNAMICS / PATH_FILE
        kept = [] if state.global_step == 0 else _read(self._file, state.global_step)
        if kept:
            self._start_S = torch.tensor(kept[0]["start"], dtype=torch.float64)
        else:
            self._start_S = sketch(self.model)
            kept = [{"step": state.global_step, "start": self._start_S.tolist()}]
        self._write(kept, "w")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next point, where one is due."""
        step = state.global_step
        if self._file is None or (step % self._every and step != state.max_steps):
            return
        moved_S = sketch(self.model) - self._start_S
        self._write([{"step": step, "moved": [float(f"{x:.6g}") for x in moved_S.tolist()]}], "a")

    def _write(self, points: Sequence[dict[str, Any]], mode: str) -> None:
        assert self._file is not None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(point) + "\n" for point in points)
        except OSError as error:  # the picture alone is lost
            self.why_not, self._file = f"it could not be written ({error})", None
            warn(f"the report will have no path of the weights: {error}")


def lora_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and values of the LoRA weights that learn."""
    named = model.named_parameters()
    return [(name, w.detach()) for name, w in named if w.requires_grad and "lora_" in name]


def sketch(model: nn.Module) -> Tensor:
    """S of the LoRA weights: (SKETCH,), float64, on the CPU."""
    total_S: Tensor | None = None
    for name, weight in lora_weights(model):
        generator = torch.Generator().manual_seed(derive_seed(0, "path", name))
        signs = torch.empty(weight.numel(), dtype=torch.int8).random_(0, 2, generator=generator)
        signed = weight.flatten().double() * signs.mul_(2).sub_(1).to(weight.device)
        padded = nn.functional.pad(signed, (0, -len(signed) % SKETCH))
        sum_S = padded.view(-1, SKETCH).sum(0)
        total_S = sum_S if total_S is None else total_S + sum_S.to(total_S.device)
    return torch.zeros(SKETCH, dtype=torch.float64) if total_S is None else total_S.cpu()


def _read(file: Path, step: int) -> list[dict[str, Any]]:
    """The points up to a step; none where the start is missing or of another size.

    A run that is killed may leave its last line cut in two: what stands before it holds.
    """
    points: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        for line in file.read_bytes().splitlines():
            point = json.loads(line)
            if point["step"] <= step:
                points.append(point)
    start = points[0].get("start") if points else None
    return points if isinstance(start, list) and len(start) == SKETCH else []
