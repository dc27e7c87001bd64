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

C in the states is a ``Challenger``, C in the prompts ``Styles``, what U gets of both a ``Replay``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods import files
from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Method, Run
from unigame.methods.captions import MadeCaptions
from unigame.methods.findings import Finding
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay.buffer import HardSampleBuffer
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    MiningReport,
)
from unigame.methods.selfplay.challenger import Challenger
from unigame.methods.selfplay.diagnosis import diagnose
from unigame.methods.selfplay.examples import Examples, attack, noise_kept
from unigame.methods.selfplay.floor_check import FloorCheck
from unigame.methods.selfplay.heads import Heads
from unigame.methods.selfplay.health import ReplayTally, Watch
from unigame.methods.selfplay.perturber import (
    PerturberBase,
)
from unigame.methods.selfplay.replay import Replay
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.selfplay.styles import Styles
from unigame.methods.selfplay.verifier_check import VerifierCheck
from unigame.methods.semantics import ClipSimilarity, SimilarityScorer
from unigame.seeds import derive_seed
from unigame.system.say import warn

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
        if settings.buffer and settings.min_size(batch) > settings.buffer_capacity:
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
        if (
            settings.anchor_mode == "near"
            and backbone.facts.codebook_size is None
            and run.rank == 0
        ):
            warn(
                f"anchor_mode=near pulls as own does: backbone family {backbone.facts.family!r} "
                "draws latents, and only codes have others near them; set anchor_mode=own"
            )
        self.batch_size = run.args.per_device_train_batch_size
        seed = run.args.seed if run.rank == 0 else derive_seed(run.args.seed, "rank", run.rank)
        self.challenger = Challenger(settings, run, seed, *self._given)
        self.replay = Replay(settings, run, seed, self.tally)
        self.captions: MadeCaptions | None = None
        if settings.draws and settings.missing_captions == "model":
            self.captions = MadeCaptions(backbone, run.args.output_dir, run.rank)
        named = self._judge
        self.floor_check = FloorCheck(settings.clip_floor, named, speaks=run.rank == 0)
        checks = run.rank == 0 and settings.draws and named != "none"
        self.verifier_check = VerifierCheck(
            self.scorer, named, settings.verifier_check, speaks=checks
        )
        self.styles: Styles | None = None
        if settings.styles:
            self.styles = Styles(settings, run, self.scorer)
        self._watch = Watch(self)
        kept = settings.keep_examples if run.rank == 0 and settings.draws else 0
        self.examples = Examples(kept, settings.examples_every)
        self._clean_drawings: ReadAnswers | None = None  # of drawings that are challenged
        self._told = False  # that no method offers any

    @property
    def _judge(self) -> str:
        """Who judges similarity, for messages: a setting's name, or the class of a given scorer."""
        given, settings = self._given[0], self.settings
        if given is not None:
            return type(given).__name__
        by_clip = settings.similarity == "clip"
        return f"clip {settings.similarity_mode}" if by_clip else settings.similarity

    def play_by(self, settings: SelfPlaySettings) -> None:
        """Play by other settings from now on; what is made already, as the buffer, stays."""
        self.settings = self.challenger.settings = self.replay.settings = settings
        if self.styles is not None:
            self.styles.play_by(settings)

    @property
    def perturber(self) -> PerturberBase:
        """C's network."""
        return self.challenger.perturber

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """C's; None where it has no weights."""
        return self.challenger.optimizer

    @property
    def scorer(self) -> SimilarityScorer:
        """Judges candidates."""
        return self.challenger.scorer

    @property
    def buffer(self) -> HardSampleBuffer:
        """B."""
        return self.replay.buffer

    def saw_texts(self, with_answer: int, without_caption: int) -> None:
        """Say how many samples will be redrawn by their question."""
        by_question = self.settings.draws and self.settings.missing_captions == "question"
        if by_question and without_caption and self.run.rank == 0:
            warn(
                f"{without_caption} of {with_answer} samples that were looked at have no caption "
                "and are redrawn by their question (missing_captions=question): redrawings lose "
                "content that it does not name; missing_captions=model has the model describe them"
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
        processes = int(self.run.sum(torch.ones(1, device=self.run.device)).item())
        text = tally.summary(self.settings, self.batch_size, processes)
        return text if self.styles is None else f"{text} {self.styles.summary(self.run.sum)}"

    # ---- one step: Algorithm 1 -----------------------------------------------------------------
    def before_step(self, batch: Batch, step: int) -> None:
        """Challenge and mine where this step is due, and choose what is replayed."""
        self.forget_candidates()
        with self.run.in_step():
            self.examples.before_step(self, step)
        if step % self.settings.challenge_every == 0:
            turn = step // self.settings.challenge_every
            with self.run.in_step():
                rows = self.challenged(batch, turn)
            self.examples.see(rows)
            with self.run.phase("challenge"), self.run.autocast():
                result, norm = self.play(rows, step=step)
            self.challenger.look_at_heads(result, rows.counts, self._add)
            if norm is not None:
                self._record_update(norm)
            with self.run.in_step(), self.run.autocast():
                if rows.counts:
                    self.verifier_check.see(rows)
            if rows.counts:
                self._record(result)
                self.floor_check.see(result.similarity_BK, self._similarity_of_clean(rows))
            mines = turn % self.settings.mine_every == 0
            if mines:
                self._mine(result, rows, step)
            if self.styles is not None:
                self._play_styles(self.styles, batch, turn, step if mines else None)
        if not self.plays_alone(step):
            self.replay.choose(step, self._add)

    def _mine(self, result: ChallengeResult | None, rows: Rows, step: int) -> None:
        with self.run.phase("mine"):
            report = self.mine(result, rows, step)
        self._add("acceptance_rate", report.accepted, report.candidates)

    def _play_styles(self, styles: Styles, batch: Batch, turn: int, mined_at: int | None) -> None:
        """Captions drawn anew in styles, beside the challenge: of the batch, or of drawings."""
        with self.run.phase("styled"), self.run.autocast():
            with self.run.in_step():
                rows = self._styled(styles, batch, turn)
            result = styles.play(rows, self._add)
        if mined_at is not None:
            self._mine(result, rows, mined_at)

    def _styled(self, styles: Styles, batch: Batch, turn: int) -> Rows:
        """What is drawn in styles: captions whose drawing U confirmed, with what they answer.

        Of the batch where there are none, or ``challenge_drawings`` is off.
        """
        if self.settings.challenge_drawings:
            # Another method's than the challenge has in this step, where several offer.
            count = math.ceil(self.settings.styled_share * self.batch_size)
            drawn = self._offered(batch, count, turn + 1)
            if drawn is not None:
                return drawn
        return styles.drawable(self._captioned(styles.rows(batch.answers)))

    def plays_alone(self, step: int) -> bool:
        """While C warms up against a model that does not move."""
        return step < self.settings.warm_up_steps

    def challenged(self, batch: Batch, turn: int = 0) -> Rows:
        """What C plays on: rows with an answer, or a share of them, each with a prompt.

        Args:
            batch: of the step.
            turn: number of the challenge; methods that offer drawings take turns.
        """
        share = self.settings.challenge_share
        self._clean_drawings = None
        if self.settings.challenge_drawings:
            drawn = self._drawings(batch, math.ceil(share * self.batch_size), turn)
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
    def _drawings(self, batch: Batch, count: int, turn: int) -> Rows | None:
        """Drawings that another method offers, and what U reads of them before C restyles them."""
        rows = self._offered(batch, count, turn)
        if rows is not None:
            backbone = self.run.backbone
            with self.run.autocast(), backbone.without_dropout():
                read = backbone.answer_token_losses(rows.pictures, *rows.question_arguments)
            self._clean_drawings = ReadAnswers.of(read)
        return rows

    def _offered(self, batch: Batch, count: int, turn: int) -> Rows | None:
        """Drawings of the method whose turn it is, or of the next one that has some."""
        if not batch.offered and not self._told and self.run.rank == 0:
            self._told = True
            warn(
                "challenge_drawings=true, but no method listed before selfplay offers drawings, so "
                "C challenges the batch; list imagine or verify first"
            )
        offers = batch.offered
        first = turn % len(offers) if offers else 0
        found = (offer(count) for offer in (*offers[first:], *offers[:first]))
        return next((rows for rows in found if rows is not None), None)

    def _captions(self, rows: Rows) -> list[str]:
        """The given captions, and the model's own descriptions where there are none."""
        captions = [caption.strip() for caption in rows.captions]
        bare = [row for row, caption in enumerate(captions) if not caption]
        if self.captions is not None and bare and rows.counts:
            made = self.captions(rows.pictures[bare], [rows.ids[row] for row in bare])
            for row, caption in zip(bare, made, strict=True):
                captions[row] = caption
        return captions

    @torch.no_grad()
    def step_rows(self) -> list[Rows]:
        """The hard samples as U reads them."""
        with self.run.in_step():
            return self.replay.rows(self.name)

    def after_loss(self, clean: ReadAnswers, own: ReadAnswers, step: int) -> None:
        """What the attack did to answers that U gives; hard samples get their new hardness."""
        if len(clean) or self._clean_drawings is not None:
            for name, (lost, right) in self.judge(clean).items():
                self._add(name, lost, right)
        if len(own):
            self._add("hard_ce", own.loss_B.sum(), len(own))
            self._add("hard_answer_ce", own.own_B.sum(), len(own))
            learned = self.replay.write_back(own, step)
            if self.settings.buffer:
                self._add("learned_rate", learned, len(own))

    def end_step(self) -> None:
        """C's schedule is counted in steps of U."""
        if self.challenger.scheduler is not None:
            with warnings.catch_warnings():  # C may have stood still, for want of rows
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.challenger.scheduler.step()

    def _similarity_of_clean(self, rows: Rows) -> Callable[[], Tensor] | None:
        """What a similarity to texts says of the unaltered pictures; None for other ones."""
        if self._judge != "clip image-text":
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
        self.challenger.create_scheduler(num_training_steps)

    # ---- the parts of a step, also for loops without a trainer ---------------------------------
    def play(self, rows: Rows, *, step: int | None = None) -> tuple[ChallengeResult, float | None]:
        """See ``Challenger.play``."""
        return self.challenger.play(rows, step=step)

    def mine(self, result: ChallengeResult | None, rows: Rows, step: int) -> MiningReport:
        """See ``Replay.mine``."""
        return self.replay.mine(result, rows, step)

    def forget_candidates(self) -> None:
        """Drop what the last micro-batch drew and, without a lasting buffer, what it mined."""
        self.challenger.wrong_BK = {}
        self.replay.forget()

    def judge(self, clean: ReadAnswers) -> dict[str, tuple[Tensor, Tensor]]:
        """See ``Challenger.judge``; where drawings were challenged, those count in their place."""
        drawings = self._clean_drawings
        return self.challenger.judge(clean if drawings is None else drawings)

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

    def kept_pictures(self, most: int) -> dict[str, Tensor]:
        """The hardest of the buffer."""
        pictures = self.replay.hardest(most) if self.draws_pictures else None
        return {} if pictures is None else {"buffer": pictures}

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
        return {
            **self.challenger.state_dict(),
            **self.replay.state_dict(),
            "styles": self.styles.state_dict() if self.styles else None,
        }

    def regrouped(
        self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int
    ) -> dict[str, Any]:
        """C's optimizer is the same on all; the buffers are dealt out anew.

        A process that was not there draws from generators of its own.
        """
        own = states[rank] if rank < len(states) else self.state_dict()
        return {
            **states[0],
            **self.replay.dealt(states, own, rank, world_size),
            "generator": own["generator"],
            "noise": own["noise"],
            "styles": Styles.regrouped(
                [state.get("styles") for state in states], own.get("styles"), rank
            ),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.challenger.load_state_dict(state)
        self.replay.load_state_dict(state)
        if self.styles is not None and state.get("styles") is not None:
            self.styles.load_state_dict(state["styles"])
