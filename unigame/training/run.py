"""``unigame train``: from a recipe to a trained adapter, with every check before any weight."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigame.console import make_console
from unigame.errors import UserError
from unigame.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        output_dir: holds the adapter, C, the processor and the checkpoints.
        steps: optimizer steps done.
        loss: mean training loss of this run.
        metrics: the final evaluation's, where there is held-out data.
    """

    output_dir: Path
    steps: int
    loss: float
    metrics: dict[str, float]


def main(recipe_path: str | Path, overrides: Sequence[str] = ()) -> None:
    """Load a recipe with its overrides, run it, and say what to do next.

    Args:
        recipe_path: a YAML file or the name of a shipped recipe.
        overrides: ``["--key", "value", ...]`` as typed on the command line.

    Raises:
        UserError: for anything the user can put right; see ``recipe`` for what is checked.
    """
    recipe = load_recipe(recipe_path, overrides)
    result = run_recipe(recipe)
    if recipe.training.process_index != 0:
        return
    held_out = result.metrics.get("eval_loss")
    shown = "" if held_out is None else f", held-out loss {held_out:.4f}"
    folder = shlex.quote(str(result.output_dir))
    use = f"--model {shlex.quote(recipe.model)} --adapter {folder}"
    what = "Adapter, perturber"
    if recipe.training.train_parts:  # a warm-up: its result is a model of its own
        use, what = f"--model {folder}", "Model"
    console = make_console()
    console.print(f"Trained {result.steps} steps: mean loss {result.loss:.4f}{shown}.")
    console.print(f"{what} and checkpoints are in {result.output_dir}")
    console.print(f'Next: unigame answer PICTURE "a question" {use}')
    console.print(f'  or: unigame generate "a prompt" {use}')


def run_recipe(recipe: Recipe) -> RunResult:
    """Open the data, then load the model, train, and save the result in ``output_dir``.

    Raises:
        UserError: for missing or malformed data, a checkpoint that cannot be used, or a run that
            cannot be resumed.
    """
    from unigame.backbones import load_backbone
    from unigame.training.preflight import check_before_loading, require_hub
    from unigame.training.trainer import UniGameTrainer

    args = recipe.training
    lora = recipe.lora_config()
    # These first: a wrong path should cost seconds, not the loading of a model.
    check_before_loading(recipe)
    train_data = _open("data", recipe.data, args.seed)
    eval_data = _open("eval_data", recipe.eval_data, args.seed) if recipe.eval_data else None
    require_hub(args)
    half = args.bf16 if recipe.dtype == "auto" else recipe.dtype == "bfloat16"
    backbone = load_backbone(
        recipe.model,
        dtype="bfloat16" if half else "float32",
        device=args.device,
        adapter=recipe.adapter,
    )
    trainer = UniGameTrainer(
        model=backbone,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        peft_config=lora,
    )
    resume = args.resume_from_checkpoint
    words: dict[str | None, bool | None] = {"true": True, "false": None, "no": None}
    output = trainer.train(resume_from_checkpoint=words.get(resume, resume))
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate() if eval_data is not None else {}
    return RunResult(
        output_dir=Path(args.output_dir),
        steps=output.global_step,
        loss=output.training_loss,
        metrics=metrics,
    )


def _open(block: str, sources: list[dict[str, Any]], seed: int) -> Any:
    """The sources of a block of the recipe; messages say which block."""
    from unigame.data import build_dataset

    try:
        return build_dataset(sources, seed=seed)
    except UserError as error:
        raise UserError(f"{block}: {error}") from error
