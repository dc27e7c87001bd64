"""Player C in the visual states: its network, optimizer and judges, and how it plays a step.

    B  samples in the batch    K  candidates drawn per sample

C is replicated on every rank in float32 and has its own AdamW, schedule and clipping. The drawing
generator and the noise of a random perturber belong to one rank each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from unigame.backbones.base import VisualStates
from unigame.errors import Diverged
from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Run
from unigame.methods.rows import Rows
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    challenge,
    perturber_gradients,
    perturber_update,
)
from unigame.methods.selfplay.content import ContentWeights
from unigame.methods.selfplay.gradient_mean import GradientMean
from unigame.methods.selfplay.heads import Heads
from unigame.methods.selfplay.perturber import (
    NoPerturber,
    Perturber,
    PerturberBase,
    RandomPerturber,
    build_perturber,
)
from unigame.methods.selfplay.redrawn import redrawn, redrawn_figures
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import SimilarityScorer, build_scorer
from unigame.system.following import follow_settings
from unigame.system.say import warn

logger = logging.getLogger(__name__)
LEFT_OUT_AT_MOST = 10  # updates of C in a row
Add = Callable[..., None]
"""Logs a figure: its name, a total, and of how many."""


class Challenger:
    """C, from step to step.

    Args:
        settings: of self-play.
        run: that it takes part in.
        own_seed: of what one rank draws alone.
        scorer: judges candidates, in place of ``similarity``.
        label_scorer: likewise, in place of ``label_similarity``.
        perturber: C's network, in place of ``perturbation``.

    Attributes:
        wrong_BK: of this micro-batch, by figure: which candidates U read wrong.
    """

    def __init__(
        self,
        settings: SelfPlaySettings,
        run: Run,
        own_seed: int,
        scorer: SimilarityScorer | None = None,
        label_scorer: SimilarityScorer | None = None,
        perturber: PerturberBase | None = None,
    ) -> None:
        self.settings, self.run = settings, run
        self.batch_size = run.args.per_device_train_batch_size
        self.left_out = self.left_out_in_a_row = 0  # updates: the gradient was not finite
        if perturber is None:
            perturber = self._new_perturber(own_seed)
        self.perturber = perturber.to(run.device)
        parameters = list(self.perturber.parameters())
        self.optimizer = (
            torch.optim.AdamW(
                parameters,
                lr=settings.perturber_learning_rate,
                weight_decay=settings.perturber_weight_decay,
            )
            if parameters
            else None
        )
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self.generator = torch.Generator(device=run.device).manual_seed(own_seed)
        self.scorer, self.label_scorer = self._scorers(scorer, label_scorer)
        self.heads = Heads(
            settings.heads, settings.restart_below, settings.restart_window, run.args.seed
        )
        self.content: ContentWeights | None = None
        if settings.verified_target is not None:
            self.content = ContentWeights(
                settings.heads, settings.content_weight, settings.verified_target
            )
        self.wrong_BK: dict[str, Tensor] = {}
        # Of this step so far: see GradientMean; candidates by head, and verified ones.
        self._gradients = GradientMean()
        self._counts_2M: Tensor | None = None
        self._noise: list[Tensor] = []  # the generator before it drew each part of the batch
        own, whole = sum(p.numel() for p in parameters), run.backbone.facts.num_parameters
        text = "perturber: %s, %d parameters, %.2f %% of the model's %d"
        logger.info(text, settings.perturbation, own, 100 * own / whole, whole)

    def _new_perturber(self, own_seed: int) -> PerturberBase:
        settings = self.settings
        # C's weights must be equal on all ranks; only noise without weights may differ.
        learned = settings.perturbation == "learned"
        return build_perturber(
            settings.perturbation,  # type: ignore[arg-type]
            self.run.backbone.facts.hidden_size,
            width=settings.perturber_width,
            depth=settings.perturber_depth,
            eps_max=settings.eps_max,
            eps_init=settings.eps_init,
            eps_mode=settings.eps_mode,  # type: ignore[arg-type]
            seed=self.run.args.seed if learned else own_seed,
            scope="token" if settings.perturber_scope == "token" else "shared",
            heads=settings.heads,
            fixed=settings.eps_gate == "fixed",
        )

    def _scorers(
        self, scorer: SimilarityScorer | None, label_scorer: SimilarityScorer | None
    ) -> tuple[SimilarityScorer, SimilarityScorer | None]:
        settings = self.settings

        def build(kind: str) -> SimilarityScorer:
            return build_scorer(
                kind,
                self.run.backbone,
                clip_model=settings.similarity_model,
                clip_mode=settings.similarity_mode,  # type: ignore[arg-type]
            )

        given = scorer is not None
        scorer = scorer.to(self.run.device) if scorer is not None else build(settings.similarity)
        if not settings.uses_label:
            return scorer, None
        if label_scorer is not None:
            return scorer, label_scorer.to(self.run.device)
        if not given and settings.label_similarity == settings.similarity:
            return scorer, None
        return scorer, build(settings.label_similarity)

    # ---- one step ------------------------------------------------------------------------------
    def play(self, rows: Rows, *, step: int | None = None) -> tuple[ChallengeResult, float | None]:
        """C ascends ``perturber_steps`` times; returns the last challenge and C's gradient norm.

        The norm is None where C waits for the step's other micro-batches. The visual states are
        computed once where pictures are drawn: U does not move in between. From rows that only keep
        step, on a rank without answers, C gets a zero gradient, but the rank takes part in the
        reduction like all others; if all of its rows in a step are such, the norm is None too. If
        those of all ranks are, C stands still. Where the redrawn baseline is due at
        ``step``, its figures stand beside the challenge's own; it moves no weight and no generator.
        """
        parts = rows.split(self.settings.challenge_parts(self.batch_size))
        visual: list[VisualStates | None] = [None] * len(parts)
        norm = None
        # Merged copies cost the language model's memory again: not where activations are recomputed
        # for want of memory.
        merges = self.settings.merge_lora and not self.run.args.gradient_checkpointing
        merged = self.run.backbone.lora_merged() if merges else nullcontext()
        with merged:  # U stands still meanwhile
            for _ in range(self.settings.perturber_steps):
                results, norm = self._ascend(parts, visual, rows.counts)
            result = ChallengeResult.joined(results)
            due = step is not None and self._baseline_is_due(step)
            # A rank without answers redraws its stand-ins, where the others wait for it.
            due = due and (rows.counts or self.run.sharded)
            baseline = self._redraw(parts, visual, result) if due else None
        if rows.counts:
            self.wrong_BK = {"attack_success_rate": ~result.right_BK}
        if baseline is not None and rows.counts:
            self.wrong_BK["redrawn_success_rate"] = ~baseline.right_BK
            result.metrics.update(redrawn_figures(result, baseline))
        return result, norm

    def judge(self, clean: ReadAnswers) -> dict[str, tuple[Tensor, Tensor]]:
        """What the candidates did to answers that U gives on the clean pictures.

        Args:
            clean: U's readings of the pictures that were challenged, and of others behind them.

        Returns:
            (how many were lost, how many there were to lose) by figure; empty where nothing was
            drawn.
        """
        figures = {}
        for name, wrong_BK in self.wrong_BK.items():
            right_B1 = clean.right_B[: len(wrong_BK), None]
            figures[name] = (right_B1 & wrong_BK).sum(), right_B1.sum() * wrong_BK.shape[1]
        return figures

    def look_at_heads(self, result: ChallengeResult, counts: bool, add: Add) -> None:
        """Log what each head drew, and give those that destroy content new weights."""
        token = self.settings.perturber_scope == "token"
        if token and self.content is None:
            return
        verified_BK = result.similarity_BK >= self.settings.clip_floor
        head_BK = None if result.own is None else result.own.head_BK
        counts_2M = self.heads.counted(head_BK, verified_BK) * counts
        if not token:
            self.heads.record(counts_2M, add)
        if self._counts_2M is not None:
            counts_2M = counts_2M + self._counts_2M
        if not self.run.closes_step():
            self._counts_2M = counts_2M
            return
        self._counts_2M = None
        of_all_2M = self.run.sum(counts_2M)
        if self.content is not None:
            self.content.see(of_all_2M)
            add("content_weight", sum(self.content.weights), len(self.content.weights))
        if token:
            return
        lost = self.heads.see(of_all_2M)
        if not isinstance(self.perturber, Perturber):
            return
        for head in lost:
            self._restart(head, self.perturber)
        add("head_restarts", sum(self.heads.restarts))
        if self.settings.heads > 1:
            with torch.no_grad():
                add("head_overlap", self.perturber.overlap(result.states_BNH).mean())

    def _restart(self, head: int, perturber: Perturber) -> None:
        self.heads.restart(head, perturber, self.optimizer)
        if self.content is not None:
            self.content.restart(head)

    def create_scheduler(self, num_training_steps: int) -> None:
        """(Re)start the learning-rate schedule, counted in optimizer steps of U."""
        if self.optimizer is not None:
            self.scheduler = get_scheduler(
                self.settings.perturber_lr_scheduler_type,
                self.optimizer,
                num_warmup_steps=self.settings.perturber_warmup_steps,
                num_training_steps=num_training_steps,
            )

    def _baseline_is_due(self, step: int) -> bool:
        every = self.settings.redrawn_every
        if every == 0 or not self.settings.draws:  # there nothing is redrawn
            return False
        return (step // self.settings.challenge_every) % every == 0

    def _redraw(
        self,
        parts: Sequence[tuple[Rows, float]],
        visual: Sequence[VisualStates | None],
        result: ChallengeResult,
    ) -> ChallengeResult:
        """The batch redrawn at eps = 0 under the noise of the last challenge."""
        if isinstance(self.perturber, NoPerturber):
            return result  # nothing else was drawn
        backbone, settings, scorer = self.run.backbone, self.settings, self.scorer
        at_once = self._pictures_at_once
        results = [
            (share, redrawn(backbone, part, settings, scorer, noise, states, at_once(part)))
            for (part, share), noise, states in zip(parts, self._noise, visual, strict=True)
            if share or self.run.sharded
        ]
        return ChallengeResult.joined([result for share, result in results if share])

    def _ascend(
        self,
        parts: Sequence[tuple[Rows, float]],
        visual: list[VisualStates | None],
        counts: bool,
    ) -> tuple[list[ChallengeResult], float | None]:
        """The challenges of one update of C, part by part, and its gradient norm; see ``play``."""
        results: list[ChallengeResult] = []
        total: list[Tensor] | None = None
        self._noise = []
        for i, (part, share) in enumerate(parts):
            self._noise.append(self.generator.get_state())
            result = self._challenge(part, visual[i])
            visual[i] = _visual(result)
            result.objective = result.objective * (share if counts else 0.0)
            if self.optimizer is not None:
                total = _add(total, perturber_gradients(result, self.perturber))
            if share:
                results.append(result)
        if self.optimizer is None:
            return results, None
        assert total is not None
        self._gradients.add(total, counts)
        if self.settings.perturber_steps == 1 and not self.run.closes_step():
            return results, None
        counted, mean = self._gradients.counts, self._gradients.take()
        if not self.run.sum(torch.tensor([float(counted)], device=self.run.device)).item():
            return results, None  # Adam's momentum and decay would move C all the same
        clip = self.settings.perturber_max_grad_norm
        norm = perturber_update(self.perturber, self.optimizer, mean, clip, self.run.average)
        self.note(norm)
        return results, norm if counted else None

    def note(self, norm: float) -> None:
        """Say that an update of C was left out; stop where C does not come back.

        Raises:
            Diverged: ten updates in a row had no finite gradient.
        """
        if math.isfinite(norm):
            self.left_out_in_a_row = 0
            return
        self.left_out += 1
        self.left_out_in_a_row += 1
        advice = "lower perturber_learning_rate"
        if self.run.rank == 0 and self.left_out & (self.left_out - 1) == 0:  # 1, 2, 4, 8, ...
            warn(
                f"C's gradient norm is {norm}, so this update of C is left out ({self.left_out} so "
                f"far); {advice}"
            )
        if self.left_out_in_a_row >= LEFT_OUT_AT_MOST:
            raise Diverged(
                f"C's gradient norm is {norm} for the {self.left_out_in_a_row}th time in a row "
                f"(perturber_learning_rate={self.settings.perturber_learning_rate:g}): the game is "
                f"off; {advice}"
            )

    def _challenge(self, part: Rows, visual: VisualStates | None) -> ChallengeResult:
        return challenge(
            self.run.backbone,
            self.perturber,
            part,
            self.settings,
            self.scorer,
            self.generator,
            self.label_scorer,
            with_grad=self.optimizer is not None,
            visual=visual,
            pictures_at_once=self._pictures_at_once(part),
            content_weight_M=None if self.content is None else self.content.tensor(),
        )

    def _pictures_at_once(self, part: Rows) -> int:
        """Of the candidates that C does not learn from, so many are read in one pass.

        Scores of all codes are large: K is to add time, but hardly any memory. Where weights are
        sharded it is as many candidates of each row as in a full part, so that a rank with fewer
        rows runs as many passes.
        """
        if not self.run.sharded:
            return self.batch_size
        challenged = math.ceil(self.settings.challenge_share * self.batch_size)
        full = math.ceil(challenged / self.settings.challenge_parts(self.batch_size))
        return self.batch_size // full * len(part)

    # ---- checkpoints ---------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, except the weights."""
        noise = self.perturber
        return {
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "generator": self.generator.get_state(),
            "heads": self.heads.state_dict(),
            "content": self.content.state_dict() if self.content else None,
            "noise": noise.generator.get_state() if isinstance(noise, RandomPerturber) else None,
        }

    def _load_optimizer(self, state: Mapping[str, Any]) -> None:
        assert self.optimizer is not None
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; C's rate and decay are those of this run."""
        if self.optimizer is not None and state["optimizer"] is not None:
            follow_settings(self.optimizer, self.scheduler, partial(self._load_optimizer, state))
        self.generator.set_state(state["generator"])
        if state.get("heads") is not None:
            self.heads.load_state_dict(state["heads"])
        if self.content is not None and state.get("content") is not None:
            self.content.load_state_dict(state["content"])
        if isinstance(self.perturber, RandomPerturber) and state["noise"] is not None:
            self.perturber.generator.set_state(state["noise"])


def _add(total: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    return more if total is None else [a + b for a, b in zip(total, more, strict=True)]


def _visual(result: ChallengeResult) -> VisualStates | None:
    if result.codes is None:
        return None
    return VisualStates(result.states_BNH, result.codes)
