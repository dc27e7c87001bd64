"""Whether a run does what it was asked for: refused, warned of or said at its end, never silent.

Without replay the game is plain fine-tuning with an expensive side show: C plays, its attack
succeeds, and U never sees what it drew. What can be counted before a model is loaded is refused
(``require_work``); what only shows in the run is warned of once (``Watch``); how much was replayed
stands in the closing lines (``ReplayTally``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from unigame.data.kinds import kinds_of
from unigame.errors import UserError
from unigame.training.config import UniGameConfig

if TYPE_CHECKING:
    from unigame.training.batches import StepCounts
    from unigame.training.game_state import GameState

logger = logging.getLogger(__name__)
FEW_CANDIDATES = 64  # of so many, tau lets some pass: if none did, something else refused them
IDLE_STEPS = 10  # at the start of a run, after which it is plain that nothing can be learnt


def warn(text: str) -> None:
    """One line on standard error, and in the log of whoever collects one."""
    logger.warning("unigame: warning: %s", text)


@dataclass
class ReplayTally:
    """What became of the candidates of a run, on one process or on all of them.

    Attributes:
        candidates: offered to the buffer.
        accepted: of them, hard and still faithful.
        replayed: hard samples that U learned from, repeats included.
        learned: hard samples that left the buffer because U read them right.
        held: hard samples in the buffer now.
    """

    candidates: int = 0
    accepted: int = 0
    replayed: int = 0
    learned: int = 0
    held: int = 0

    def summed(
        self, sum_over_ranks: Callable[[Tensor], Tensor], device: torch.device
    ) -> ReplayTally:
        """The tally of all processes; every one of them must ask."""
        values = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=device)
        return ReplayTally(*(int(value) for value in sum_over_ranks(values).tolist()))

    def summary(self, args: UniGameConfig) -> str:
        """One sentence for the end of a run."""
        if self.replayed:
            left = f"; {self.learned} were learned and left the buffer" if self.learned else ""
            return f"Replay: U learned from {self.replayed} hard samples{left}."
        return f"Replay never happened, so this was plain fine-tuning: {self.why_not(args)}."

    def why_not(self, args: UniGameConfig) -> str:
        """What replay is waiting for."""
        if not self.candidates:
            return "no candidate was drawn; has the data answers?"
        if not self.accepted:
            return (
                f"none of {self.candidates} candidates was accepted; see clip_floor="
                f"{args.clip_floor} and similarity={args.similarity}"
            )
        return (
            f"the buffer holds {self.held} samples of {self.accepted} accepted ones and replay "
            f"needs buffer_min_size={args.resolved_min_size}"
        )


# ---- before the model ----------------------------------------------------------------------------
def require_work(args: UniGameConfig, dataset: Any) -> None:
    """Refuse data on which the settings leave nothing to learn, or nothing to replay.

    Costs no picture with our readers. Streams, and rows beyond the first thousand of a dataset
    that gives no texts without pictures, are left to ``Watch``.

    Raises:
        UserError: no row can be learnt from; C plays and no row has an answer; the buffer can never
            hold ``buffer_min_size`` samples.
    """
    cap = args.buffer_per_source if args.plays and args.buffer else None
    enough = 1 if cap is None else math.ceil(args.resolved_min_size / cap)
    kinds = kinds_of(dataset, enough)
    if kinds is None or not kinds.whole or not kinds.rows:
        return
    if not kinds.answered:
        _refuse_without_answers(args, kinds.rows)
    if cap is not None and kinds.named and kinds.answered < enough:
        raise UserError(
            f"replay could never start: of {kinds.answered} rows with an answer, "
            f"buffer_per_source={cap} lets {kinds.answered * cap} samples into the buffer, and "
            f"replay needs buffer_min_size={args.resolved_min_size}; lower it, raise "
            "buffer_per_source, or give more rows"
        )


def _refuse_without_answers(args: UniGameConfig, rows: int) -> None:
    if args.generation_weight == 0:
        raise UserError(
            f"generation_weight=0 leaves nothing to learn: none of {rows} rows has an answer, and "
            "captions train only with a weight; set generation_weight=1, or give questions and "
            "answers"
        )
    if args.plays:
        raise UserError(
            f"challenge_every={args.challenge_every} leaves C nothing to attack: none of {rows} "
            "rows has an answer; set challenge_every=0 to learn from captions alone, or give "
            "questions and answers"
        )


def offered_at_most(args: UniGameConfig, steps: int) -> int:
    """Candidates that mining can offer to one process in so many optimizer steps."""
    challenges = math.ceil(steps / args.challenge_every)
    minings = math.ceil(challenges / args.mine_every) * args.gradient_accumulation_steps
    drawn = math.ceil(args.challenge_share * args.per_device_train_batch_size)
    return minings * drawn * args.num_candidates


def _check_warm_up_of_c(args: UniGameConfig, steps: int) -> None:
    if args.perturber_warmup_steps == 0:
        return
    if args.perturber_lr_scheduler_type == "constant":
        warn(
            f"perturber_warmup_steps={args.perturber_warmup_steps} acts on nothing: the schedule "
            "'constant' has no warm-up; set perturber_lr_scheduler_type=constant_with_warmup"
        )
    elif args.perturber_warmup_steps >= steps:
        warn(
            f"perturber_warmup_steps={args.perturber_warmup_steps} is as long as the run of "
            f"{steps} steps: C never reaches perturber_learning_rate={args.perturber_learning_rate}"
        )


# ---- while it runs -------------------------------------------------------------------------------
class Watch(TrainerCallback):
    """Says once, as soon as it is plain, that a part of the run does nothing.

    Args:
        game: the game that is played; None for plain fine-tuning.
        dataset: what is learned from.
    """

    def __init__(self, game: GameState | None, dataset: Any = None) -> None:
        self.game = game
        self.dataset = dataset
        self._told_of_acceptance = self._told_of_replay = False
        self._idle = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What the settings say of a run of this length."""
        if not state.is_world_process_zero:
            return
        steps = state.max_steps
        if args.lr_scheduler_type != "constant" and args.get_warmup_steps(steps) >= steps:
            warn(
                f"U's warm-up of {args.get_warmup_steps(steps)} steps is as long as the run of "
                f"{steps}: learning_rate={args.learning_rate} is never reached; lower warmup_steps"
            )
        if args.generation_weight > 0:
            kinds = kinds_of(self.dataset, captions=True)
            if kinds is not None and kinds.whole and not kinds.captioned:
                warn(
                    f"generation_weight={args.generation_weight} acts on nothing: none of "
                    f"{kinds.rows} rows has a caption"
                )
        if self.game is not None:
            self._check_game(args, steps)

    def _check_game(self, args: UniGameConfig, steps: int) -> None:
        assert self.game is not None
        if self.game.optimizer is not None:
            _check_warm_up_of_c(args, steps)
        most = offered_at_most(args, steps) + self.game.tally.held
        if args.buffer and most < args.resolved_min_size:
            self._told_of_replay = True
            warn(
                f"this run is too short to replay anything: its {steps} steps offer the buffer "
                f"{most} candidates at most, and buffer_min_size={args.resolved_min_size}"
            )
        if args.beta == 0:
            warn("beta=0: hard samples are replayed and weigh nothing")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Candidates that are never accepted, and replay that does not begin."""
        if self.game is None or not state.is_world_process_zero:
            return
        tally = self.game.tally
        if tally.candidates >= FEW_CANDIDATES and not tally.accepted:
            if not self._told_of_acceptance:
                self._told_of_acceptance = True
                warn(f"nothing can be replayed: {tally.why_not(args)}")
        elif state.global_step == math.ceil(state.max_steps / 10) and not tally.replayed:
            if self._told_of_replay:
                return
            warn(
                f"no hard sample was replayed in {state.global_step} of {state.max_steps} steps: "
                f"{tally.why_not(args)}"
            )

    def saw(self, counts: StepCounts, generation_weight: float) -> None:
        """Count the first steps in which no row could be learnt from.

        Raises:
            UserError: the run began with ``IDLE_STEPS`` of them.
        """
        if counts.answers or (counts.captions and generation_weight > 0):
            self._idle = -1  # it has begun to learn
        elif self._idle >= 0:
            self._idle += 1
        if self._idle >= IDLE_STEPS:
            raise UserError(
                f"{self._idle} steps without a row to learn from: with generation_weight="
                f"{generation_weight:g} rows that have only a caption train nothing; set "
                "generation_weight=1, or give questions and answers"
            )
