"""Player C and everything of the game that lives from step to step, apart from the Trainer.

C is replicated on every rank in float32 and has its own AdamW, schedule and clipping. The buffer,
the drawing generator and the noise of a random perturber belong to one rank each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from unigame.backbones.base import Backbone, VisualStates
from unigame.backbones.common import lora
from unigame.methods.selfplay.answers import ReadAnswers
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer, shrink
from unigame.methods.selfplay.challenge import (
    ChallengeConfig,
    ChallengeResult,
    GameBatch,
    MiningReport,
    candidate_hardness,
    challenge,
    mine,
    perturber_gradients,
    perturber_update,
)
from unigame.methods.selfplay.perturber import NoPerturber, RandomPerturber, build_perturber
from unigame.methods.selfplay.redrawn import redrawn, redrawn_figures
from unigame.methods.semantics import SimilarityScorer, build_scorer
from unigame.seeds import derive_seed
from unigame.training.batches import split_batch
from unigame.training.checkpoint import (
    PERTURBER_FILE,
    game_state_file,
    has_weights,
    load_game_state,
    load_perturber,
    save_game_state,
)
from unigame.training.config import UniGameConfig
from unigame.training.guard import Diverged
from unigame.training.health import ReplayTally, warn

logger = logging.getLogger(__name__)
LEFT_OUT_AT_MOST = 10  # updates of C in a row


def challenge_config(args: UniGameConfig) -> ChallengeConfig:
    """The part of the settings that one challenge reads."""
    return ChallengeConfig(
        space=args.perturb_space,  # type: ignore[arg-type]
        num_candidates=args.num_candidates,
        gradient_candidates=args.gradient_candidates,
        anchor=args.anchor,
        temperature=args.temperature,
        sample=args.sample_candidates,
        lambda_norm=args.lambda_norm,
        l2=args.l2,
        tv=args.tv,
        label_weight=args.label_weight,
        label_floor=args.label_floor,
        clip_weight=args.clip_weight,
        clip_floor=args.clip_floor,
        quantile=args.hard_quantile,
    )


class GameState:
    """C with its optimizer, the similarity scorers, the buffer and the generators.

    Args:
        args: the settings.
        backbone: the model that both players share (unwrapped).
        device: where C lives.
        rank: this process's number; seeds what belongs to one rank.
        reduce: averages a list of gradients over ranks, in place.
        gather: joins values of all ranks.

    Raises:
        UserError: the game draws and the model cannot, or a scorer cannot be had.
    """

    def __init__(
        self,
        args: UniGameConfig,
        backbone: Backbone,
        *,
        device: torch.device,
        rank: int = 0,
        reduce: Callable[[list[Tensor]], None] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if args.perturb_space == "decoder":
            backbone.require_drawing()
        if type(backbone).answer_token_losses is Backbone.answer_token_losses and rank == 0:
            warn(
                f"backbone family {backbone.facts.family!r} gives no answer_token_losses: hardness "
                "and what counts as right include the end mark"
            )
        self.args = args
        self.backbone = backbone
        self.config = challenge_config(args)
        self.reduce = reduce
        self.gather = gather
        self.rank = rank
        self.left_out = self.left_out_in_a_row = 0  # updates of C: its gradient was not finite
        seed = args.seed if rank == 0 else derive_seed(args.seed, "rank", rank)
        # C's weights must be equal on all ranks; only noise without weights may differ.
        self.perturber = build_perturber(
            args.perturbation,  # type: ignore[arg-type]
            backbone.facts.hidden_size,
            width=args.perturber_width,
            depth=args.perturber_depth,
            eps_max=args.eps_max,
            eps_init=args.eps_init,
            eps_mode=args.eps_mode,  # type: ignore[arg-type]
            seed=args.seed if args.perturbation == "learned" else seed,
        ).to(device)
        parameters = list(self.perturber.parameters())
        self.optimizer = (
            torch.optim.AdamW(
                parameters,
                lr=args.perturber_learning_rate,
                weight_decay=args.perturber_weight_decay,
            )
            if parameters
            else None
        )
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.buffer = self._new_buffer(seed)
        self.scorer, self.label_scorer = self._scorers()
        self.tally = ReplayTally()
        # Of this micro-batch: which candidates were read wrong, by figure, and what is replayed.
        self._wrong_BK: dict[str, Tensor] = {}
        self._replayed: list[HardSample] = []
        self._noise: list[Tensor] = []  # the generator before it drew each part of the batch
        own, whole = sum(p.numel() for p in parameters), backbone.facts.num_parameters
        text = "perturber: %s, %d parameters, %.2f %% of the model's %d"
        logger.info(text, args.perturbation, own, 100 * own / whole, whole)

    def _new_buffer(self, seed: int) -> HardSampleBuffer:
        # Without a lasting buffer the same object holds one micro-batch's candidates only.
        lasting = self.args.buffer
        capacity = self.args.buffer_capacity if lasting else self.args.resolved_hard_batch_size
        window = self.args.hardness_window
        return HardSampleBuffer(capacity, seed, self.args.buffer_per_source, window)

    def _scorers(self) -> tuple[SimilarityScorer, SimilarityScorer | None]:
        def build(kind: str) -> SimilarityScorer:
            return build_scorer(
                kind,  # type: ignore[arg-type]
                self.backbone,
                clip_model=self.args.similarity_model,
                clip_mode=self.args.similarity_mode,  # type: ignore[arg-type]
            )

        scorer = build(self.args.similarity)
        if self.args.label_weight == 0 or self.args.label_similarity == self.args.similarity:
            return scorer, None
        return scorer, build(self.args.label_similarity)

    def create_scheduler(self, num_training_steps: int) -> None:
        """(Re)start C's learning-rate schedule, counted in optimizer steps of U."""
        if self.optimizer is not None:
            self.scheduler = get_scheduler(
                self.args.perturber_lr_scheduler_type,
                self.optimizer,
                num_warmup_steps=self.args.perturber_warmup_steps,
                num_training_steps=num_training_steps,
            )

    # ---- the phases that belong to C -----------------------------------------------------------
    def play(
        self, batch: GameBatch, *, counts: bool = True, step: int | None = None
    ) -> tuple[ChallengeResult, float]:
        """C ascends ``perturber_steps`` times; returns the last challenge and C's gradient norm.

        The visual states are computed once: U does not move in between. With ``counts=False`` the
        batch is a stand-in on a rank without answers: C gets a zero gradient from it, but the rank
        takes part in the reduction like all others. Where the redrawn baseline is due at ``step``,
        its figures stand beside the challenge's own; it moves no weight and no generator.
        """
        parts = split_batch(batch, self._parts())
        visual: list[VisualStates | None] = [None] * len(parts)
        norm = 0.0
        # Merged copies cost the language model's memory again: not where activations are recomputed
        # for want of memory.
        merges = self.args.merge_lora and not self.args.gradient_checkpointing
        with lora.merged(self.backbone) if merges else nullcontext():  # U stands still meanwhile
            for _ in range(self.args.perturber_steps):
                results, norm = self._ascend(parts, visual, counts)
            result = ChallengeResult.joined(results)
            due = counts and step is not None and self._baseline_is_due(step)
            baseline = self._redraw(parts, visual, result) if due else None
        if counts:
            self._wrong_BK = {"attack_success_rate": ~result.right_BK}
        if baseline is not None:
            self._wrong_BK["redrawn_success_rate"] = ~baseline.right_BK
            result.metrics.update(redrawn_figures(result, baseline))
        return result, norm

    def _baseline_is_due(self, step: int) -> bool:
        every = self.args.redrawn_every
        if every == 0 or self.args.perturb_space == "tokens":  # there nothing is redrawn
            return False
        return (step // self.args.challenge_every) % every == 0

    def _redraw(
        self,
        parts: Sequence[tuple[GameBatch, float]],
        visual: Sequence[VisualStates | None],
        result: ChallengeResult,
    ) -> ChallengeResult:
        """The batch redrawn at eps = 0 under the noise of the last challenge."""
        if isinstance(self.perturber, NoPerturber):
            return result  # nothing else was drawn
        at_once = self.args.per_device_train_batch_size
        results = [
            redrawn(self.backbone, part, self.config, self.scorer, noise, states, at_once)
            for (part, share), noise, states in zip(parts, self._noise, visual, strict=True)
            if share
        ]
        return ChallengeResult.joined(results)

    def _ascend(
        self,
        parts: Sequence[tuple[GameBatch, float]],
        visual: list[VisualStates | None],
        counts: bool,
    ) -> tuple[list[ChallengeResult], float]:
        """One update of C: its challenges, part by part, and its gradient norm."""
        results: list[ChallengeResult] = []
        total: list[Tensor] | None = None
        self._noise = []
        for i, (part, share) in enumerate(parts):
            self._noise.append(self.generator.get_state())
            result = self._challenge(part, visual[i])
            visual[i] = _visual(result)
            if self.optimizer is not None:
                result.objective = result.objective * (share if counts else 0.0)
                total = _add(total, perturber_gradients(result, self.perturber))
            if share:
                results.append(result)
        if self.optimizer is None:
            return results, 0.0
        assert total is not None
        clip = self.args.perturber_max_grad_norm
        norm = perturber_update(self.perturber, self.optimizer, total, clip, self.reduce)
        self._note(norm)
        return results, norm

    def _note(self, norm: float) -> None:
        """Say that an update of C was left out; stop where C does not come back."""
        if math.isfinite(norm):
            self.left_out_in_a_row = 0
            return
        self.left_out += 1
        self.left_out_in_a_row += 1
        advice = "lower perturber_learning_rate"
        if self.rank == 0 and self.left_out & (self.left_out - 1) == 0:  # 1, 2, 4, 8, ...
            text = "C's gradient norm is %s, so this update of C is left out (%d so far); %s"
            logger.warning(text, norm, self.left_out, advice)
        if self.left_out_in_a_row >= LEFT_OUT_AT_MOST:
            raise Diverged(
                f"C's gradient norm is {norm} for the {self.left_out_in_a_row}th time in a row "
                f"(perturber_learning_rate={self.args.perturber_learning_rate:g}): the game is "
                f"off; {advice}"
            )

    def _challenge(self, part: GameBatch, visual: VisualStates | None) -> ChallengeResult:
        return challenge(
            self.backbone,
            self.perturber,
            part,
            self.config,
            self.scorer,
            self.generator,
            self.label_scorer,
            with_grad=self.optimizer is not None,
            visual=visual,
            # Scores of all codes are large: K is to add time, but hardly any memory.
            pictures_at_once=self.args.per_device_train_batch_size,
        )

    def _parts(self) -> int:
        """In how many parts a batch is challenged: the same number on every rank and step."""
        batch = self.args.per_device_train_batch_size
        at_once = self.args.challenge_micro_batch or math.ceil(batch / 4)
        return math.ceil(math.ceil(self.args.challenge_share * batch) / at_once)

    def mine(
        self, result: ChallengeResult, batch: GameBatch, step: int, counts: bool = True
    ) -> MiningReport:
        """Offer the challenge's candidates to the buffer. They are not drawn again.

        With ``counts=False`` they are those of a stand-in: nothing is offered, but the rank hears
        how hard the others' candidates were.
        """
        if not counts:
            own_E = candidate_hardness(result)[:0]
            self.buffer.recent.add(own_E if self.gather is None else self.gather(own_E))
            return MiningReport(candidates=0, accepted=0, kept=0)
        keep = self._keeps_tokens(result.tokens_ENH[0])
        report = mine(
            result, batch, self.buffer, self.config, step, keep_tokens=keep, gather=self.gather
        )
        self.tally.candidates += report.candidates
        self.tally.accepted += report.accepted
        self.tally.held = len(self.buffer)
        return report

    def _keeps_tokens(self, tokens_NH: Tensor) -> bool:
        """Whether a full buffer of such tokens may be kept, and they stay true as U learns."""
        size = self.buffer.capacity * tokens_NH.numel() * tokens_NH.element_size()
        return self.backbone.reads_frozen and size <= self.args.keep_tokens_mb * 2**20

    def forget_candidates(self) -> None:
        """Drop what the last micro-batch drew and, without a lasting buffer, what it mined."""
        self._wrong_BK, self._replayed = {}, []
        if not self.args.buffer:
            generator, recent = self.buffer.generator, self.buffer.recent
            self.buffer = self._new_buffer(0)
            self.buffer.generator, self.buffer.recent = generator, recent

    def judge(self, clean: ReadAnswers) -> dict[str, tuple[Tensor, Tensor]]:
        """What the candidates did to answers that U gives on the clean pictures.

        Args:
            clean: U's readings of this micro-batch's clean rows, in their order.

        Returns:
            (how many were lost, how many there were to lose) by figure; empty where nothing was
            drawn.
        """
        figures = {}
        for name, wrong_BK in self._wrong_BK.items():
            right_B1 = clean.right_B[: len(wrong_BK), None]
            figures[name] = (right_B1 & wrong_BK).sum(), right_B1.sum() * wrong_BK.shape[1]
        return figures

    def replay(self) -> list[HardSample]:
        """Hard samples for this micro-batch; none before the buffer is full enough."""
        if self.ready:
            self._replayed = self.buffer.sample(self.args.resolved_hard_batch_size)
            self.tally.replayed += len(self._replayed)
        return self._replayed

    def write_back(self, hard: ReadAnswers, step: int) -> int:
        """The losses of the replayed samples become their hardness; returns how many left.

        The losses are those that U learns from, so LoRA's dropout is on in them: they cost no pass.
        At the usual rate of .05 that is a small noise beside the differences between samples.

        Args:
            hard: U's readings of what ``replay`` gave, in its order.
            step: training step.
        """
        if not self.args.buffer:
            return 0  # nothing is kept
        own_right_2B = torch.stack([hard.own_B, hard.right_B.to(hard.own_B)]).tolist()
        learned = [bool(right) and self.args.drop_learned for right in own_right_2B[1]]
        left = self.buffer.refresh(self._replayed, own_right_2B[0], learned, step)
        self.tally.learned += left
        self.tally.held = len(self.buffer)
        return left

    @property
    def ready(self) -> bool:
        """True when the buffer is full enough for replay."""
        return len(self.buffer) >= (self.args.resolved_min_size if self.args.buffer else 1)

    # ---- checkpoints ---------------------------------------------------------------------------
    def files(self, rank: int, world_size: int) -> list[str]:
        """What a checkpoint of this game must hold, for this rank."""
        weights = [PERTURBER_FILE] if has_weights(self.perturber) else []
        return [*weights, game_state_file(rank, world_size)]

    def save(self, folder: str | Path, rank: int, world_size: int) -> None:
        """Write this rank's state. C's weights are written with the model."""
        self.buffer.forget_tokens()
        save_game_state(Path(folder) / game_state_file(rank, world_size), self.state_dict())

    def load(self, folder: str | Path, rank: int, world_size: int) -> None:
        """Restore C's weights and this rank's state; see ``checkpoint`` for what it raises."""
        load_perturber(folder, self.perturber)
        self.load_state_dict(load_game_state(Path(folder) / game_state_file(rank, world_size)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, except C's weights."""
        noise = self.perturber
        return {
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "buffer": self.buffer.state_dict(),
            "generator": self.generator.get_state(),
            "tally": vars(self.tally).copy(),
            "noise": noise.generator.get_state() if isinstance(noise, RandomPerturber) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if self.optimizer is not None and state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(state["generator"])
        self.tally = ReplayTally(**state["tally"])
        if isinstance(self.perturber, RandomPerturber) and state["noise"] is not None:
            self.perturber.generator.set_state(state["noise"])


def _add(total: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    return more if total is None else [a + b for a, b in zip(total, more, strict=True)]


def _visual(result: ChallengeResult) -> VisualStates | None:
    if result.codes is None:
        return None
    return VisualStates(result.states_BNH, result.codes)


class CodeCache:
    """Image codes by sample id, as small integers on the CPU.

    The image tokenizer is frozen, so a picture's codes never change; a sample that comes back in
    another epoch need not be encoded again. Latents (floating point) are not cached.
    """

    def __init__(self) -> None:
        self._codes: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, backbone: Backbone, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Codes of ``images`` (B, N); only unknown ids go through the image tokenizer."""
        missing = [row for row, name in enumerate(ids) if not name or name not in self._codes]
        if missing:
            fresh = backbone.encode_images(images[missing])
            if fresh.is_floating_point() or not all(ids):
                return fresh if len(missing) == len(ids) else backbone.encode_images(images)
            for row, codes in zip(missing, fresh, strict=True):
                self._codes[ids[row]] = shrink(codes)
        return torch.stack([self._codes[name] for name in ids]).to(images.device).long()
