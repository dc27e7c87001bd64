"""The game as a ``transformers.Trainer``: Algorithm 1 of the paper, phase by phase.

    B  samples in the batch    K  candidates drawn per sample

One step, as ``UniGameTrainer.training_step`` reads::

    challenge   C perturbs, G draws, U re-reads; C ascends U's loss        (every m-th step)
    mine        its hard and still faithful candidates enter the buffer
    mix         hard samples from the buffer join the clean batch
    understand  U descends on the ONE mixed batch, weights 1 and beta

The last phase is the base Trainer's own step; with ``challenge_every=0`` it is the only one, and
the run is plain supervised fine-tuning. Choices that the paper leaves open:

1. Under gradient accumulation every micro-batch is challenged and C moves on each; U moves once.
2. With ``perturber_steps`` > 1 only the candidates of the last, strongest challenge are mined.
3. Losses are divided by what the whole optimizer step holds (all micro-batches, all ranks), so
   1 x 8, 8 x 1 and two ranks of 4 are the same step. The hard mean is taken per micro-batch.
4. U learns an answer with its end mark; the game judges it without (``selfplay/answers.py`` says
   why, and when an answer is right). The attack success rate is the share of candidates read wrong
   among samples read right, and costs no extra pass; the clean side of it is U's own training
   pass, so LoRA dropout is on there. ``redrawn_success_rate`` is what redrawing alone loses.
5. U's losses on replayed samples are written back as their hardness, and what it reads right leaves
   the buffer; they, too, are those of the training pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.methods.selfplay.answers import ReadAnswers
from unigame.methods.selfplay.challenge import ChallengeResult, GameBatch
from unigame.methods.selfplay.objectives import understanding_weights
from unigame.training.batches import (
    Batch,
    MixedRows,
    Rows,
    StepCounts,
    game_batch,
    hard_batch,
    read_images,
    understanding_inputs,
)
from unigame.training.captions import MadeCaptions
from unigame.training.collator import GameCollator
from unigame.training.config import UniGameConfig
from unigame.training.epochs import EpochOfData, require_map_style, require_rows
from unigame.training.floor_check import FloorCheck
from unigame.training.game_state import CodeCache, GameState
from unigame.training.health import ReplayTally, Watch, require_work
from unigame.training.metrics import CHALLENGE_FIGURES, EvaluationLoss, Meter, PhaseTimer
from unigame.training.models import as_backbone, seed_everything
from unigame.training.ranks import average_over_ranks, gather_from_ranks, sum_over_ranks
from unigame.training.record_checks import DataCheck, record_check
from unigame.training.resumable import ResumableTrainer
from unigame.training.skip_report import UnreadablePictures


class UniGameTrainer(ResumableTrainer):
    """Post-train a unified model by self-adversarial play; see the module docstring.

    Args:
        model: a checkpoint (bundled name, folder or Hub id), a ``Backbone``, or a loaded
            ``JanusForConditionalGeneration`` (then give its processor as ``processing_class``).
        args: ``UniGameConfig``; its defaults if left out.
        train_dataset: records ``{"image", "question", "answer", "caption", "id"}``.
        eval_dataset: likewise; its loss is Eq. 6 on clean answers, and with ``generation_weight``
            Eq. 3 on captions, each as the mean over all that there are. NaN where there are none.
        processing_class: the processor, where the model does not bring it.
        peft_config: LoRA settings; the backbone's default if left out. Ignored where the model
            already carries an adapter.
        kwargs: anything else that ``transformers.Trainer`` takes (callbacks, optimizers, ...).

    Raises:
        UserError: for settings, checkpoints or records that cannot work, before training starts.
    """

    # Ours are divided by the counts of the whole accumulated step: see StepCounts.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | Path | Backbone | JanusForConditionalGeneration,
        args: UniGameConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: peft.LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or UniGameConfig(output_dir="runs/unigame")
        if not isinstance(args, UniGameConfig):
            raise UserError(f"args is {type(args).__name__}; give a UniGameConfig")
        require_rows(train_dataset)
        require_map_style(train_dataset, args.world_size)
        require_work(args, train_dataset)
        args._n_gpu = min(args.n_gpu, 1)  # DataParallel cannot split lists of texts; use torchrun
        backbone = as_backbone(model, args, processing_class)
        if args.train_parts:
            backbone.unfreeze(args.train_parts)
        elif not any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
            seed_everything(args)  # the Trainer seeds too late for LoRA's initial weights
            backbone.add_lora(peft_config)
        check = record_check(backbone, args)
        collator = kwargs.pop("data_collator", None) or GameCollator(backbone.preprocess, check)
        super().__init__(
            model=backbone,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or getattr(backbone, "processor", None),
            **kwargs,
        )
        self.add_callback(EpochOfData(train_dataset))
        # transformers before loss_is_scaled_for_ga decides by this alone.
        self.model_accepts_loss_kwargs = True
        self.backbone = backbone
        self.data_check = DataCheck(check, speaks=args.process_index == 0)
        self.unreadable = UnreadablePictures(args.max_skipped_share, args.process_index == 0)
        self.add_callback(self.unreadable)
        self.meter = Meter(args.device)
        self.timer = PhaseTimer(args.device)
        self.code_cache = CodeCache() if args.cache_codes else None
        self.captions: MadeCaptions | None = None
        scorer = f"clip {args.similarity_mode}" if args.similarity == "clip" else args.similarity
        self.floor_check = FloorCheck(args.clip_floor, scorer, speaks=args.process_index == 0)
        self.game: GameState | None = None
        self._read: list[ReadAnswers] = []  # by the passes of one micro-batch
        if args.plays:
            self.game = GameState(
                args,
                backbone,
                device=args.device,
                rank=args.process_index,
                reduce=partial(average_over_ranks, self.accelerator),
                gather=partial(gather_from_ranks, self.accelerator),
            )
        if args.draws and args.missing_captions == "model":
            self.captions = MadeCaptions(backbone, args.output_dir, args.process_index)
        self.watch = Watch(self.game, train_dataset)
        self.add_callback(self.watch)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See ``ResumableTrainer.train``; the texts of the data are checked first."""
        self.data_check.look_at(self.train_dataset, "train_dataset")
        self.data_check.look_at(self.eval_dataset, "eval_dataset")
        if self.args.draws and self.args.missing_captions == "question":
            self.data_check.warn_of_questions()
        output = super().train(resume_from_checkpoint, **kwargs)
        self.floor_check.judge()  # a short run saw few candidates
        return output

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.captions is not None:  # a run that goes on elsewhere draws by the same captions
            self.captions.read(Path(resume_from_checkpoint).parent)

    # ---- one step: Algorithm 1 -----------------------------------------------------------------
    def training_step(
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: StepCounts | None = None,
    ) -> Tensor:
        """One micro-batch: challenge, mine, mix, then the base Trainer's step on the result."""
        if not model.training:  # after an evaluation
            model.train()
        inputs = self._encode(self._prepare_inputs(inputs))
        if self.game is not None:
            self.game.forget_candidates()
            if self._challenge_is_due():
                batch, result, counts = self._challenge(inputs)
                self._mine(batch, result, counts)
            inputs = self._mix(inputs)
        with self.timer.phase("understand"):
            loss = self._descend(model, inputs, num_items_in_batch)
        if self.game is not None and self.game.scheduler and self.accelerator.sync_gradients:
            self.game.scheduler.step()
        return loss

    def _challenge_is_due(self) -> bool:
        return self.state.global_step % self.args.challenge_every == 0

    def _encode(self, inputs: Batch) -> Batch:
        """What the frozen parts say of the pictures, once for all phases."""
        self.meter.add("skipped_images", inputs.get("num_skipped", 0))
        self.meter.add("skipped_records", len(inputs.get("left_out", ())))
        self.data_check.found(inputs.get("left_out", ()))
        self.unreadable.count("data", len(inputs["questions"]), inputs.get("num_skipped", 0))
        used_B = inputs["has_answer_B"]
        if self.args.generation_weight > 0:
            used_B = used_B | inputs["has_caption_B"]
        self.meter.add("unused_rows", (~used_B).sum())
        with self.timer.phase("read"), self.accelerator.autocast():
            inputs = {**inputs, **read_images(self.backbone, inputs["images"])}
        if self.args.generation_weight > 0:
            inputs["codes"] = self._codes(inputs["images"], inputs["ids"])
        return inputs

    def _codes(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The image tokenizer's codes, (B, N), or latents."""
        with self.timer.phase("encode"), self.accelerator.autocast(), torch.no_grad():
            if self.code_cache is None:
                return self.backbone.encode_images(images)
            return self.code_cache.encode(self.backbone, images, ids)

    def _challenge(self, inputs: Batch) -> tuple[GameBatch, ChallengeResult, bool]:
        """C ascends. The flag is False where this rank had no answers and only kept step."""
        assert self.game is not None
        batch, counts = game_batch(inputs, self.args.challenge_share, self.captions)
        if batch.codes is None and self.args.perturb_space == "decoder":
            batch.codes = self._codes(batch.images, [str(name) for name in batch.sources or ()])
        with self.timer.phase("challenge"), self.accelerator.autocast():
            result, norm = self.game.play(batch, counts=counts, step=self.state.global_step)
        if counts:
            self._record_challenge(result, norm)
            self.floor_check.see(result.similarity_BK, self._similarity_of_clean(batch))
        return batch, result, counts

    def _similarity_of_clean(self, batch: GameBatch) -> Callable[[], Tensor] | None:
        """What a similarity to texts says of the unaltered pictures; None for other ones."""
        if self.args.similarity != "clip" or self.args.similarity_mode != "image-text":
            return None
        assert self.game is not None
        return partial(self.game.scorer, batch.images, batch.images, batch.texts)

    def _mine(self, batch: GameBatch, result: ChallengeResult, counts: bool) -> None:
        """The candidates enter the buffer; they are neither drawn nor read again."""
        assert self.game is not None
        if (self.state.global_step // self.args.challenge_every) % self.args.mine_every:
            return
        with self.timer.phase("mine"):
            report = self.game.mine(result, batch, self.state.global_step, counts)
        self.meter.add("acceptance_rate", report.accepted, report.candidates)

    def _mix(self, inputs: Batch) -> Batch:
        """Hard samples join the clean batch, once the buffer is full enough."""
        assert self.game is not None
        self.meter.add("buffer_size", len(self.game.buffer))
        for name, value in self.game.buffer.hardness_quantiles((0.25, 0.5, 0.75)).items():
            self.meter.add(f"hardness_{name}", value)
        samples = self.game.replay()
        self.meter.add("replayed", len(samples))
        if not samples:
            return inputs
        with self.timer.phase("mix"), self.accelerator.autocast():
            return {**inputs, "hard": hard_batch(self.backbone, samples, self.args.perturb_space)}

    # ---- the loss of U -------------------------------------------------------------------------
    def _descend(self, model: nn.Module, inputs: Batch, counts: StepCounts | None) -> Tensor:
        """The base Trainer's step on the mixed batch, in one pass or several: one gradient."""
        mixed = MixedRows.all_of(inputs)
        passes = mixed.split(self._num_passes())
        self._read = []
        loss = torch.zeros((), device=self.args.device)
        for number, rows in enumerate(passes, start=1):
            last = number == len(passes)
            # Ranks exchange gradients once, after the last pass.
            with nullcontext() if last else self.accelerator.no_sync(model):
                part = {**inputs, "rows": rows, "generates": last}
                loss = loss + super().training_step(model, part, counts)
        kept = zip(self._read, passes, strict=True)
        read = ReadAnswers.joined([part[: rows.count] for part, rows in kept])
        self._record_understanding(read, mixed.is_hard_B.to(read.loss_B.device), mixed.clean)
        return loss

    def _num_passes(self) -> int:
        """The same on every rank and step, with or without hard samples at hand."""
        if self.game is None:
            return 1
        batch = self.args.per_device_train_batch_size
        at_once = self.args.understanding_micro_batch or batch
        return math.ceil((batch + self.args.resolved_hard_batch_size) / at_once)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: StepCounts | None = None,
    ) -> Any:
        """Eq. 6, plus ``generation_weight`` times Eq. 3; a scalar.

        Without ``num_items_in_batch`` it is the mean over this batch alone.
        """
        loss = self._understanding_loss(model, inputs, num_items_in_batch)
        if self.args.generation_weight > 0 and inputs.get("generates", True):
            generation = self._generation_loss(model, inputs, num_items_in_batch)
            loss = loss + self.args.generation_weight * generation
        return (loss, {"loss": loss}) if return_outputs else loss

    def _understanding_loss(
        self, model: nn.Module, inputs: Batch, counts: StepCounts | None
    ) -> Tensor:
        rows = inputs.get("rows") or MixedRows.all_of(inputs)
        with self.accelerator.autocast():
            mixed = understanding_inputs(self.backbone, inputs, rows)
        losses = model(loss="answer", by_token=True, **mixed)
        loss_B = losses.mean().float()
        if model.training:
            self._read.append(ReadAnswers.of(losses))
        items_B = self._items(mixed["questions"], mixed["answers"])
        if counts is None:
            num_clean, num_hard, scale = items_B[~rows.is_hard_B].sum(), None, 1
        else:
            num_clean, scale = torch.as_tensor(counts.answers), counts.world_size
            num_hard = self._hard_items(inputs) * counts.micro_batches * counts.world_size
        weight_B = understanding_weights(
            rows.is_hard_B, self.args.beta, num_clean=num_clean, num_hard=num_hard
        )
        weight_B = (weight_B * items_B * rows.counts_B).to(loss_B)
        return scale * (weight_B * loss_B).sum()

    def _hard_items(self, inputs: Batch) -> Tensor:
        """What all hard rows of the mixed batch count for."""
        hard = inputs.get("hard")
        if hard is None:
            return torch.zeros(())
        return self._items(hard["questions"], hard["answers"]).sum()

    def _generation_loss(
        self, model: nn.Module, inputs: Batch, counts: StepCounts | None
    ) -> Tensor:
        """Eq. 3 over the rows that have a caption."""
        rows = Rows.where(inputs["has_caption_B"])
        codes = inputs.get("codes")
        loss_B = model(
            loss="generation",
            images=inputs["images"][rows.index],
            captions=rows.pick(inputs["captions"]),
            codes=codes[rows.index] if codes is not None else None,
        ).float()
        if rows.count == 0:
            return 0.0 * loss_B.sum()
        if model.training:
            self.meter.add_mean("generation_loss", loss_B)
        if counts is None:
            return loss_B.mean()
        return counts.world_size * loss_B.sum() / counts.captions

    def _items(self, questions: list[str], answers: list[str]) -> Tensor:
        """What each row counts for, (B,): 1, or its number of answer tokens."""
        if self.args.loss_reduction == "sample":
            return torch.ones(len(answers))
        return self.backbone.answer_lengths(questions, answers).float()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimizer step, and what they hold over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        answers = sum(self._count_answers(batch) for batch in batches)
        captions = sum(int(batch["has_caption_B"].sum()) for batch in batches)
        totals = torch.tensor([answers, captions], dtype=torch.float64, device=device)
        answers, captions = self._sum_over_ranks(totals).tolist()
        world_size = self.accelerator.num_processes
        counts = StepCounts(answers, captions, len(batches), world_size)
        self.watch.saw(counts, self.args.generation_weight)
        return batches, counts

    def _count_answers(self, batch: Batch) -> float:
        rows = Rows.where(batch["has_answer_B"])
        if rows.count == 0:
            return 0.0
        items_B = self._items(rows.pick(batch["questions"]), rows.pick(batch["answers"]))
        return float(items_B.sum())

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Evaluation: the clean loss of one batch. Answers are judged by ``unigame evaluate``."""
        with torch.no_grad():
            inputs = self._prepare_inputs(inputs)
            self.data_check.found(inputs.get("left_out", ()))
            self.unreadable.count(
                "eval_data", len(inputs["questions"]), inputs.get("num_skipped", 0)
            )
            answers = self._understanding_loss(model, inputs, None)
            self._evaluated.add("answers", answers, self._count_answers(inputs))
            loss = answers
            if self.args.generation_weight > 0:
                captions = self._generation_loss(model, inputs, None)
                self._evaluated.add("captions", captions, float(inputs["has_caption_B"].sum()))
                loss = loss + self.args.generation_weight * captions
        return loss.detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the base class, with a loss that counts every answer, and not every batch, alike."""
        self._evaluated = EvaluationLoss(self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = self._evaluated.mean(self.args.generation_weight, self._sum_over_ranks)
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    # ---- what is logged ------------------------------------------------------------------------
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the game's figures, averaged over steps and ranks, to every training log."""
        if "loss" in logs:
            self.timer.flush(self.meter)
            logs = {**logs, **self.meter.flush(self._sum_over_ranks)}
        super().log(logs, start_time)

    def _record_challenge(self, result: ChallengeResult, norm: float) -> None:
        assert self.game is not None
        figures = result.metrics
        for name in CHALLENGE_FIGURES:  # some only where there are codes, or a term, or a baseline
            if name in figures:
                self.meter.add(name, figures[name])
        self.meter.add("perturber_objective", figures["objective"])
        if self.game.optimizer is not None:
            self.meter.add("perturber_grad_norm", norm)
            self.meter.add("perturber_learning_rate", self.game.optimizer.param_groups[0]["lr"])

    def _record_understanding(self, read: ReadAnswers, is_hard_B: Tensor, rows: Rows) -> None:
        """Of the mixed batch: ``*_ce`` is what U learns, ``*_answer_ce`` is without end marks."""
        if rows.count:
            clean = read[~is_hard_B]
            self.meter.add_mean("clean_ce", clean.loss_B)
            self.meter.add_mean("clean_answer_ce", clean.own_B)
            figures = self.game.judge(clean) if self.game is not None else {}
            for name, (lost, right) in figures.items():
                self.meter.add(name, lost, right)
        if len(read) > len(rows.index):
            hard = read[is_hard_B]
            self.meter.add_mean("hard_ce", hard.loss_B)
            self.meter.add_mean("hard_answer_ce", hard.own_B)
            assert self.game is not None
            learned = self.game.write_back(hard, self.state.global_step)
            if self.args.buffer:
                self.meter.add("learned_rate", learned, len(hard))

    # ---- ranks, schedules ----------------------------------------------------------------------
    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """U's schedule and, beside it, C's: both run over the same optimizer steps."""
        if self.game is not None:
            self.game.create_scheduler(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def replay_tally(self) -> ReplayTally | None:
        """What all processes replayed; None without a game. Every process must ask."""
        if self.game is None:
            return None
        return self.game.tally.summed(self._sum_over_ranks, self.args.device)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return sum_over_ranks(self.accelerator, values)
