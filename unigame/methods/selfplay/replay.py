"""What U gets of the game: hard candidates enter the buffer, join batches, and leave when learned.

    B  samples in the batch    K  candidates drawn per sample

The buffer belongs to one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Run
from unigame.methods.rows import Rows
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer, stack_compact
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    MiningReport,
    mine,
)
from unigame.methods.selfplay.health import ReplayTally
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.system.say import warn


class Replay:
    """The buffer from step to step, and what this micro-batch replays.

    Args:
        settings: of self-play.
        run: that it takes part in.
        seed: of the buffer's own draws.
        tally: counts what becomes of candidates.

    Attributes:
        chosen: the hard samples of this micro-batch.
    """

    def __init__(self, settings: SelfPlaySettings, run: Run, seed: int, tally: ReplayTally) -> None:
        self.settings, self.run, self.tally = settings, run, tally
        self.batch_size = run.args.per_device_train_batch_size
        self.buffer = self._new_buffer(seed)
        self.chosen: list[HardSample] = []

    def _new_buffer(self, seed: int) -> HardSampleBuffer:
        # Without a lasting buffer the same object holds one micro-batch's candidates only.
        settings = self.settings
        hard_rows = settings.hard_rows(self.batch_size)
        capacity = settings.buffer_capacity if settings.buffer else hard_rows
        return HardSampleBuffer(
            capacity,
            seed,
            settings.buffer_per_source,
            settings.hardness_window,
            settings.max_replays,
        )

    # ---- one step ------------------------------------------------------------------------------
    def forget(self) -> None:
        """Drop what the last micro-batch replayed and, without a lasting buffer, what it mined."""
        self.chosen = []
        if not self.settings.buffer:
            generator, recent = self.buffer.generator, self.buffer.recent
            self.buffer = self._new_buffer(0)
            self.buffer.generator, self.buffer.recent = generator, recent

    def mine(self, result: ChallengeResult | None, rows: Rows, step: int) -> MiningReport:
        """Offer the challenge's candidates to the buffer. They are not drawn again.

        Of rows that only keep step nothing is offered, but the rank hears how hard the others'
        candidates were; of them nothing need have been drawn.
        """
        if result is None or not rows.counts:
            own_E = torch.zeros(0, device=self.run.device)
            self.buffer.recent.add(own_E if self.run.gather is None else self.run.gather(own_E))
            return MiningReport(candidates=0, accepted=0, kept=0)
        keep = self._keeps_tokens(result.tokens_ENH[0])
        report = mine(
            result,
            rows,
            self.buffer,
            self.settings,
            step,
            keep_tokens=keep,
            gather=self.run.gather,
        )
        self.tally.candidates += report.candidates
        self.tally.accepted += report.accepted
        self.tally.held = len(self.buffer)
        return report

    def _keeps_tokens(self, tokens_NH: Tensor) -> bool:
        """Whether a full buffer of such tokens may be kept, and they stay true as U learns."""
        size = self.buffer.capacity * tokens_NH.numel() * tokens_NH.element_size()
        return self.run.backbone.reads_frozen and size <= self.settings.keep_tokens_mb * 2**20

    @property
    def ready(self) -> bool:
        """True when the buffer is full enough for replay."""
        lasting = self.settings.buffer
        return len(self.buffer) >= (self.settings.min_size(self.batch_size) if lasting else 1)

    def choose(self, step: int, add: Callable[..., None]) -> None:
        """Which hard samples this micro-batch replays, once the buffer is full enough."""
        add("buffer_size", len(self.buffer))
        quartiles = (0.25, 0.5, 0.75)
        for name, value in self.buffer.hardness_quantiles(quartiles).items():
            add(f"hardness_{name}", value)
        for name, value in self.buffer.age_quantiles(step, quartiles).items():
            add(f"age_{name}", value)
        if self.ready:
            self.chosen = self.buffer.sample(self.settings.hard_rows(self.batch_size))
            self.tally.replayed += len(self.chosen)
        add("replayed", len(self.chosen))

    def rows(self, name: str) -> list[Rows]:
        """The chosen ones as U reads them: as tokens where nothing before U learns.

        Tokens that the buffer kept are taken as they are; other pictures are drawn from their
        codes and encoded.

        Args:
            name: of the method, as their source.
        """
        samples = self.chosen
        if not samples:
            return []
        with self.run.phase("mix"), self.run.autocast():
            embeds = images = None
            if not self.settings.draws:
                embeds = stack_compact(samples, self.run.device)
            elif self.run.backbone.reads_frozen:
                embeds = self._tokens(samples)
            else:
                images = self.pictures(samples)
        return [
            Rows(
                images=images,
                embeds=embeds,
                questions=[sample.question for sample in samples],
                answers=[sample.answer for sample in samples],
                ids=[str(sample.source) for sample in samples],
                source=[name] * len(samples),
                weight=self.settings.beta,
            )
        ]

    def pictures(self, samples: Sequence[HardSample]) -> Tensor:
        """Hard samples drawn from their codes, (M, 3, S, S)."""
        return self.run.backbone.render(stack_compact(samples, self.run.device)).detach().float()

    def _tokens(self, samples: Sequence[HardSample]) -> Tensor:
        backbone = self.run.backbone
        unread = [sample for sample in samples if sample.tokens is None]
        read = iter(backbone.embed_images(self.pictures(unread)) if unread else ())
        rows = [next(read) if sample.tokens is None else sample.tokens for sample in samples]
        return torch.stack([row.to(self.run.device) for row in rows])

    def write_back(self, hard: ReadAnswers, step: int) -> int:
        """The losses of the replayed samples become their hardness; returns how many were learned.

        The losses are those that U learns from, so LoRA's dropout is on in them: they cost no pass.
        At the usual rate of .05 that is a small noise beside the differences between samples.

        Args:
            hard: U's readings of ``chosen``, in its order.
            step: training step.
        """
        if not self.settings.buffer:
            return 0  # nothing is kept
        own_right_2B = torch.stack([hard.own_B, hard.right_B.to(hard.own_B)]).tolist()
        learned = [bool(right) and self.settings.drop_learned for right in own_right_2B[1]]
        left, given_up = self.buffer.refresh(self.chosen, own_right_2B[0], learned, step)
        self.tally.learned += left
        self.tally.given_up += given_up
        self.tally.held = len(self.buffer)
        return left

    @torch.no_grad()
    def hardest(self, most: int) -> Tensor | None:
        """Pictures of the hardest of the buffer, on the CPU; None of an empty one."""
        samples = self.buffer.samples[:most]
        if not samples:
            return None
        at_once = range(0, len(samples), self.batch_size)
        parts = [self.pictures(samples[i : i + self.batch_size]).cpu() for i in at_once]
        return torch.cat(parts)

    # ---- checkpoints ---------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {"buffer": self.buffer.state_dict(), "tally": vars(self.tally).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.buffer.load_state_dict(state["buffer"])
        vars(self.tally).update(state["tally"])

    def dealt(
        self,
        states: Sequence[Mapping[str, Any]],
        own: Mapping[str, Any],
        rank: int,
        world_size: int,
    ) -> dict[str, Any]:
        """What this process goes on with: all buffers dealt out anew, hardest first.

        Where there are fewer processes than before, what a buffer cannot hold is lost: the easiest.

        Args:
            states: of the processes that there were.
            own: that of this one, whose draws go on.
            rank: of this process.
            world_size: how many there are now.
        """
        samples = [sample for state in states for sample in state["buffer"]["samples"]]
        samples.sort(key=lambda sample: -sample["hardness"])
        held = samples[rank::world_size]
        tallies = [state["tally"] for state in states[rank::world_size]]
        # A count that an earlier version did not keep begins at 0.
        tally = {name: sum(one.get(name, 0) for one in tallies) for name in vars(self.tally)}
        tally["held"] = min(len(held), self.buffer.capacity)
        buffer = {**states[0]["buffer"], "samples": held}
        buffer["generator"] = own["buffer"]["generator"]
        if rank == 0:
            lost = max(0, len(samples) - world_size * self.buffer.capacity)
            warn(
                f"selfplay: {len(samples)} hard samples of {len(states)} buffers are dealt out to "
                f"{world_size}; {lost} of them, the easiest, find no place"
            )
        return {"buffer": buffer, "tally": tally}
