"""What is looked at before every update of U: is all finite, and is the run asked to end?

transformers' ``logging_nan_inf_filter`` puts the mean of earlier losses in the place of a NaN, and
Adam makes every weight NaN from one such gradient: a run that diverged looks perfect. Here the
first loss or gradient norm that is not finite, on any process, ends the run before the update.
All that the processes have to agree on goes through one reduction a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from unigame.errors import Diverged
from unigame.system.signals import StopRequest


class EvaluationCut(Exception):
    """The run is asked to end while it evaluates."""


class StepGuard(TrainerCallback, ExportableState):
    """Ends a run that diverges or is asked to end; keeps the mean loss of all its steps.

    Args:
        device: of the losses.
        reduce: sums a tensor over processes.
        processes: how many there are.

    Attributes:
        request: whether this process is asked to end.
        stopping: whether the run ends with this step; the same on every process.
        loss_sum: of the losses of all steps since step 0, resumed ones too.
        counted: how many steps these are.
    """

    def __init__(
        self, device: torch.device, reduce: Callable[[Tensor], Tensor], processes: int
    ) -> None:
        self.device = device
        self.reduce = reduce
        self.processes = processes
        self.request = StopRequest()
        self.stopping = False
        self.loss_sum, self.counted = 0.0, 0
        self._loss: Tensor | None = None  # of this step so far, in float64
        self._norm = 0.0
        self._before: list[Tensor] = []  # U's weights before its latest update, on the CPU

    NOTHING: ClassVar[dict[str, Any]] = {
        "args": {},
        "attributes": {"loss_sum": 0.0, "counted": 0},
    }

    # ---- what the trainer tells ----------------------------------------------------------------
    def saw_loss(self, loss: Tensor) -> None:
        """A pass's part of this step's loss; nothing is transferred yet."""
        part = loss.detach().to(torch.float64)
        self._loss = part if self._loss is None else self._loss + part

    def saw_norm(self, norm: Tensor | float | None) -> None:
        """U's gradient norm of this step, before clipping."""
        self._norm = 0.0 if norm is None else float(norm)

    # ---- what happens then ---------------------------------------------------------------------
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on with the checkpoint's sums; log, save and evaluate as often as this run says."""
        state.compute_steps(args, state.max_steps)
        self.stopping, self._loss = False, None
        self.restore(state)

    def restore(self, state: Any) -> None:
        """Take the sums from a Trainer's state; a run's first has zeros."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, StepGuard.NOTHING)
        for name, value in saved["attributes"].items():
            setattr(self, name, value)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge the step before it moves U.

        Raises:
            Diverged: on every process, if one of them saw what is not finite.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        loss, self._loss = zero if self._loss is None else self._loss, None
        mine = [float(not math.isfinite(self._norm)), float(bool(self.request))]
        facts = torch.cat([loss.reshape(1), zero.new_tensor(mine)])
        total, bad_norms, asked = self.reduce(facts).tolist()
        if bad_norms or not math.isfinite(total):
            name, value = ("loss", total) if not math.isfinite(total) else ("norm", self._norm)
            what = "the loss" if name == "loss" else "U's gradient norm"
            raise Diverged(
                f"{what} is {value} at step {state.global_step + 1} of {state.max_steps} "
                f"(learning_rate={args.learning_rate:g}); the run stops before this update: lower "
                "learning_rate or the weights of methods, or look for a sample that the model "
                "cannot take"
            )
        self.loss_sum += total / self.processes
        self.counted += 1
        self.stopping = asked > 0
        self._before = [weight.detach().cpu().clone() for weight in _moving(kwargs.get("model"))]

    def undo_last_update(self, model: nn.Module) -> bool:
        """Give U the weights from before its latest update; False where there was none."""
        if not self._before:
            return False
        with torch.no_grad():
            for weight, before in zip(_moving(model), self._before, strict=True):
                weight.copy_(before)
        return True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked to end: write a checkpoint of this step and leave, without evaluating first."""
        if self.stopping or (self.processes == 1 and self.request):
            self.stopping = True
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asked to end during an evaluation: it may take longer than a scheduler waits.

        Raises:
            EvaluationCut: on one process; several finish their evaluation together.
        """
        if self.request and self.processes == 1:
            raise EvaluationCut

    def anyone_asked(self) -> bool:
        """Whether a process is asked to end; called on all alike."""
        mine = torch.tensor([float(bool(self.request))], device=self.device)
        return float(self.reduce(mine)) > 0

    @property
    def mean_loss(self) -> float:
        """Over all steps of the run; NaN if there was none."""
        return self.loss_sum / self.counted if self.counted else math.nan

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this, in ``trainer_state.json``."""
        return {"args": {}, "attributes": {"loss_sum": self.loss_sum, "counted": self.counted}}


def _moving(model: nn.Module | None) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad] if model else []


def require_finite(named: Any, what: str, rate: str = "learning_rate") -> None:
    """Refuse to keep weights that are not finite, or so large that nothing made of them is.

    Judged by the sum of squares in float32: it overflows where a weight is above 1e19.

    Args:
        named: pairs of name and tensor.
        what: whose they are: "U", or a method.
        rate: the setting that is their learning rate.

    Raises:
        Diverged: naming the first such tensor.
    """
    for name, weight in named:
        if not bool(torch.isfinite(weight.detach().float().square().sum())):
            largest = float(weight.detach().abs().max())
            raise Diverged(
                f"{what}'s weight {name} is not finite or too large (up to {largest:.3g}); lower "
                f"{rate}, and go on from a checkpoint of before"
            )
