"""Every setting of a run, in one dataclass: ``transformers.TrainingArguments`` and a few of ours.

The same class serves Python (``UniGameConfig(max_steps=100)``), recipes (the ``training:`` block of
a YAML file) and the command line (``--max_steps 100``). Batch size, schedules, logging,
checkpoints, precision and the Hub are set as anywhere else. What a method adds to fine-tuning has
settings of its own, see ``methods``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, get_type_hints

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.utils import is_torch_bf16_gpu_available

from unigame.errors import UserError
from unigame.settings.rules import Rule, rule_of
from unigame.training.ranks import launched_processes, require_processes
from unigame.training.settings import RULES

# Trainer features that would be wrong or silently without effect here.
UNSUPPORTED: dict[str, str] = {
    "label_smoothing_factor": "losses are computed per sample inside the backbone; set it to 0",
    "deepspeed": "use DDP (torchrun) instead",
    "fsdp": "set shard_frozen=language, which shards the frozen weights and leaves LoRA whole",
    "enable_jit_checkpoint": "save_on_signal writes an exact checkpoint on SIGTERM; unset it",
    "fp16": "C's gradient has no loss scaling; use bf16",
    "use_liger_kernel": "its patched losses are not the per-sample losses of the game; unset it",
    "include_num_input_tokens_seen": "rows are no batch of token ids; leave it out",
    "include_for_metrics": "batches hold pictures, which no metric takes; leave it out",
    "neftune_noise_alpha": "it perturbs embeddings behind the methods' back; unset it",
}
# What transformers raises for settings that it refuses.
_REFUSALS: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, AttributeError)
_REFUSALS += (OSError, ImportError, NotImplementedError)


class MissingHardware(UserError):
    """The settings are sound, but this machine cannot run them."""


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class UniGameConfig(TrainingArguments):
    """Settings of ``UniGameTrainer``, on top of all ``TrainingArguments``.

    Every value is checked when the object is made.

    Raises:
        UserError: for a value outside its range, two settings that contradict each other, or a
            Trainer feature that is not supported.
    """

    # ---- what is learned ------------------------------------------------------------------------
    generation_weight: float = _setting(
        0.0, "Weight of the caption -> image loss (Eq. 3) for samples that have a caption."
    )
    loss_reduction: str = _setting(
        "sample",
        "'sample': every answer counts the same; 'token': every answer token does, which is the "
        "plain Trainer's rule. Equal when all answers have equally many tokens.",
    )

    max_length: int | None = _setting(
        None,
        "Longest row in tokens: picture, question and answer, or prompt and picture. Longer rows "
        "are left out, counted and said before training. Default: the model's positions.",
    )

    # ---- player U (LoRA) -----------------------------------------------------------------------
    learning_rate: float = _setting(2e-5, "AdamW learning rate of U, the LoRA weights (und_lr).")

    train_parts: list[str] | str | None = _setting(
        None,
        "Warm-up before the game: train these parts of a composed model instead of LoRA, "
        "'connector' or 'projector', with methods: [sft]. It makes a model, not an adapter.",
    )

    # ---- housekeeping --------------------------------------------------------------------------
    understanding_micro_batch: int | None = _setting(
        None,
        "U reads so many rows, those that methods add included, at a time: the same gradient with "
        "less memory. "
        "Default: as many as SFT would, per_device_train_batch_size.",
    )
    shard_frozen: str = _setting(
        "none",
        "'language': the frozen layers of the language model are shared out over the processes "
        "(FSDP2); 'language+vision': those of its vision transformer, too; 'none': each holds them "
        "all. The same losses either way; LoRA is whole on each.",
    )
    reading_order: str = _setting(
        "rows",
        "'shards': each process reads tars, or blocks of tables, of its own, a few at a time, as "
        "is best on a slow disk; 'rows': any process reads any row.",
    )
    cache_codes: bool = _setting(
        False,
        "Remember image codes by sample id (2 bytes a token); images must never change. Latents "
        "are not kept.",
    )
    max_skipped_share: float = _setting(
        0.5,
        "Share of a source's rows that may be left out (missing pictures, no text) before a run is "
        "refused; pictures that turn out damaged in training are warned of above it.",
    )
    coverage_points: int = _setting(
        100,
        "At the end map so many pictures of each kind (clean, candidates, buffer, held-out) by "
        "their frozen vision features, for the report; never more than the run saw. 0: no map.",
    )
    save_on_signal: bool = _setting(
        True, "On Ctrl-C, SIGTERM or SIGHUP finish the step and write a checkpoint, then stop."
    )
    overwrite_output_dir: bool = _setting(
        False,
        "Start over in a folder that holds a run. The old run is kept in _replaced/ until the new "
        "one is done.",
    )
    resume_anyway: bool = _setting(
        False,
        "Resume though the checkpoint's run had other settings, model or data, or though it has no "
        "manifest by which to tell that it is whole.",
    )
    logging_nan_inf_filter: bool = _setting(
        False, "A loss that is not finite ends the run, so there is nothing to hide from the log."
    )
    remove_unused_columns: bool = _setting(False, "Records keep all their fields; must be False.")
    data_seed: int | None = _setting(None, "Seed of the order of the data. Default: seed.")
    report_to: None | str | list[str] = _setting("none", "Reporting integrations, off by default.")
    logging_steps: float = _setting(10, "Log every so many optimizer steps.")
    ddp_find_unused_parameters: bool | None = _setting(
        False,
        "What a loss does not reach has a gradient of 0 here, so there is nothing to find.",
    )

    def __post_init__(self) -> None:
        """Check every value, then let ``TrainingArguments`` set itself up."""
        for name, rule in training_rules(type(self)).items():  # type: ignore[arg-type]
            setattr(self, name, rule.check(name, getattr(self, name)))
        for name, advice in UNSUPPORTED.items():
            value = getattr(self, name)
            if value and value != "no":
                raise UserError(f"{name}={value!r} is not supported: {advice}")
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes"):
            raise UserError(
                "accelerate launch --use_fsdp (ACCELERATE_USE_FSDP) is not supported: launch "
                "without it and set shard_frozen=language"
            )
        self._check_together()
        if self.data_seed is None:
            self.data_seed = self.seed  # the order of the data then depends on this alone
        self._use_current_checkpointing_names()
        if torch.backends.mps.is_available() and not torch.cuda.is_available():
            # Apple's GPUs have no float64, in which rows and losses are counted.
            self.use_cpu = True
        self._check_hardware()
        self._set_up_processes()

    def _set_up_processes(self) -> None:
        """``TrainingArguments`` finds its device and, under torchrun, the other processes."""
        processes = launched_processes()
        if processes > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # else each process would train a model of its own
        try:
            super().__post_init__()
        except _REFUSALS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"training settings: {reason}") from error
        require_processes(processes, self.world_size)

    def _check_together(self) -> None:
        """Settings that only make sense in company."""
        self._check_schedule()
        self._check_loading()
        self._check_trackers()
        if self.remove_unused_columns:
            raise UserError(
                "remove_unused_columns=True would drop images and questions; leave it False"
            )

    def _check_schedule(self) -> None:
        """Make U's schedule once: some need settings of their own, which would be missed late."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        try:
            get_scheduler(
                self.lr_scheduler_type, optimizer, 0, 10, dict(self.lr_scheduler_kwargs or {})
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"lr_scheduler_type={self.lr_scheduler_type!r} with lr_scheduler_kwargs="
                f"{self.lr_scheduler_kwargs!r} does not work ({' '.join(str(error).split())}); "
                "name what it needs in lr_scheduler_kwargs, or take another schedule"
            ) from error

    def _check_loading(self) -> None:
        """Settings of worker processes, where there are none; an order that records do not have."""
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(self, name, None) and self.dataloader_num_workers == 0:
                raise UserError(
                    f"{name}={getattr(self, name)!r} with dataloader_num_workers=0: there are no "
                    "worker processes; set dataloader_num_workers, or leave it out"
                )
        if self._loading("dispatch_batches"):
            raise UserError(
                "accelerator_config.dispatch_batches=true is not supported: it takes batches of "
                "tensors apart, and ours hold pictures and texts; leave it out"
            )
        if self.reading_order == "shards":
            self._check_reading_by_shard()
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":
            raise UserError(
                "train_sampling_strategy='group_by_length': records have no length to group by; "
                "set random or sequential"
            )

    def _check_reading_by_shard(self) -> None:
        """What else says in which order rows come, or who reads them."""
        strategy = getattr(self, "train_sampling_strategy", "random")
        if strategy != "random":
            raise UserError(
                f"reading_order='shards' with train_sampling_strategy={strategy!r}: both say in "
                "which order rows come; leave one of them out"
            )
        if given := self._loading("split_batches"):
            raise UserError(
                f"reading_order='shards' with accelerator_config.split_batches={given}: no process "
                "would read its own rows; leave one of them out"
            )

    def _loading(self, name: str) -> Any:
        """A setting of ``accelerator_config``, which may be a mapping."""
        given: Any = self.accelerator_config or {}
        return given.get(name) if isinstance(given, dict) else getattr(given, name, None)

    def _check_trackers(self) -> None:
        """``none`` and ``all`` stand alone; they are texts to transformers, not lists."""
        trackers = self.report_to or ["none"]
        for word in ("none", "all"):
            if word in trackers and len(trackers) > 1:
                raise UserError(f"report_to={trackers}: {word!r} stands alone; drop one of them")
            if trackers == [word]:
                self.report_to = word

    def _check_hardware(self) -> None:
        """What the settings need of this machine."""
        wanted = [name for name in ("bf16", "bf16_full_eval", "tf32") if getattr(self, name)]
        if wanted and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise MissingHardware(
                f"{wanted[0]}=True needs a GPU that computes in bfloat16 (Ampere or newer), and "
                "this machine has none that torch can use; train on another, or add --use_cpu "
                "(slow), or set it to false"
            )

    def _use_current_checkpointing_names(self) -> None:
        """Recipes say ``gradient_checkpointing``; newer transformers renamed it and warns."""
        known = {f.name for f in fields(self)}
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if new in known and getattr(self, new) is None and getattr(self, old) is not None:
                setattr(self, new, getattr(self, old))


@cache
def training_rules(config: Any) -> dict[str, Rule]:
    """The rule of every setting of ``UniGameConfig`` or a subclass.

    It is the table's, or by the declared type where the table does not list the setting yet.
    """
    hints = get_type_hints(config)
    return {
        item.name: RULES.get(item.name) or rule_of(hints[item.name])
        for item in fields(config)
        if item.init
    }
