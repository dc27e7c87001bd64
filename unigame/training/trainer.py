"""Fine-tuning of a unified model as a ``transformers.Trainer``; methods add what they add.

One step, as ``UniGameTrainer.training_step`` reads::

    read        what the frozen parts say of the batch's pictures, once
    play        before_step of each method
    gather      the records' rows, and the rows that each method adds
    descend     ONE loss over all of them; U moves
    tell        after_loss of each method

With ``methods=["sft"]`` nothing is added, and the run is plain supervised fine-tuning. The trainer
knows the protocol of ``methods/base.py`` and no method.

What rows count for: an answer or caption of the records is divided by what the whole optimizer step
holds (all micro-batches, all ranks), so 1 x 8, 8 x 1 and two ranks of 4 are the same step, but for
noise and dropout, which each rank draws for itself. Rows that a method adds count as ``weight``
times their mean over the micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import JanusForConditionalGeneration

from unigame.backbones.base import Backbone
from unigame.data.kinds import holds_pictures_alone
from unigame.errors import UserError
from unigame.methods.answers import ReadAnswers
from unigame.methods.base import Method, Run
from unigame.methods.findings import Finding
from unigame.methods.registry import as_methods
from unigame.methods.rows import DATA, Batch, LossName, Rows, join, split_groups
from unigame.system.say import Heard, warn
from unigame.training.about import write_about
from unigame.training.code_cache import CodeCache
from unigame.training.collator import RecordCollator
from unigame.training.config import UniGameConfig
from unigame.training.coverage import Sources, write_coverage
from unigame.training.epochs import EpochOfData, require_map_style, require_rows
from unigame.training.even_batches import EvenBatches, even_batches, without_stand_in
from unigame.training.guard import require_finite
from unigame.training.health import Watch, require_work
from unigame.training.identity import own_randomness
from unigame.training.metrics import EvaluationLoss, Meter, PhaseTimer
from unigame.training.models import as_backbone, seed_everything
from unigame.training.ranks import (
    OwnNoise,
    average_over_ranks,
    gather_from_ranks,
    sum_over_ranks,
)
from unigame.training.record_checks import DataCheck, record_check
from unigame.training.resumable import ResumableTrainer
from unigame.training.shard_order import ShardOrder
from unigame.training.sharding import require_shardable, shard_frozen, shards
from unigame.training.skip_report import UnreadablePictures
from unigame.training.trackers import GalleryCallback, require_trackers
from unigame.training.waiting import Waiting
from unigame.training.weight_path import WeightPath

Parts = dict[LossName, list[Rows]]
"""The rows of a micro-batch, or of one pass, by loss: the records' ones before added ones."""


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step holds over all its micro-batches and ranks; denominators of losses.

    Attributes:
        answers: answers, or answer tokens under ``loss_reduction="token"``.
        captions: samples with a caption.
        micro_batches: micro-batches on this rank.
        world_size: ranks; gradients are averaged over them, so local sums are scaled up by it.
    """

    answers: float
    captions: float
    micro_batches: int
    world_size: int


class UniGameTrainer(ResumableTrainer):
    """Post-train a unified model by fine-tuning and methods beside it; see the module docstring.

    Args:
        model: a checkpoint (bundled name, folder or Hub id), a ``Backbone``, or a loaded
            ``JanusForConditionalGeneration`` (then give its processor as ``processing_class``).
        args: ``UniGameConfig``; its defaults if left out.
        train_dataset: records ``{"image", "question", "answer", "caption", "id"}``.
        eval_dataset: likewise; its loss is the mean over all clean answers and, with
            ``generation_weight``, over all captions. NaN where there are none.
        processing_class: the processor, where the model does not bring it.
        peft_config: LoRA settings; the backbone's default if left out. Ignored where the model
            already carries an adapter.
        methods: what is played beside fine-tuning, as objects or names:
            ``[SelfPlay(beta=0.5)]``, ``["sft"]``. Self-play at its defaults if left out.
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
        methods: Sequence[Method | str] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or UniGameConfig(output_dir="runs/unigame")
        if not isinstance(args, UniGameConfig):
            raise UserError(f"args is {type(args).__name__}; give a UniGameConfig")
        self.heard = Heard()
        self.methods = as_methods(methods)
        for method in self.methods:
            method.check(args)
        require_shardable(args, self.methods)
        require_rows(train_dataset)
        require_map_style(train_dataset, args.world_size)
        require_work(args, train_dataset, self.methods)
        if isinstance(train_dataset, IterableDataset):
            args.accelerator_config.dispatch_batches = False  # it cannot count our batches' rows
        require_trackers(args)
        args._n_gpu = min(args.n_gpu, 1)  # DataParallel cannot split lists of texts; use torchrun
        backbone = as_backbone(model, args, processing_class)
        if args.train_parts:
            backbone.unfreeze(args.train_parts)
        elif not any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
            seed_everything(args)  # the Trainer seeds too late for LoRA's initial weights
            backbone.add_lora(peft_config)
        self._in_step = shard_frozen(backbone, args)
        needs_caption = any(method.refuses_missing_captions for method in self.methods)
        pictures = self._learns_pictures or holds_pictures_alone(train_dataset)
        check = record_check(backbone, args, needs_caption, needs_text=not pictures)
        collator = kwargs.pop("data_collator", None) or RecordCollator(backbone.preprocessor, check)
        super().__init__(
            model=backbone,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or getattr(backbone, "processor", None),
            **kwargs,
        )
        self.epochs = EpochOfData(train_dataset)
        self.add_callback(self.epochs)
        self.add_callback(OwnNoise())
        self._order: ShardOrder | None = None
        # transformers before loss_is_scaled_for_ga decides by this alone.
        self.model_accepts_loss_kwargs = True
        self.backbone = backbone
        self.data_check = DataCheck(check, speaks=args.process_index == 0)
        self.unreadable = UnreadablePictures(args.max_skipped_share, args.process_index == 0)
        self.add_callback(self.unreadable)
        self.meter = Meter(args.device, self.methods)
        self.timer = PhaseTimer(args.device)
        self.waiting = Waiting(args)
        self.add_callback(self.waiting)
        self.code_cache = CodeCache() if args.cache_codes else None
        self.gallery = GalleryCallback(lambda: self.callback_handler.callbacks, self._finish)
        self.callback_handler.callbacks.insert(0, self.gallery)  # before the trackers close
        self._found: list[ReadAnswers] = []  # by the passes of one micro-batch
        for method in self.methods:
            method.setup(self._run())
        self.watch = Watch(self.methods, train_dataset)
        self.add_callback(self.watch)
        self.path = WeightPath(backbone)
        self.add_callback(self.path)

    def _run(self) -> Run:
        """What a method is given of this run."""
        several = self.accelerator.num_processes > 1
        return Run(
            args=self.args,
            backbone=self.backbone,
            device=self.args.device,
            rank=self.args.process_index,
            figures=self.meter,
            phase=lambda name: self.timer.phase(name),
            autocast=self.accelerator.autocast,
            codes=self._codes,
            average=partial(average_over_ranks, self.accelerator) if several else None,
            gather=partial(gather_from_ranks, self.accelerator) if several else None,
            sum=self._sum_over_ranks,
            sharded=shards(self.args),
            in_step=self._in_step,
            closes_step=lambda: self.accelerator.sync_gradients,
            show=lambda shown: self.gallery.show(self.state.global_step, shown),
        )

    @property
    def _learns_pictures(self) -> bool:
        return any(method.learns_pictures for method in self.methods)

    def method(self, name: str) -> Any:
        """The method of that name.

        Raises:
            UserError: it is not listed.
        """
        for method in self.methods:
            if method.name == name:
                return method
        listed = ", ".join(method.name for method in self.methods)
        raise UserError(f"this run lists no method {name!r}, only {listed or 'none'}")

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See ``ResumableTrainer.train``; the texts of the data are checked first."""
        self.data_check.look_at(self.train_dataset, "train_dataset")
        self.data_check.look_at(self.eval_dataset, "eval_dataset")
        for method in self.methods:
            method.saw_texts(self.data_check.with_answer, self.data_check.without_caption)
        self.timer.memory.on = True
        output = super().train(resume_from_checkpoint, **kwargs)
        self.timer.memory.on = False
        self._write_about()
        return output

    def take_up(self, resume_from_checkpoint: str) -> Any:
        """See ``ResumableTrainer.take_up``; the report gets what the stopped run did not write.

        But for what a method keeps of the latest batches only, such as the pictures of the game.
        """
        output = super().take_up(resume_from_checkpoint)
        self.path.on_train_begin(self.args, self.state, self.control)  # keeps what it has
        self._finish()
        self._write_about()
        return output

    def _write_about(self) -> None:
        """What the report says of the run, and its map of pictures."""
        with self._in_step():  # the first process looks at pictures, for the map
            coverage = self._map_pictures() if self.is_world_process_zero() else ""
        said = self.closing_sentences()
        if self.is_world_process_zero():
            lacking = {"path": self.path.why_not, "coverage": coverage}
            steps = self.state.global_step
            heard = self.heard.lines
            write_about(self.args, steps, self.health(), lacking, self.train_dataset, said, heard)

    def closing_sentences(self) -> tuple[str, ...]:
        """What each method says of the run at its end; every process must ask."""
        return tuple(said for method in self.methods if (said := method.summary()))

    def _finish(self) -> None:
        """All steps are done. Not where a signal ends the run, nor on weights that broke."""
        self.timer.memory.on = False
        if self.guard.stopping:
            return
        require_finite(self._weights_of_u(), "U")
        for method in self.methods:
            method.finish()

    def _map_pictures(self) -> str:
        """The coverage map of the report; returns why there is none."""
        sources = Sources(
            backbone=self.backbone,
            methods=self.methods,
            train=self.train_dataset,
            held_out=self.eval_dataset,
            collate=self.data_collator,
            autocast=self.accelerator.autocast,
        )
        return write_coverage(sources, self.args, self.state.global_step)

    def health(self) -> list[Finding]:
        """What the methods find wrong with the run so far, by its log."""
        log = self.state.log_history
        found = [f for method in self.methods for f in method.health(log)]
        found += self.waiting.health(log)
        return list({finding.line: finding for finding in found}.values())

    # ---- one step ------------------------------------------------------------------------------
    def training_step(
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: StepCounts | None = None,
    ) -> Tensor:
        """One micro-batch: read, play, gather, descend, tell."""
        if not model.training:  # after an evaluation
            model.train()
        batch, step = self._read(inputs.to(self.args.device)), self.state.global_step
        for method in self.methods:
            method.before_step(batch, step)
        if any(method.plays_alone(step) for method in self.methods):
            self._end_step()
            return torch.zeros((), device=self.args.device)
        added = [rows for method in self.methods for rows in method.step_rows()]
        with self.timer.phase("understand"):
            parts = self._parts(batch, added, num_items_in_batch)
            loss, read = self._descend(model, parts, num_items_in_batch)
        self._tell(read, parts["answer"], batch.answers.counts)
        self._end_step()
        return loss

    def _end_step(self) -> None:
        if self.accelerator.sync_gradients:
            for method in self.methods:
                method.end_step()

    def _read(self, batch: Batch) -> Batch:
        """What the frozen parts say of the pictures, once for all phases."""
        self.meter.add("skipped_images", batch.num_skipped)
        self.meter.add("skipped_records", len(batch.left_out))
        self.data_check.found(batch.left_out)
        self.unreadable.count("data", len(batch), batch.num_skipped, batch.unread)
        records, others = batch.records, batch.others
        if records.counts:
            used_R = batch.has_answer_R
            if self.args.generation_weight > 0 or any(m.needs_captions for m in self.methods):
                used_R = used_R | batch.has_caption_R
            if self._learns_pictures:
                used_R = torch.ones_like(used_R)
            self.meter.add("unused_rows", (~used_R).sum())
        if others is not None:
            self.meter.add("text_rows", sum(not shown for shown in others.image_index or ()))
            self.meter.add("several_picture_rows", sum(map(bool, others.image_index or ())))
        with self.timer.phase("read"), self.accelerator.autocast(), torch.no_grad():
            # Not where something before the language model learns: its gradient needs the pictures.
            if self.backbone.reads_frozen:
                records, others = self._frozen_reading(records, others)
        if self.args.generation_weight > 0:
            records = replace(records, codes=self._codes(records.pictures, records.ids))
        return replace(batch, records=records, others=others, offered=[])

    def _frozen_reading(self, records: Rows, others: Rows | None) -> tuple[Rows, Rows | None]:
        """The rows with what U reads of their pictures: all in one pass, as on every rank."""
        if others is None:
            features, embeds = self.backbone.read_images(records.pictures)
            return replace(records, features=features, embeds=embeds), None
        features, embeds = self.backbone.read_images(torch.cat([records.pictures, others.pictures]))
        count = len(records)
        return (
            replace(records, features=features[:count], embeds=embeds[:count]),
            replace(others, features=features[count:], embeds=embeds[count:]),
        )

    def _codes(self, images: Tensor, ids: Sequence[str]) -> Tensor:
        """The image tokenizer's codes, (B, N), or latents."""
        with self.timer.phase("encode"), self.accelerator.autocast(), torch.no_grad():
            if self.code_cache is None:
                return self.backbone.encode_images(images)
            return self.code_cache.encode(self.backbone, images, ids)

    # ---- rows, and what each counts for --------------------------------------------------------
    def _parts(self, batch: Batch, added: Sequence[Rows], counts: StepCounts | None) -> Parts:
        """The rows of this micro-batch by loss, each with its share.

        Every loss that can occur in the run is there, so that ranks run equal passes.
        """
        parts = self._parts_of_records(batch, counts)
        for loss in ("answer", "generation", "reconstruction"):
            of_methods = [rows for rows in added if rows.loss == loss]
            if not of_methods and loss not in parts:
                if not any(loss in method.losses for method in self.methods):
                    continue
                of_methods = [replace(batch.records, loss=loss).pick([]).filled()]
            parts.setdefault(loss, []).extend(self._shared(rows, counts) for rows in of_methods)
        return parts

    def _parts_of_records(self, batch: Batch, counts: StepCounts | None) -> Parts:
        if counts is None:  # all answers of the batch share its loss
            captions = float(batch.has_caption_R.sum())
            counts = StepCounts(self._count_answers(batch), captions, 1, 1)
        parts: Parts = {"answer": [self._shared(batch.answers, counts)]}
        if batch.others is not None:
            parts["answer"].append(self._shared(batch.others, counts))
        if self.args.generation_weight > 0:
            parts["generation"] = [self._shared(batch.captioned, counts)]
        return parts

    def _shared(self, rows: Rows, counts: StepCounts | None) -> Rows:
        """Rows of one source, with what the loss of each is multiplied by."""
        items_R = self._items(rows)
        if not rows.counts:
            return replace(rows, share_R=torch.zeros_like(items_R))
        weight, number = rows.weight, items_R.sum()
        of_records = rows.source[0] == DATA
        if of_records and rows.loss == "generation":
            weight = self.args.generation_weight
        if counts is not None and of_records:
            number = torch.as_tensor(
                counts.answers if rows.loss == "answer" else counts.captions, dtype=torch.float32
            )
        elif counts is not None:
            number = number * counts.micro_batches * counts.world_size
        # clamp: what is empty has no weight to give, and must not divide by zero.
        return replace(rows, share_R=weight / number.clamp(min=1) * items_R)

    def _items(self, rows: Rows) -> Tensor:
        """What each row counts for, (R,): 1, or its number of answer tokens."""
        if self.args.loss_reduction == "sample" or rows.loss != "answer":
            return torch.ones(len(rows))
        return self.backbone.answer_lengths(*rows.question_arguments).float()

    # ---- the loss of U -------------------------------------------------------------------------
    def _descend(
        self, model: nn.Module, parts: Parts, counts: StepCounts | None
    ) -> tuple[Tensor, ReadAnswers]:
        """The base Trainer's step on all rows, in one pass or several: one gradient."""
        passes = split_groups(parts["answer"], self._num_passes())
        self._found = []
        loss = torch.zeros((), device=self.args.device)
        for number, (answers, _) in enumerate(passes, start=1):
            last = number == len(passes)
            part: Parts = {**parts, "answer": answers} if last else {"answer": answers}
            with self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, part, counts)  # type: ignore[arg-type]
        if self.accelerator.sync_gradients:
            self._average_gradients()
        found = [read[:rows] for read, (_, rows) in zip(self._found, passes, strict=True)]
        return loss, ReadAnswers.joined(found)

    def _average_gradients(self) -> None:
        """Once a step, all in the order of the parameters.

        Not by DDP: it orders them anew after its first step, and of more than two numbers the sum
        hangs on the order. A run that goes on from a checkpoint would end in other bits.
        """
        if self.accelerator.num_processes == 1:
            return
        gradients = []
        for weight in self.backbone.parameters():
            if weight.requires_grad:
                if weight.grad is None:  # every rank exchanges as many
                    weight.grad = torch.zeros_like(weight)
                gradients.append(weight.grad)
        average_over_ranks(self.accelerator, gradients)

    def _num_passes(self) -> int:
        """The same on every rank and step, with or without added rows at hand."""
        batch = self.args.per_device_train_batch_size
        most = sum(method.rows_at_most(self.args) for method in self.methods)
        if not most and self.args.understanding_micro_batch is None:
            return 1
        return math.ceil((batch + most) / (self.args.understanding_micro_batch or batch))

    def _prepare_inputs(self, inputs: Any) -> Any:
        """A batch is moved to the device; rows are there."""
        return inputs.to(self.args.device) if isinstance(inputs, Batch) else inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch | Parts,
        return_outputs: bool = False,
        num_items_in_batch: StepCounts | None = None,
    ) -> Any:
        """The sum of each row's loss times its share: a scalar.

        Of a batch as the collator made it, it is the mean over its answers, plus
        ``generation_weight`` times the mean over its captions.
        """
        if isinstance(inputs, Batch):
            inputs = self._parts_of_records(inputs, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        for name, groups in inputs.items():
            loss = loss + self._loss_of(model, name, groups)
        loss = loss * (num_items_in_batch.world_size if num_items_in_batch else 1)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _loss_of(self, model: nn.Module, name: LossName, groups: Sequence[Rows]) -> Tensor:
        """The rows of one loss through the model."""
        groups = self._with_tokens(groups)
        with self.accelerator.autocast():
            rows = join(groups, self.backbone.embed_images)
        assert rows.share_R is not None
        if name == "answer":
            # Where U's reading is known the pictures are not read again.
            images = None if rows.embeds is not None else rows.images
            asked = dict(zip(("questions", "answers"), rows.question_arguments, strict=False))
            if rows.image_index is not None:
                asked["image_index"] = rows.image_index
            if images is not None and not len(images):  # a pass of text alone: ranks keep step
                images = images.new_zeros(1, *images.shape[1:])
            found = model(loss=name, by_token=True, images=images, embeds=rows.embeds, **asked)
            loss_R = found.mean().float()
            if model.training:
                self._found.append(ReadAnswers.of(found))
        else:
            drawn = {"images": rows.images, "codes": rows.codes}
            if name == "reconstruction":
                drawn |= {"templates": rows.prompt_argument, "embeds": rows.embeds}
            else:
                drawn["captions"] = rows.prompt_argument
            loss_R = model(loss=name, **drawn).float()
            if model.training and rows.share_R.any():
                self.meter.add_mean(f"{name}_loss", loss_R)
        return (rows.share_R.to(loss_R) * loss_R).sum()

    def _with_tokens(self, groups: Sequence[Rows]) -> Sequence[Rows]:
        """All as tokens where some show no picture, or several: their texts do not say it."""
        if all(rows.image_index is None for rows in groups):
            return groups
        return [
            rows
            if rows.asked is not None
            else replace(rows, asked=self.backbone.answer_tokens(rows.questions, rows.answers))
            for rows in groups
        ]

    def _tell(self, read: ReadAnswers, groups: Sequence[Rows], counts: bool) -> None:
        """Each method hears what U found.

        ``*_ce`` is what U learns, ``*_answer_ce`` is without end marks. Rows that only keep the
        ranks in step are nobody's answers.
        """
        source = [name if rows.counts else "" for rows in groups for name in rows.source]
        clean = read[: len(groups[0]) if counts else 0]
        if len(clean):
            self.meter.add_mean("clean_ce", clean.loss_B)
            self.meter.add_mean("clean_answer_ce", clean.own_B)
        for method in self.methods:
            own = torch.tensor([name == method.name for name in source])
            method.after_loss(clean, read[own.to(read.loss_B.device)], self.state.global_step)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimizer step, and what they hold over all ranks."""
        with self.waiting.for_data():
            batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
            answers = sum(self._count_answers(batch) for batch in batches)
            captions = sum(int(batch.has_caption_R.sum()) for batch in batches)
            totals = torch.tensor([answers, captions], dtype=torch.float64, device=device)
            answers, captions = self._sum_over_ranks(totals).tolist()
        world_size = self.accelerator.num_processes
        counts = StepCounts(answers, captions, len(batches), world_size)
        self.watch.saw(counts, self.args.generation_weight)
        return batches, counts

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the rows: as transformers has it, or shard by shard."""
        if self.args.reading_order != "shards" or self.train_dataset is None:
            return super()._get_train_sampler(train_dataset)
        if self._order is None:  # one for the whole run, since loaders are made more than once
            args = self.args
            batch, seed = args.train_batch_size, int(args.data_seed or 0)
            self._order = ShardOrder(self.train_dataset, args.world_size, batch, seed)
            self.epochs.data.append(self._order)
            for line in self._order.faults() if args.process_index == 0 else ():
                warn(f"reading_order=shards: {line}")
        return self._order

    def _count_answers(self, batch: Batch) -> float:
        groups = [batch.answers, *([] if batch.others is None else [batch.others])]
        return sum(float(self._items(rows).sum()) for rows in groups if rows.counts)

    # ---- evaluation ----------------------------------------------------------------------------
    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As the base class; an evaluation on several processes reads every row once."""
        # A collator of somebody's own may not know the stand-ins.
        if not kwargs.get("is_training") and isinstance(self.data_collator, RecordCollator):
            batch, processes = self.args.eval_batch_size, self.accelerator.num_processes
            dataset = even_batches(dataset, batch, processes)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Evaluation: the clean loss of one batch. Answers are judged by ``unigame evaluate``."""
        with torch.no_grad():
            batch = without_stand_in(inputs.to(self.args.device))
            self.data_check.found(batch.left_out)
            self.unreadable.count("eval_data", len(batch), batch.num_skipped, batch.unread)
            loss = torch.zeros((), device=self.args.device)
            for name, groups in self._parts_of_records(batch, None).items():
                of_loss = self._loss_of(model, name, groups)
                if name == "answer":
                    self._evaluated.add("answers", of_loss, self._count_answers(batch))
                else:
                    mean = of_loss / self.args.generation_weight
                    self._evaluated.add("captions", mean, float(batch.has_caption_R.sum()))
                loss = loss + of_loss
        return loss.detach(), None, None

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> Any:
        """As the base class, with a loss that counts every answer, and not every batch, alike."""
        self._evaluated = EvaluationLoss(self.args.device)
        with own_randomness(cuda=True):  # dropout afterwards is that of a run without it
            output = super().evaluation_loop(
                dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        dataset = getattr(dataloader, "dataset", None)
        if isinstance(dataset, EvenBatches):
            output = output._replace(num_samples=len(dataset.rows))
        loss = self._evaluated.mean(self.args.generation_weight, self._sum_over_ranks)
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate knows nothing of pictures."""
        return 0

    # ---- what is logged, ranks, schedules ------------------------------------------------------
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our figures, averaged over steps and ranks, to every training log."""
        if "loss" in logs:
            self.timer.flush(self.meter)
            self.waiting.flush(self.meter)
            logs = {**logs, **self.meter.flush(self._sum_over_ranks)}
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """U's schedule and, beside it, those of the methods: over the same optimizer steps."""
        for method in self.methods:
            method.create_scheduler(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return sum_over_ranks(self.accelerator, values)
