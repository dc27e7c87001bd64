"""Whether self-play does what it was asked for: warned of or said at the end, never silent.

Without replay the game is plain fine-tuning with an expensive side show: C plays, its attack
succeeds, and U never sees what it drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigame.methods.selfplay.inert import inert_in_short
from unigame.system.say import warn

if TYPE_CHECKING:
    from unigame.methods.selfplay.method import SelfPlay
    from unigame.methods.selfplay.settings import SelfPlaySettings

FEW_CANDIDATES = 64  # of so many, tau lets some pass: if none did, something else refused them


@dataclass
class ReplayTally:
    """What became of the candidates of a run, on one process or on all of them.

    Attributes:
        candidates: offered to the buffer.
        accepted: of them, hard and still faithful.
        replayed: hard samples that U learned from, repeats included.
        learned: hard samples that left the buffer because U read them right.
        held: hard samples in the buffer now.
        given_up: hard samples that left because of ``max_replays``.
    """

    candidates: int = 0
    accepted: int = 0
    replayed: int = 0
    learned: int = 0
    held: int = 0
    given_up: int = 0

    def summed(
        self, sum_over_ranks: Callable[[Tensor], Tensor], device: torch.device
    ) -> ReplayTally:
        """The tally of all processes; every one of them must ask."""
        values = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=device)
        return ReplayTally(*(int(value) for value in sum_over_ranks(values).tolist()))

    def summary(self, settings: SelfPlaySettings, batch_size: int, processes: int = 1) -> str:
        """One sentence for the end of a run of so many processes, each with a buffer."""
        if self.replayed:
            left = f"; {self.learned} were learned and left the buffer" if self.learned else ""
            if self.given_up:
                replays = (
                    "1 replay" if settings.max_replays == 1 else f"{settings.max_replays} replays"
                )
                left += f"; {self.given_up} left it after {replays} (max_replays)"
            return f"Replay: U learned from {self.replayed} hard samples{left}."
        why = self.why_not(settings, batch_size, processes)
        return f"Replay never happened, so this was plain fine-tuning: {why}."

    def why_not(self, settings: SelfPlaySettings, batch_size: int, processes: int = 1) -> str:
        """What replay is waiting for."""
        if not self.candidates:
            return "no candidate was drawn; has the data answers?"
        if not self.accepted:
            return (
                f"none of {self.candidates} candidates was accepted; see clip_floor="
                f"{settings.clip_floor}, similarity={settings.similarity} and "
                f"accept={settings.accept}"
            )
        buffers, each = "the buffer holds", ""
        if processes > 1:
            buffers, each = f"the buffers of {processes} processes together hold", " in each"
        return (
            f"{buffers} {self.held} samples of {self.accepted} accepted ones and replay "
            f"needs buffer_min_size={settings.min_size(batch_size)}{each}"
        )


def offered_at_most(settings: SelfPlaySettings, args: Any, steps: int) -> int:
    """Candidates that mining can offer to one process in so many optimizer steps."""
    challenges = math.ceil(steps / settings.challenge_every)
    minings = math.ceil(challenges / settings.mine_every) * args.gradient_accumulation_steps
    shares = [settings.challenge_share, *([settings.styled_share] if settings.styles else [])]
    drawn = sum(math.ceil(share * args.per_device_train_batch_size) for share in shares)
    return minings * drawn * settings.num_candidates


class Watch:
    """Says once, as soon as it is plain, that a part of the game does nothing."""

    def __init__(self, game: SelfPlay) -> None:
        self.game = game
        self._told_of_acceptance = self._told_of_replay = False

    def begin(self, max_steps: int) -> None:
        """What the settings say of a run of this length."""
        game, settings, args = self.game, self.game.settings, self.game.run.args
        if game.optimizer is not None:
            _check_warm_up_of_c(settings, max_steps)
        if settings.warm_up_steps >= max_steps:
            warn(
                f"warm_up_steps={settings.warm_up_steps} is as long as the run of {max_steps} "
                "steps: U never moves"
            )
        most = offered_at_most(settings, args, max_steps) + game.tally.held
        needed = settings.min_size(game.batch_size)
        if settings.buffer and most < needed:
            self._told_of_replay = True
            warn(
                f"this run is too short to replay anything: its {max_steps} steps offer the buffer "
                f"{most} candidates at most, and buffer_min_size={needed}"
            )
        if idle := inert_in_short(settings):
            warn(f"method selfplay: without effect: {', '.join(idle)}")
        if settings.beta == 0:
            warn("beta=0: hard samples are replayed and weigh nothing")

    def look(self, step: int, max_steps: int) -> None:
        """Candidates that are never accepted, and replay that does not begin."""
        tally = self.game.tally
        why = tally.why_not(self.game.settings, self.game.batch_size)
        if tally.candidates >= FEW_CANDIDATES and not tally.accepted:
            if not self._told_of_acceptance:
                self._told_of_acceptance = True
                warn(f"nothing can be replayed: {why}")
        elif step == self._first_look(max_steps) and not tally.replayed:
            if self._told_of_replay:
                return
            warn(f"no hard sample was replayed in {step} of {max_steps} steps: {why}")

    def _first_look(self, max_steps: int) -> int:
        """When U has moved for a tenth of its steps."""
        alone = self.game.settings.warm_up_steps
        return alone + math.ceil((max_steps - alone) / 10)


def _check_warm_up_of_c(settings: SelfPlaySettings, steps: int) -> None:
    if settings.perturber_warmup_steps == 0:
        return
    if settings.perturber_lr_scheduler_type == "constant":
        warn(
            f"perturber_warmup_steps={settings.perturber_warmup_steps} acts on nothing: the "
            "schedule 'constant' has no warm-up; set "
            "perturber_lr_scheduler_type=constant_with_warmup"
        )
    elif settings.perturber_warmup_steps >= steps:
        warn(
            f"perturber_warmup_steps={settings.perturber_warmup_steps} is as long as the run of "
            f"{steps} steps: C never reaches perturber_learning_rate="
            f"{settings.perturber_learning_rate}"
        )
