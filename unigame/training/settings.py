"""The table of training settings: what each takes, in groups.

It is the one home of their types and ranges. ``UniGameConfig`` checks every value by it, wherever
the value came from, and ``unigame train RECIPE --help`` prints it. Settings of ``UniGameConfig``
bring their own help; for those of ``transformers.TrainingArguments`` that people look for it is
here. A setting that a newer transformers adds has no rule yet and is read by its declared type.
"""

from __future__ import annotations

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from unigame.settings.rules import (
    Made,
    Many,
    Number,
    OneOf,
    Pattern,
    Rule,
    Switch,
    Table,
    Text,
    Whole,
)

MOST = 2**31 - 1  # of steps, rows and bytes: what every library counts with
SEED = 2**32 - 1  # numpy's

STRATEGIES = ("no", "steps", "epoch")
TRACKERS = (
    "none",
    "all",
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_POSITIVE = Number(low=0, above=True)
_WEIGHT = Number(low=0)
_RATE = Number(low=0, high=1e30)  # Adam divides it by 1 - beta, which float32 has to hold
_COUNT = Whole(low=1, high=MOST)
_COUNT_OR_NONE = Whole(low=1, high=MOST, optional=True)
_TEXT_OR_NONE = Text(optional=True)
_SWITCH_OR_NONE = Switch(optional=True)
_KEYWORDS = Table(optional=True)
_CHECKPOINTING = Table(  # what torch.utils.checkpoint takes of plain values
    keys=("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop", "debug"),
    optional=True,
)
DEBUGGERS = ("", "underflow_overflow", "tpu_metrics_debug")

GROUPS: dict[str, dict[str, Rule]] = {
    "The run": {
        "output_dir": Text(optional=True, literal=True, help="Folder of everything it writes."),
        "max_steps": Whole(low=1, high=MOST, also=(-1,), help="Optimizer steps. -1: by epochs."),
        "num_train_epochs": Number(low=0, above=True, high=1e6, help="Passes over the data."),
        "per_device_train_batch_size": Whole(low=1, high=2**20, help="Rows of a micro-batch."),
        "gradient_accumulation_steps": Whole(
            low=1, high=2**20, help="Micro-batches of an optimizer step."
        ),
        "seed": Whole(low=0, high=SEED, help="Of weights, data and drawing."),
        "data_seed": Whole(low=0, high=SEED, optional=True),
        "resume_from_checkpoint": Text(
            optional=True,
            alone=True,
            help="A checkpoint folder to go on from; true: the last one; auto: that, if any.",
        ),
        "resume_anyway": Switch(),
        "overwrite_output_dir": Switch(),
        "save_on_signal": Switch(),
        "ignore_data_skip": Switch(),
        "restore_callback_states_from_checkpoint": Switch(),
        "full_determinism": Switch(),
        "do_train": Switch(),
        "do_eval": Switch(),
        "do_predict": Switch(),
    },
    "What is learned": {
        "generation_weight": _WEIGHT,
        "loss_reduction": Text(choices=("sample", "token")),
    },
    "Player U (LoRA)": {
        "learning_rate": _RATE,
        "lr_scheduler_type": Text(
            choices=tuple(kind.value for kind in SchedulerType), help="U's schedule."
        ),
        "lr_scheduler_kwargs": _KEYWORDS,
        "warmup_steps": Number(low=0, high=MOST, help="Linear warm-up; below 1 a share of all."),
        "warmup_ratio": Number(low=0, high=1, optional=True),  # of older transformers
        "weight_decay": _WEIGHT,
        "max_grad_norm": Number(low=0, help="U's gradient is clipped to this norm. 0: not at all."),
        "optim": Text(choices=tuple(kind.value for kind in OptimizerNames)),
        "optim_args": _TEXT_OR_NONE,
        "optim_target_modules": OneOf(rules=(Many(), Pattern()), optional=True),
        "adam_beta1": Number(low=0, high=1, below=True),
        "adam_beta2": Number(low=0, high=1, below=True),
        "adam_epsilon": Number(low=0, high=1),
        "train_parts": Many(commas=True, least=1, optional=True),
    },
    "Memory and speed": {
        "bf16": Switch(help="Compute in bfloat16."),
        "bf16_full_eval": Switch(),
        "tf32": _SWITCH_OR_NONE,
        "use_cpu": Switch(help="Do not use a GPU."),
        "gradient_checkpointing": Switch(
            optional=True, help="Recompute activations: less memory, more time."
        ),
        "gradient_checkpointing_kwargs": _CHECKPOINTING,
        "activation_checkpointing": _SWITCH_OR_NONE,
        "activation_checkpointing_kwargs": _CHECKPOINTING,
        "understanding_micro_batch": _COUNT_OR_NONE,
        "shard_frozen": Text(choices=("none", "language", "language+vision")),
        "cache_codes": Switch(),
        "auto_find_batch_size": Switch(),
        "torch_compile": Switch(),
        "torch_compile_backend": _TEXT_OR_NONE,
        "torch_compile_mode": Text(
            choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
            optional=True,
        ),
        "torch_empty_cache_steps": _COUNT_OR_NONE,
        "use_cache": Switch(),
        "fp16": Switch(),
        "fp16_full_eval": Switch(),
        "use_liger_kernel": Switch(),
        "liger_kernel_config": _KEYWORDS,
        "neftune_noise_alpha": Number(low=0, optional=True),
        "label_smoothing_factor": Number(low=0, high=1, below=True),
    },
    "Held-out data": {
        "eval_strategy": Text(choices=STRATEGIES, help="When its loss is measured."),
        "eval_steps": Number(
            low=0, above=True, high=MOST, optional=True, help="Every so many steps."
        ),
        "eval_delay": Number(low=0, high=MOST),
        "per_device_eval_batch_size": Whole(low=1, high=2**20),
        "eval_on_start": Switch(),
        "eval_accumulation_steps": _COUNT_OR_NONE,
        "eval_do_concat_batches": Switch(),
        "eval_use_gather_object": Switch(),
        "prediction_loss_only": Switch(),
        "batch_eval_metrics": Switch(),
        "include_for_metrics": Many(commas=True),
        "label_names": Many(commas=True, optional=True),
        "load_best_model_at_end": Switch(help="End with the checkpoint of the lowest loss."),
        "metric_for_best_model": _TEXT_OR_NONE,
        "greater_is_better": _SWITCH_OR_NONE,
    },
    "Checkpoints and logs": {
        "save_strategy": Text(choices=(*STRATEGIES, "best"), help="When checkpoints are written."),
        "save_steps": Number(low=0, above=True, high=MOST, help="Every so many steps."),
        "save_total_limit": Whole(
            low=1, high=MOST, optional=True, help="Checkpoints kept, the newest. null: all."
        ),
        "save_only_model": Switch(),
        "save_on_each_node": Switch(),
        "enable_jit_checkpoint": Switch(),
        "logging_strategy": Text(choices=STRATEGIES),
        "coverage_points": Whole(low=0, high=10_000),
        "logging_steps": Number(low=0, above=True, high=MOST),
        "logging_first_step": Switch(),
        "logging_nan_inf_filter": Switch(),
        "log_on_each_node": Switch(),
        "log_level": Text(choices=LOG_LEVELS),
        "log_level_replica": Text(choices=LOG_LEVELS),
        "disable_tqdm": Switch(optional=True, help="No progress bar."),
        "report_to": Many(item=Text(choices=TRACKERS), commas=True, optional=True),
        "run_name": Text(optional=True, literal=True, help="The name of the run in trackers."),
        "project": Text(literal=True),
        "trackio_space_id": _TEXT_OR_NONE,
        "trackio_bucket_id": _TEXT_OR_NONE,
        "trackio_static_space_id": OneOf(rules=(Switch(), Text()), optional=True),
        "include_num_input_tokens_seen": OneOf(
            rules=(Text(choices=("all", "non_padding", "no", "true")), Switch())
        ),
        "skip_memory_metrics": Switch(),
        "debug": OneOf(
            rules=(Many(item=Text(choices=DEBUGGERS)), Text(choices=DEBUGGERS, empty=True))
        ),
    },
    "The Hub": {
        "push_to_hub": Switch(help="Upload the adapter."),
        "hub_model_id": _TEXT_OR_NONE,
        "hub_token": Text(optional=True, secret=True),
        "hub_private_repo": _SWITCH_OR_NONE,
        "hub_strategy": Text(choices=("end", "every_save", "checkpoint", "all_checkpoints")),
        "hub_always_push": Switch(),
        "hub_revision": _TEXT_OR_NONE,
    },
    "Loading of data, and several processes": {
        "dataloader_num_workers": Whole(low=0, high=256, help="Processes that read pictures."),
        "dataloader_drop_last": Switch(),
        "dataloader_pin_memory": Switch(),
        "dataloader_persistent_workers": Switch(),
        "dataloader_prefetch_factor": Whole(low=1, high=1024, optional=True),
        "dataloader_multiprocessing_context": Text(
            choices=("fork", "spawn", "forkserver"), optional=True
        ),
        "dataloader_in_order": Switch(),
        "remove_unused_columns": Switch(),
        "max_length": _COUNT_OR_NONE,
        "max_skipped_share": Number(low=0, high=1),
        "reading_order": Text(choices=("rows", "shards")),
        "train_sampling_strategy": Text(choices=("random", "sequential", "group_by_length")),
        "length_column_name": Text(),
        "average_tokens_across_devices": Switch(),
        "accelerator_config": Made(optional=True),
        "parallelism_config": Made(optional=True, fields=False),
        "local_rank": Whole(low=-1, high=MOST),
        "ddp_find_unused_parameters": _SWITCH_OR_NONE,
        "ddp_bucket_cap_mb": Whole(low=1, high=MOST, optional=True),
        "ddp_broadcast_buffers": _SWITCH_OR_NONE,
        "ddp_static_graph": _SWITCH_OR_NONE,
        "ddp_backend": Text(
            choices=("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"), optional=True
        ),
        "ddp_timeout": Whole(low=1, high=MOST, help="Seconds that ranks wait for each other."),
        "fsdp": Rule(optional=True),
        "fsdp_config": Made(optional=True),
        "deepspeed": Rule(optional=True),
    },
}
RULES: dict[str, Rule] = {name: rule for group in GROUPS.values() for name, rule in group.items()}
