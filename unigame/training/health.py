"""Whether a run does what it was asked for: refused, warned of or said at its end, never silent.

What can be counted before a model is loaded is refused (``require_work``); what only shows in the
run is warned of once (``Watch``). A method looks after what is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from unigame.backbones.base import Backbone
from unigame.data.kinds import holds_pictures_alone, kinds_of
from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.system.say import warn
from unigame.training.config import UniGameConfig

if TYPE_CHECKING:
    from unigame.training.trainer import StepCounts

LONG = 100  # steps of a run that is worth a checkpoint
IDLE_STEPS = 10  # at the start of a run, after which it is plain that nothing can be learnt


# ---- before the model ----------------------------------------------------------------------------
def require_work(args: UniGameConfig, dataset: Any, methods: Sequence[Method]) -> None:
    """Refuse data on which the settings leave nothing to learn, or a method nothing to do.

    Costs no picture with our readers. Streams, and rows beyond the first thousand of a dataset
    that gives no texts without pictures, are left to ``Watch``.

    Raises:
        UserError: there is no step to make, no row can be learnt from, or a method cannot do with
            so few answers.
    """
    _require_steps(args, dataset)
    _require_captions(dataset, methods)
    _require_drawing(args, methods)
    needed = [(method, method.answers_needed(args)) for method in methods]
    enough = max([1, *(number for _, number in needed)])
    kinds = kinds_of(dataset, enough)
    if kinds is None or not kinds.whole or not kinds.rows:
        return
    if not kinds.answered and args.generation_weight == 0 and not _learns_otherwise(methods):
        raise UserError(
            f"generation_weight=0 leaves nothing to learn: none of {kinds.rows} rows has an "
            "answer, and captions train only with a weight; set generation_weight=1, or give "
            "questions and answers, or list method reca, which learns from pictures alone, or "
            "verify, which draws captions"
        )
    for method, number in needed:
        if kinds.played < number:
            method.check_answers(kinds.played, kinds.named, args)


def _require_steps(args: UniGameConfig, dataset: Any) -> None:
    """Refuse a stream that nothing ends, and rows that are all dropped before the first step."""
    if dataset is None:
        return  # left to the Trainer
    if not hasattr(dataset, "__len__"):
        if args.max_steps < 0:
            raise UserError(
                f"max_steps=-1 with a stream ({type(dataset).__name__}), which has no length to "
                "count passes by; set max_steps"
            )
        return
    rows, batch = len(dataset), args.per_device_train_batch_size
    at_once = 1 if args._loading("split_batches") else args.world_size
    if args.dataloader_drop_last and rows < batch * at_once:
        processes = f" on each of {at_once} processes" if at_once > 1 else ""
        raise UserError(
            f"dataloader_drop_last=true leaves nothing to train on: {rows} rows do not fill a "
            f"batch of per_device_train_batch_size={batch}{processes}; lower it, or leave "
            "dataloader_drop_last out"
        )


def _require_drawing(args: UniGameConfig, methods: Sequence[Method]) -> None:
    """Refuse to train the connector alone where nothing is drawn: answers do not reach it."""
    if args.train_parts == ["connector"] and not _draws(args, methods):
        raise UserError(
            "train_parts=['connector'] with generation_weight=0: the connector learns from "
            "drawing alone; set generation_weight=1, or list a method that draws (verify, reca)"
        )


def _speak_of_length(args: Any, state: Any) -> None:
    """A warm-up or checkpoints that a run of so many steps makes nothing of."""
    steps = state.max_steps
    if args.lr_scheduler_type != "constant" and args.get_warmup_steps(steps) >= steps:
        warn(
            f"U's warm-up of {args.get_warmup_steps(steps)} steps is as long as the run of "
            f"{steps}: learning_rate={args.learning_rate} is never reached; lower warmup_steps"
        )
    if steps < LONG:
        return
    if args.save_strategy == "steps" and state.save_steps >= steps:
        warn(
            "no checkpoint is written before the end: "
            f"save_steps={state.save_steps:g}, and the run has {steps} steps; with "
            f"save_steps={steps // 5} a run that is killed can go on"
        )
    elif args.save_only_model and args.save_strategy != "no":
        warn(
            "save_only_model=true: checkpoints hold no optimizer, so that a run that is stopped "
            "cannot go on; leave it out to be able to"
        )


def _draws(args: UniGameConfig, methods: Sequence[Method]) -> list[str]:
    """What of a run trains drawing, by name."""
    weighted = ["generation_weight"] if args.generation_weight > 0 else []
    drawing = {"generation", "reconstruction"}
    return weighted + [own.name for own in methods if drawing.intersection(own.losses)]


def _learns_otherwise(methods: Sequence[Method]) -> bool:
    """Whether a run can learn without an answer or the loss of captions."""
    return any(method.learns_pictures or method.learns_alone for method in methods)


def _require_captions(dataset: Any, methods: Sequence[Method]) -> None:
    """Refuse data without a caption for a method that lives on those of the data."""
    lacking = [method.name for method in methods if method.needs_captions]
    kinds = kinds_of(dataset, captions=True) if lacking else None
    if kinds is not None and kinds.whole and kinds.rows and not kinds.captioned:
        raise UserError(
            f"method {lacking[0]} has nothing to draw: none of {kinds.rows} rows has a caption; "
            "name a file of captions (texts), or give rows with captions"
        )


# ---- while it runs -------------------------------------------------------------------------------
class Watch(TrainerCallback):
    """Says once, as soon as it is plain, that a part of the run does nothing.

    Args:
        methods: what is played beside fine-tuning.
        dataset: what is learned from.
    """

    def __init__(self, methods: Sequence[Method], dataset: Any = None) -> None:
        self.methods = methods
        self.dataset = dataset
        self._by_pictures = any(method.learns_pictures for method in methods)
        self._otherwise = _learns_otherwise(methods)
        self._idle = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """What the settings say of a run of this length, with this model."""
        if not state.is_world_process_zero:
            return
        if isinstance(model, Backbone):
            self._speak_of_model(args, model)
        _speak_of_length(args, state)
        if args.generation_weight > 0:
            kinds = kinds_of(self.dataset, captions=True)
            if kinds is not None and kinds.whole and not kinds.captioned:
                warn(
                    f"generation_weight={args.generation_weight} acts on nothing: none of "
                    f"{kinds.rows} rows has a caption"
                )
        if holds_pictures_alone(self.dataset) and not self._by_pictures:
            warn(
                "rows that hold nothing but a picture train nothing here (unused_rows in the log): "
                "no listed method learns from them; add reca to methods"
            )
        for method in self.methods:
            method.begin(state.max_steps)

    def _speak_of_model(self, args: Any, model: Backbone) -> None:
        """Settings that do nothing with this model, or something else than they say."""
        if args.cache_codes and model.facts.codebook_size is None:
            warn(
                f"cache_codes=true keeps nothing: backbone family {model.facts.family!r} draws "
                "latents, which are encoded anew at every step; leave it out"
            )
        drawing = _draws(args, self.methods)
        # Beside a game the loss of captions only keeps drawing as it is.
        meant = drawing != ["generation_weight"] or all(own.name == "sft" for own in self.methods)
        if drawing and meant and model.frozen_expert:
            warn(
                f"the {model.frozen_expert} draws and does not train: what is learned by "
                f"{' and '.join(drawing)} goes into the weights that answer; to train it too, set "
                "lora.target_modules=all-linear"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Each method looks after itself."""
        if state.is_world_process_zero:
            for method in self.methods:
                method.watch(state.global_step, state.max_steps)

    def saw(self, counts: StepCounts, generation_weight: float) -> None:
        """Count the first steps in which no row could be learnt from.

        Raises:
            UserError: the run began with ``IDLE_STEPS`` of them.
        """
        if counts.answers or (counts.captions and generation_weight > 0) or self._otherwise:
            self._idle = -1  # it has begun to learn
        elif self._idle >= 0:
            self._idle += 1
        if self._idle >= IDLE_STEPS:
            raise UserError(
                f"{self._idle} steps without a row to learn from: with generation_weight="
                f"{generation_weight:g} rows that have only a caption train nothing; set "
                "generation_weight=1, or give questions and answers"
            )
