"""UniGame as a training method: Algorithm 1 of the paper, phase by phase.

    B  samples in the batch    K  candidates drawn per sample

One step, as ``before_step`` and the two calls after it read::

    challenge   C perturbs, G draws, U re-reads; C ascends U's loss        (every m-th step)
    styled      C chooses styles, G draws captions anew, U reads them      (likewise)
    mine        its hard and still faithful candidates enter the buffer
    mix         hard samples from the buffer join the clean batch
    learned     U's losses on them become their hardness

Choices that the paper leaves open:

1. Under gradient accumulation every micro-batch is challenged, and C moves once, as U does, by the
   mean of its gradients: N micro-batches are N ranks.
2. With ``perturber_steps`` > 1 only the candidates of the last, strongest challenge are mined. C
   must have moved before the next of them, so it then moves so often in every micro-batch.
3. The hard mean of Eq. 6 is taken per micro-batch; the clean one over the whole optimizer step.
4. U learns an answer with its end mark; the game judges it without (``methods/answers.py`` says
   why, and when an answer is right). The attack success rate is the share of candidates read wrong
   among samples read right, and costs no extra pass; the clean side of it is U's own training
   pass, so LoRA dropout is on there. ``redrawn_success_rate`` is what redrawing alone loses.
5. U's losses on replayed samples are written back as their hardness, and what it reads right leaves
   the buffer; they, too, are those of the training pass.

C is replicated on every rank in float32 and has its own AdamW, schedule and clipping. The buffer,
the drawing generator and the noise of a random perturber belong to one rank each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from unigame.backbones.base import Backbone, VisualStates
from unigame.errors import Diverged, UserError
from unigame.methods import files
from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Method, Run
from unigame.methods.captions import MadeCaptions
from unigame.methods.findings import Finding
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer, stack_compact
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    MiningReport,
    candidate_hardness,
    challenge,
    mine,
    perturber_gradients,
    perturber_update,
)
from unigame.methods.selfplay.content import ContentWeights
from unigame.methods.selfplay.diagnosis import diagnose
from unigame.methods.selfplay.examples import Examples, attack, noise_kept
from unigame.methods.selfplay.floor_check import FloorCheck
from unigame.methods.selfplay.gradient_mean import GradientMean
from unigame.methods.selfplay.heads import Heads
from unigame.methods.selfplay.health import ReplayTally, Watch
from unigame.methods.selfplay.perturber import (
    NoPerturber,
    Perturber,
    PerturberBase,
    RandomPerturber,
    build_perturber,
)
from unigame.methods.selfplay.redrawn import redrawn, redrawn_figures
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.selfplay.styles import Styles
from unigame.methods.selfplay.verifier_check import VerifierCheck
from unigame.methods.semantics import ClipSimilarity, SimilarityScorer, build_scorer
from unigame.seeds import derive_seed
from unigame.system.say import warn

logger = logging.getLogger(__name__)
LEFT_OUT_AT_MOST = 10  # updates of C in a row
PERTURBER_FILE = "perturber.safetensors"
# What a challenge says of itself; ``redrawn_*`` and ``attack_*`` need the redrawn baseline.
CHALLENGE_FIGURES = (
    "adversarial_ce",
    "redrawn_ce",
    "similarity",
    "redrawn_similarity",
    "below_floor",
    "codes_changed",
    "redrawn_codes_changed",
    "attack_codes_changed",
    "label_penalty",
    "eps",
    "delta_relative",
)


class SelfPlay(Method):
    """C with its optimizer, the similarity scorers, the buffer and the generators.

    Args:
        settings: a ``SelfPlaySettings``; made of ``values`` if left out.
        scorer: judges whether a candidate shows the same thing, in place of ``similarity``.
        label_scorer: likewise, in place of ``label_similarity``. Without it the label and content
            terms keep the scorer that ``label_similarity`` names, whatever ``scorer`` is.
        perturber: C, in place of ``perturbation``.
        values: settings by name.

    Raises:
        UserError: for settings that do not fit; the game draws and the model cannot; a scorer
            cannot be had.
    """

    name = "selfplay"
    Settings = SelfPlaySettings
    settings: SelfPlaySettings
    figures: tuple[str, ...] = (
        "hard_ce",
        "hard_answer_ce",
        *CHALLENGE_FIGURES,
        "perturber_objective",
        "perturber_grad_norm",
        "perturber_learning_rate",
        "acceptance_rate",
        "attack_success_rate",
        "redrawn_success_rate",
        "buffer_size",
        "replayed",
        "learned_rate",
        "hardness_q25",
        "hardness_q50",
        "hardness_q75",
        "age_q25",
        "age_q50",
        "age_q75",
    )
    phases: tuple[str, ...] = ("challenge", "mine", "mix")
    losses = ("answer",)
    rate = "perturber_learning_rate"

    def __init__(
        self,
        settings: SelfPlaySettings | None = None,
        *,
        scorer: SimilarityScorer | None = None,
        label_scorer: SimilarityScorer | None = None,
        perturber: PerturberBase | None = None,
        **values: Any,
    ) -> None:
        super().__init__(settings, **values)
        if self.settings.perturber_scope != "token":
            self.figures = (*type(self).figures, *Heads.figures(self.settings.heads))
        if self.settings.verified_target is not None:
            self.figures = (*self.figures, "content_weight")
        if self.settings.styles:
            self.figures = (*self.figures, *Styles.figures(self.settings))
            self.phases = (*self.phases, "styled")
        self._given = (scorer, label_scorer, perturber)
        self.tally = ReplayTally()

    # ---- before the run ------------------------------------------------------------------------
    def check(self, args: Any) -> None:
        """Sizes that depend on the batch."""
        settings, batch = self.settings, args.per_device_train_batch_size
        if settings.min_size(batch) > settings.buffer_capacity:
            raise UserError(
                f"buffer_min_size={settings.min_size(batch)} is above buffer_capacity="
                f"{settings.buffer_capacity}: replay would never start; raise the capacity"
            )
        if getattr(args, "train_parts", None):
            raise UserError(
                f"train_parts={args.train_parts} with method selfplay: the warm-up comes before "
                "the game; set methods: [sft], and play on its result"
            )

    def check_machine(self, args: Any) -> None:
        """Load CLIP and drop it: it is small beside the model, which it would otherwise follow."""
        if self.settings.uses_clip and self.settings.similarity_model:
            ClipSimilarity(self.settings.similarity_model, self.settings.similarity_mode)  # type: ignore[arg-type]

    def uneven_passes(self) -> str:
        """None outside ``in_step``: a challenge of stand-ins has as many as any other."""
        return ""

    def answers_needed(self, args: Any) -> int:
        """One to attack; under a cap, as many as a buffer takes that replay can start from."""
        cap = self._cap
        batch = args.per_device_train_batch_size
        return 1 if cap is None else math.ceil(self.settings.min_size(batch) / cap)

    def check_answers(self, answered: int, named: bool, args: Any) -> None:
        """None to attack, or too few for replay ever to start."""
        if not answered:
            raise UserError(
                "method selfplay has nothing to attack: no row of one picture has an answer; set "
                "methods: [sft] to learn from captions or text alone, or give questions and answers"
            )
        cap = self._cap
        if cap is not None and named:
            raise UserError(
                f"replay could never start: of {answered} rows with an answer, "
                f"buffer_per_source={cap} lets {answered * cap} samples into the buffer, and "
                f"replay needs buffer_min_size="
                f"{self.settings.min_size(args.per_device_train_batch_size)}; lower it, raise "
                "buffer_per_source, or give more rows"
            )

    @property
    def _cap(self) -> int | None:
        return self.settings.buffer_per_source if self.settings.buffer else None

    @property
    def refuses_missing_captions(self) -> bool:
        """Only where they are neither made nor replaced by the question."""
        return self.settings.draws and self.settings.missing_captions == "error"

    def rows_at_most(self, args: Any) -> int:
        """The hard samples of a mixed batch."""
        return self.settings.hard_rows(args.per_device_train_batch_size)

    def setup(self, run: Run) -> None:
        """Make C, its optimizer, the scorers, the buffer and the generators."""
        super().setup(run)
        backbone, settings = run.backbone, self.settings
        if settings.draws:
            backbone.require_drawing()
        if type(backbone).answer_token_losses is Backbone.answer_token_losses and run.rank == 0:
            warn(
                f"backbone family {backbone.facts.family!r} gives no answer_token_losses: hardness "
                "and what counts as right include the end mark"
            )
        self.batch_size = run.args.per_device_train_batch_size
        self.left_out = self.left_out_in_a_row = 0  # updates of C: its gradient was not finite
        seed = run.args.seed if run.rank == 0 else derive_seed(run.args.seed, "rank", run.rank)
        scorer, label_scorer, perturber = self._given
        # C's weights must be equal on all ranks; only noise without weights may differ.
        own_seed = run.args.seed if settings.perturbation == "learned" else seed
        if perturber is None:
            perturber = build_perturber(
                settings.perturbation,  # type: ignore[arg-type]
                backbone.facts.hidden_size,
                width=settings.perturber_width,
                depth=settings.perturber_depth,
                eps_max=settings.eps_max,
                eps_init=settings.eps_init,
                eps_mode=settings.eps_mode,  # type: ignore[arg-type]
                seed=own_seed,
                scope="token" if settings.perturber_scope == "token" else "shared",
                heads=settings.heads,
                fixed=settings.eps_gate == "fixed",
            )
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
        self.generator = torch.Generator(device=run.device).manual_seed(seed)
        self.buffer = self._new_buffer(seed)
        self.scorer, self.label_scorer = self._scorers(scorer, label_scorer)
        self.captions: MadeCaptions | None = None
        if settings.draws and settings.missing_captions == "model":
            self.captions = MadeCaptions(backbone, run.args.output_dir, run.rank)
        by_clip = settings.similarity == "clip"
        named = f"clip {settings.similarity_mode}" if by_clip else settings.similarity
        self.floor_check = FloorCheck(settings.clip_floor, named, speaks=run.rank == 0)
        checks = run.rank == 0 and settings.draws and settings.similarity != "none"
        self.verifier_check = VerifierCheck(
            self.scorer, named, settings.verifier_check, speaks=checks
        )
        self.heads = Heads(
            settings.heads, settings.restart_below, settings.restart_window, run.args.seed
        )
        self.content: ContentWeights | None = None
        if settings.verified_target is not None:
            self.content = ContentWeights(
                settings.heads, settings.content_weight, settings.verified_target
            )
        self.styles: Styles | None = None
        if settings.styles:
            self.styles = Styles(settings, run, self.scorer)
        self._watch = Watch(self)
        kept = settings.keep_examples if run.rank == 0 and settings.draws else 0
        self.examples = Examples(kept, settings.examples_every)
        # Of this micro-batch: which candidates were read wrong, by figure, and what is replayed.
        self._wrong_BK: dict[str, Tensor] = {}
        self._clean_drawings: ReadAnswers | None = None  # of drawings that are challenged
        # Of this step so far, for C: see GradientMean; candidates by head, and verified ones.
        self._gradients = GradientMean()
        self._counts_2M: Tensor | None = None
        self._told = False  # that no method offers any
        self._replayed: list[HardSample] = []
        self._noise: list[Tensor] = []  # the generator before it drew each part of the batch
        own, whole = sum(p.numel() for p in parameters), backbone.facts.num_parameters
        text = "perturber: %s, %d parameters, %.2f %% of the model's %d"
        logger.info(text, settings.perturbation, own, 100 * own / whole, whole)

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

    def saw_texts(self, with_answer: int, without_caption: int) -> None:
        """Say how many samples will be redrawn by their question."""
        by_question = self.settings.draws and self.settings.missing_captions == "question"
        if by_question and without_caption and self.run.rank == 0:
            logger.warning(
                "%d of %d samples that were looked at have no caption and are redrawn by their "
                "question (missing_captions=question): redrawings lose content that it does not "
                "name; missing_captions=model has the model describe them",
                without_caption,
                with_answer,
            )

    def begin(self, max_steps: int) -> None:
        """What the settings say of a run of this length."""
        self._watch.begin(max_steps)

    def watch(self, step: int, max_steps: int) -> None:
        """Candidates that are never accepted, and replay that does not begin."""
        self._watch.look(step, max_steps)

    def finish(self) -> None:
        """A short run saw few candidates: the floor is judged by those. Pictures for the report."""
        self.floor_check.judge()
        self.verifier_check.judge()
        with self.run.in_step():
            self.examples.write(self)

    def health(self, log: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """What is wrong with the game, by its figures."""
        return diagnose(self, log)

    def summary(self) -> str:
        """What became of the candidates of all processes."""
        tally = self.tally.summed(self.run.sum, self.run.device)
        text = tally.summary(self.settings, self.batch_size)
        return text if self.styles is None else f"{text} {self.styles.summary(self.run.sum)}"

    # ---- one step: Algorithm 1 -----------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """Challenge and mine where this step is due, and choose what is replayed."""
        self.forget_candidates()
        with self.run.in_step():
            self.examples.before_step(self, step)
        if step % self.settings.challenge_every == 0:
            with self.run.in_step():
                rows = self.challenged(batch)
            self.examples.see(rows)
            with self.run.phase("challenge"), self.run.autocast():
                result, norm = self.play(rows, step=step)
            if self.settings.perturber_scope != "token" or self.content is not None:
                self._look_at_heads(result, rows.counts)
            if norm is not None:
                self._record_update(norm)
            with self.run.in_step(), self.run.autocast():
                if rows.counts:
                    self.verifier_check.see(rows)
            if rows.counts:
                self._record(result)
                self.floor_check.see(result.similarity_BK, self._similarity_of_clean(rows))
            mines = (step // self.settings.challenge_every) % self.settings.mine_every == 0
            if mines:
                self._mine(result, rows, step)
            if self.styles is not None:
                self._play_styles(self.styles, batch, step if mines else None)
        if not self.plays_alone(step):
            self._choose(step)

    def _mine(self, result: ChallengeResult, rows: Rows, step: int) -> None:
        with self.run.phase("mine"):
            report = self.mine(result, rows, step)
        self._add("acceptance_rate", report.accepted, report.candidates)

    def _play_styles(self, styles: Styles, batch: Batch, mined_at: int | None) -> None:
        """Captions of the batch drawn anew in styles, beside the challenge."""
        with self.run.phase("styled"), self.run.autocast():
            with self.run.in_step():
                rows = self._captioned(styles.rows(batch.answers))
            result = styles.play(rows, self._add)
        if mined_at is not None:
            self._mine(result, rows, mined_at)

    def plays_alone(self, step: int) -> bool:
        """While C warms up against a model that does not move."""
        return step < self.settings.warm_up_steps

    def _look_at_heads(self, result: ChallengeResult, counts: bool) -> None:
        """Log what each head drew, and give those that destroy content new weights."""
        verified_BK = result.similarity_BK >= self.settings.clip_floor
        head_BK = None if result.own is None else result.own.head_BK
        counts_2M = self.heads.counted(head_BK, verified_BK) * counts
        if self.settings.perturber_scope != "token":
            self.heads.record(counts_2M, self._add)
        if self._counts_2M is not None:
            counts_2M = counts_2M + self._counts_2M
        if not self.run.closes_step():
            self._counts_2M = counts_2M
            return
        self._counts_2M = None
        of_all_2M = self.run.sum(counts_2M)
        if self.content is not None:
            self.content.see(of_all_2M)
            self._add("content_weight", sum(self.content.weights), len(self.content.weights))
        if self.settings.perturber_scope == "token":
            return
        lost = self.heads.see(of_all_2M)
        if not isinstance(self.perturber, Perturber):
            return
        for head in lost:
            self.heads.restart(head, self.perturber, self.optimizer)
        self._add("head_restarts", sum(self.heads.restarts))
        if self.settings.heads > 1:
            with torch.no_grad():
                self._add("head_overlap", self.perturber.overlap(result.states_BNH).mean())

    def challenged(self, batch: Batch) -> Rows:
        """What C plays on: rows with an answer, or a share of them, each with a prompt."""
        share = self.settings.challenge_share
        self._clean_drawings = None
        if self.settings.challenge_drawings:
            drawn = self._drawings(batch, math.ceil(share * self.batch_size))
            if drawn is not None:
                return drawn
        rows = batch.answers
        # The batch is shuffled, so the first ones are random.
        rows = rows if share == 1 else rows.first(math.ceil(share * len(rows)))
        rows = self._captioned(rows)
        if rows.codes is None and self.settings.draws and self.run.codes is not None:
            rows = replace(rows, codes=self.run.codes(rows.pictures, rows.ids))
        return rows

    def _captioned(self, rows: Rows) -> Rows:
        captions = self._captions(rows)
        if captions != rows.captions:  # made just now
            rows = replace(rows, captions=captions, prompted=None)
        return rows

    @torch.no_grad()
    def _drawings(self, batch: Batch, count: int) -> Rows | None:
        """Drawings that other methods offer, and what U reads of them before C restyles them."""
        if not batch.offered and not self._told and self.run.rank == 0:
            self._told = True
            warn(
                "challenge_drawings=true, but no method listed before selfplay offers drawings, so "
                "C challenges the batch; list imagine or verify first"
            )
        for offer in batch.offered:
            rows = offer(count)
            if rows is not None:
                backbone = self.run.backbone
                with self.run.autocast(), backbone.without_dropout():
                    read = backbone.answer_token_losses(rows.pictures, *rows.question_arguments)
                self._clean_drawings = ReadAnswers.of(read)
                return rows
        return None

    def _captions(self, rows: Rows) -> list[str]:
        """The given captions, and the model's own descriptions where there are none."""
        captions = [caption.strip() for caption in rows.captions]
        bare = [row for row, caption in enumerate(captions) if not caption]
        if self.captions is not None and bare and rows.counts:
            made = self.captions(rows.pictures[bare], [rows.ids[row] for row in bare])
            for row, caption in zip(bare, made, strict=True):
                captions[row] = caption
        return captions

    def _choose(self, step: int) -> None:
        """Which hard samples this micro-batch replays, once the buffer is full enough."""
        self._add("buffer_size", len(self.buffer))
        quartiles = (0.25, 0.5, 0.75)
        for name, value in self.buffer.hardness_quantiles(quartiles).items():
            self._add(f"hardness_{name}", value)
        for name, value in self.buffer.age_quantiles(step, quartiles).items():
            self._add(f"age_{name}", value)
        self._add("replayed", len(self.replay()))

    @torch.no_grad()
    def step_rows(self) -> list[Rows]:
        """The hard samples as U reads them: as tokens where nothing before U learns.

        Tokens that the buffer kept are taken as they are; other pictures are drawn from their
        codes and encoded.
        """
        with self.run.in_step():
            return [self._hard_rows(self._replayed)] if self._replayed else []

    def _hard_rows(self, samples: Sequence[HardSample]) -> Rows:
        with self.run.phase("mix"), self.run.autocast():
            embeds = images = None
            if not self.settings.draws:
                embeds = stack_compact(samples, self.run.device)
            elif self.run.backbone.reads_frozen:
                embeds = self._tokens(samples)
            else:
                images = self._pictures(samples)
        return Rows(
            images=images,
            embeds=embeds,
            questions=[sample.question for sample in samples],
            answers=[sample.answer for sample in samples],
            ids=[str(sample.source) for sample in samples],
            source=[self.name] * len(samples),
            weight=self.settings.beta,
        )

    def _pictures(self, samples: Sequence[HardSample]) -> Tensor:
        return self.run.backbone.render(stack_compact(samples, self.run.device)).detach().float()

    def _tokens(self, samples: Sequence[HardSample]) -> Tensor:
        backbone = self.run.backbone
        unread = [sample for sample in samples if sample.tokens is None]
        read = iter(backbone.embed_images(self._pictures(unread)) if unread else ())
        rows = [next(read) if sample.tokens is None else sample.tokens for sample in samples]
        return torch.stack([row.to(self.run.device) for row in rows])

    def after_loss(self, clean: ReadAnswers, own: ReadAnswers, step: int) -> None:
        """What the attack did to answers that U gives; hard samples get their new hardness."""
        if len(clean) or self._clean_drawings is not None:
            for name, (lost, right) in self.judge(clean).items():
                self._add(name, lost, right)
        if len(own):
            self._add("hard_ce", own.loss_B.sum(), len(own))
            self._add("hard_answer_ce", own.own_B.sum(), len(own))
            learned = self.write_back(own, step)
            if self.settings.buffer:
                self._add("learned_rate", learned, len(own))

    def end_step(self) -> None:
        """C's schedule is counted in steps of U."""
        if self.scheduler is not None:
            self.scheduler.step()

    def _similarity_of_clean(self, rows: Rows) -> Callable[[], Tensor] | None:
        """What a similarity to texts says of the unaltered pictures; None for other ones."""
        if self.settings.similarity != "clip" or self.settings.similarity_mode != "image-text":
            return None
        return partial(self.scorer, rows.pictures, rows.pictures, rows.texts)

    def _record(self, result: ChallengeResult) -> None:
        figures = result.metrics
        for name in CHALLENGE_FIGURES:  # some only where there are codes, or a term, or a baseline
            if name in figures:
                self._add(name, figures[name])
        self._add("perturber_objective", figures["objective"])

    def _record_update(self, norm: float) -> None:
        assert self.optimizer is not None, "who has none has no norm"
        self._add("perturber_grad_norm", norm)
        self._add("perturber_learning_rate", self.optimizer.param_groups[0]["lr"])

    def _add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        if self.run.figures is not None:
            self.run.figures.add(name, total, count)

    def create_scheduler(self, num_training_steps: int) -> None:
        """(Re)start C's learning-rate schedule, counted in optimizer steps of U."""
        if self.optimizer is not None:
            self.scheduler = get_scheduler(
                self.settings.perturber_lr_scheduler_type,
                self.optimizer,
                num_warmup_steps=self.settings.perturber_warmup_steps,
                num_training_steps=num_training_steps,
            )

    # ---- the phases that belong to C -----------------------------------------------------------
    def play(self, rows: Rows, *, step: int | None = None) -> tuple[ChallengeResult, float | None]:
        """C ascends ``perturber_steps`` times; returns the last challenge and C's gradient norm.

        The norm is None where C waits for the step's other micro-batches. The visual states are
        computed once: U does not move in between. From rows that only keep step, on a rank without
        answers, C gets a zero gradient, but the rank takes part in the reduction like all others;
        if all of a step's rows are such, the norm is None too. Where the redrawn baseline is due at
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
            self._wrong_BK = {"attack_success_rate": ~result.right_BK}
        if baseline is not None and rows.counts:
            self._wrong_BK["redrawn_success_rate"] = ~baseline.right_BK
            result.metrics.update(redrawn_figures(result, baseline))
        return result, norm

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
            if self.optimizer is not None:
                result.objective = result.objective * (share if counts else 0.0)
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
        clip = self.settings.perturber_max_grad_norm
        norm = perturber_update(self.perturber, self.optimizer, mean, clip, self.run.average)
        self._note(norm)
        return results, norm if counted else None

    def _note(self, norm: float) -> None:
        """Say that an update of C was left out; stop where C does not come back."""
        if math.isfinite(norm):
            self.left_out_in_a_row = 0
            return
        self.left_out += 1
        self.left_out_in_a_row += 1
        advice = "lower perturber_learning_rate"
        if self.run.rank == 0 and self.left_out & (self.left_out - 1) == 0:  # 1, 2, 4, 8, ...
            text = "C's gradient norm is %s, so this update of C is left out (%d so far); %s"
            logger.warning(text, norm, self.left_out, advice)
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

    def mine(self, result: ChallengeResult, rows: Rows, step: int) -> MiningReport:
        """Offer the challenge's candidates to the buffer. They are not drawn again.

        Of rows that only keep step nothing is offered, but the rank hears how hard the others'
        candidates were.
        """
        if not rows.counts:
            own_E = candidate_hardness(result)[:0]
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

    def forget_candidates(self) -> None:
        """Drop what the last micro-batch drew and, without a lasting buffer, what it mined."""
        self._wrong_BK, self._replayed = {}, []
        if not self.settings.buffer:
            generator, recent = self.buffer.generator, self.buffer.recent
            self.buffer = self._new_buffer(0)
            self.buffer.generator, self.buffer.recent = generator, recent

    def judge(self, clean: ReadAnswers) -> dict[str, tuple[Tensor, Tensor]]:
        """What the candidates did to answers that U gives on the clean pictures.

        Args:
            clean: U's readings of this micro-batch's clean rows, in their order. Where drawings
                were challenged, those of the drawings count in their place.

        Returns:
            (how many were lost, how many there were to lose) by figure; empty where nothing was
            drawn.
        """
        figures = {}
        clean = clean if self._clean_drawings is None else self._clean_drawings
        for name, wrong_BK in self._wrong_BK.items():
            right_B1 = clean.right_B[: len(wrong_BK), None]
            figures[name] = (right_B1 & wrong_BK).sum(), right_B1.sum() * wrong_BK.shape[1]
        return figures

    def replay(self) -> list[HardSample]:
        """Hard samples for this micro-batch; none before the buffer is full enough."""
        if self.ready:
            self._replayed = self.buffer.sample(self.settings.hard_rows(self.batch_size))
            self.tally.replayed += len(self._replayed)
        return self._replayed

    def write_back(self, hard: ReadAnswers, step: int) -> int:
        """The losses of the replayed samples become their hardness; returns how many were learned.

        The losses are those that U learns from, so LoRA's dropout is on in them: they cost no pass.
        At the usual rate of .05 that is a small noise beside the differences between samples.

        Args:
            hard: U's readings of what ``replay`` gave, in its order.
            step: training step.
        """
        if not self.settings.buffer:
            return 0  # nothing is kept
        own_right_2B = torch.stack([hard.own_B, hard.right_B.to(hard.own_B)]).tolist()
        learned = [bool(right) and self.settings.drop_learned for right in own_right_2B[1]]
        left, given_up = self.buffer.refresh(self._replayed, own_right_2B[0], learned, step)
        self.tally.learned += left
        self.tally.given_up += given_up
        self.tally.held = len(self.buffer)
        return left

    @property
    def ready(self) -> bool:
        """True when the buffer is full enough for replay."""
        lasting = self.settings.buffer
        return len(self.buffer) >= (self.settings.min_size(self.batch_size) if lasting else 1)

    # ---- for the report's map of pictures ------------------------------------------------------
    @property
    def draws_pictures(self) -> bool:
        """Not in token space."""
        return self.settings.draws

    def draw_again(self, batch: Batch) -> dict[str, Tensor]:
        """A candidate of each picture with an answer, by C as it is now."""
        rows = batch.answers
        if not self.draws_pictures or not rows.counts:
            return {}
        with noise_kept(self):
            drawing = attack(self, self._captioned(rows)).drawing
        assert drawing is not None
        return {"candidates": drawing.images}

    @torch.no_grad()
    def kept_pictures(self, most: int) -> dict[str, Tensor]:
        """The hardest of the buffer."""
        samples = self.buffer.samples[:most]
        if not self.draws_pictures or not samples:
            return {}
        at_once = range(0, len(samples), self.batch_size)
        parts = [self._pictures(samples[i : i + self.batch_size]).cpu() for i in at_once]
        return {"buffer": torch.cat(parts)}

    # ---- checkpoints ---------------------------------------------------------------------------
    def weights(self) -> list[tuple[str, Tensor]]:
        """C's."""
        return list(self.perturber.named_parameters())

    def files(self, rank: int, world_size: int) -> list[str]:
        """C's weights, unless it has none, and this process's state."""
        weights = [PERTURBER_FILE] if files.weights_of(self.perturber) else []
        return [*weights, *super().files(rank, world_size)]

    def save_weights(self, folder: Path) -> None:
        """C's."""
        files.save_weights(folder / PERTURBER_FILE, self.perturber)

    def load_weights(self, folder: Path) -> None:
        """C's; of the same kind and size."""
        found = self._read_weights(folder)
        if found:
            self.perturber.load_state_dict(found)

    def check_weights(self, folder: Path) -> None:
        """Whether those in the folder are of the same kind and size."""
        self._read_weights(folder)

    def _read_weights(self, folder: Path) -> dict[str, Tensor]:
        advice = "resume with the perturbation, and the perturber_* settings, of that run"
        return files.read_weights(folder / PERTURBER_FILE, self.perturber, advice)

    def save(self, folder: Path, rank: int, world_size: int) -> None:
        """Write this process's state; what U read of hard pictures is read again."""
        self.buffer.forget_tokens()
        super().save(folder, rank, world_size)

    def load(self, folder: Path, rank: int, world_size: int) -> None:
        """Restore C and this process's state; a run that goes on draws by the same captions."""
        super().load(folder, rank, world_size)
        if self.captions is not None:
            self.captions.read(folder.parent)

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, except C's weights."""
        noise = self.perturber
        return {
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "buffer": self.buffer.state_dict(),
            "generator": self.generator.get_state(),
            "tally": vars(self.tally).copy(),
            "heads": self.heads.state_dict(),
            "content": self.content.state_dict() if self.content else None,
            "noise": noise.generator.get_state() if isinstance(noise, RandomPerturber) else None,
            "styles": self.styles.state_dict() if self.styles else None,
        }

    def regrouped(
        self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> dict[str, Any]:
        """C's optimizer is the same on all; the buffers are dealt out anew, hardest first.

        A process that was not there draws from generators of its own. Where there are fewer
        processes than before, what a buffer cannot hold is lost: the easiest.
        """
        own = states[rank] if rank < len(states) else self.state_dict()
        samples = [sample for state in states for sample in state["buffer"]["samples"]]
        samples.sort(key=lambda sample: -sample["hardness"])
        dealt = samples[rank::world_size]
        tallies = [state["tally"] for state in states[rank::world_size]]
        # A count that an earlier version did not keep begins at 0.
        tally = {name: sum(one.get(name, 0) for one in tallies) for name in vars(self.tally)}
        tally["held"] = min(len(dealt), self.buffer.capacity)
        buffer = {**states[0]["buffer"], "samples": dealt}
        buffer["generator"] = own["buffer"]["generator"]
        if rank == 0:
            lost = max(0, len(samples) - world_size * self.buffer.capacity)
            warn(
                f"selfplay: {len(samples)} hard samples of {len(states)} buffers are dealt out to "
                f"{world_size}; {lost} of them, the easiest, find no place"
            )
        return {
            **states[0],
            "buffer": buffer,
            "tally": tally,
            "generator": own["generator"],
            "noise": own["noise"],
            "styles": Styles.regrouped(
                [state.get("styles") for state in states], own.get("styles"), rank
            ),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if self.optimizer is not None and state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(state["generator"])
        self.tally = ReplayTally(**state["tally"])
        if state.get("heads") is not None:
            self.heads.load_state_dict(state["heads"])
        if self.content is not None and state.get("content") is not None:
            self.content.load_state_dict(state["content"])
        if self.styles is not None and state.get("styles") is not None:
            self.styles.load_state_dict(state["styles"])
        if isinstance(self.perturber, RandomPerturber) and state["noise"] is not None:
            self.perturber.generator.set_state(state["noise"])


def _add(total: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    return more if total is None else [a + b for a, b in zip(total, more, strict=True)]


def _visual(result: ChallengeResult) -> VisualStates | None:
    if result.codes is None:
        return None
    return VisualStates(result.states_BNH, result.codes)
