"""What a run needs of this machine beside data and weights, asked before either is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import Trainer

from unigame.errors import UserError
from unigame.methods.base import Method
from unigame.system.writable import require_writable
from unigame.training.config import UniGameConfig
from unigame.training.sharding import require_shardable
from unigame.training.trackers import require_trackers

# Evaluation gives these; a best model is chosen by one of them.
METRICS = ("loss", "eval_loss")


def check_before_loading(args: UniGameConfig, methods: Sequence[Method]) -> None:
    """Output folder, trackers and optimizer of a run, and what its methods need.

    Raises:
        UserError: the first one that this machine does not have, by the name of its setting.
    """
    if args.process_index == 0:
        require_writable(args.output_dir or ".", "output_dir")
    require_trackers(args)
    _require_optimizer(args)
    _require_metric(args)
    _require_compiler(args)
    require_shardable(args, methods)
    for method in methods:
        method.check_machine(args)


def _require_optimizer(args: UniGameConfig) -> None:
    """Some optimizers need a package, some settings of their own; some wait for the model."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, TypeError, KeyError, RuntimeError) as error:
        shown = f"optim={str(getattr(args.optim, 'value', args.optim))!r}"
        if args.optim_args:
            shown += f" with optim_args={args.optim_args!r}"
        reason = " ".join(str(error).split()) or type(error).__name__
        if "need to pass a" in reason and "model" in reason:
            return  # it will get one
        raise UserError(f"{shown} cannot be used here: {reason}; take adamw_torch") from error


def _require_metric(args: UniGameConfig) -> None:
    """A figure by which the best is chosen, and evaluations that give it."""
    if args.save_strategy == "best":
        lacking = [] if args.metric_for_best_model else ["--metric_for_best_model loss"]
        if args.eval_strategy == "no":
            lacking.append("--eval_strategy steps")
        if lacking:
            raise UserError(
                "save_strategy='best' needs a figure and evaluations to choose by, and finds "
                f"metric_for_best_model={args.metric_for_best_model!r} and eval_strategy="
                f"{str(args.eval_strategy.value)!r}; add {' '.join(lacking)}"
            )
    if args.metric_for_best_model not in (None, *METRICS):
        raise UserError(
            f"metric_for_best_model={args.metric_for_best_model!r} is not measured while training; "
            f"choose {' or '.join(METRICS)}"
        )


def _require_compiler(args: UniGameConfig) -> None:
    if not args.torch_compile:
        return
    known = torch._dynamo.list_backends(exclude_tags=())
    if args.torch_compile_backend not in known:
        raise UserError(
            f"torch_compile_backend={args.torch_compile_backend!r} is not one of "
            f"{', '.join(known)}; pick one"
        )


def require_hub(args: UniGameConfig) -> None:
    """Make the repository of ``push_to_hub`` now, as transformers would with everything loaded.

    Raises:
        UserError: the Hub cannot be reached, or does not take it.
    """
    if not args.push_to_hub or args.process_index != 0:
        return
    from huggingface_hub import HfApi

    name = args.hub_model_id or Path(args.output_dir or ".").absolute().name
    create: Callable[..., object] = HfApi().create_repo
    try:
        create(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True)
    except Exception as error:  # of the network, the Hub, its validation of names: many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"push_to_hub=True, but the Hub does not take {name!r}: {reason}; log in with `hf auth "
            "login`, check the connection, or set push_to_hub=false"
        ) from error
