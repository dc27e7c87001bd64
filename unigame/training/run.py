"""``unigame train``: from a recipe to a trained adapter, with every check before any weight."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigame.backbones.common.quantization import NONE
from unigame.backbones.model_files import read_json
from unigame.errors import UserError
from unigame.methods.findings import Finding
from unigame.settings.yaml_words import plain
from unigame.system.console import make_console
from unigame.system.say import Heard, warn
from unigame.training import run_folder
from unigame.training.checkpoint import (
    SETTINGS_FILE,
    TRAINER_STATE_FILE,
    require_folder,
    require_steps_left,
    steps_done,
)
from unigame.training.identity import differences
from unigame.training.lock import locked
from unigame.training.ranks import agreed, from_rank_zero
from unigame.training.recipe import Recipe, load_recipe
from unigame.training.resuming import require_same_run, require_undamaged

if TYPE_CHECKING:
    from unigame.methods.base import Method
    from unigame.training.config import UniGameConfig
    from unigame.training.record_checks import DataCheck
    from unigame.training.trainer import UniGameTrainer


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        output_dir: holds the adapter, C, the processor and the checkpoints.
        steps: optimizer steps done.
        loss: mean training loss of all steps, those before a resume too.
        metrics: the final evaluation's, where there is held-out data.
        said: a closing sentence of each method that has one.
        findings: what the methods find wrong with the run.
    """

    output_dir: Path
    steps: int
    loss: float
    metrics: dict[str, float]
    said: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def main(recipe_path: str | Path, overrides: Sequence[str] = ()) -> RunResult | None:
    """Load a recipe with its overrides, run it, and say how it went and what to do next.

    Args:
        recipe_path: a YAML file or the name of a shipped recipe.
        overrides: ``["--key", "value", ...]`` as typed on the command line.

    Returns:
        How the run ended; None on all processes but the first, and where
        ``resume_from_checkpoint=auto`` finds that this very run is done.

    Raises:
        UserError: for anything the user can put right; see ``recipe`` for what is checked.
    """
    recipe = load_recipe(recipe_path, overrides)
    if recipe.training.process_index == 0:
        for line in recipe.found:
            make_console(stderr=True).print(line)
        for line in recipe.doubts:
            make_console(stderr=True).print(f"warning: {line}", markup=False)
    if from_rank_zero(lambda: is_done(recipe)):
        if recipe.training.process_index == 0:
            make_console().print(_of_a_done_run(recipe))
        return None
    result = run_recipe(recipe)
    if recipe.training.process_index != 0:
        return None
    _say_how_it_went(recipe, result)
    return result


def _say_how_it_went(recipe: Recipe, result: RunResult) -> None:
    """The closing lines, and what to do next."""
    held_out = result.metrics.get("eval_loss")
    shown = "" if held_out is None else f", held-out loss {held_out:.4f}"
    folder = shlex.quote(str(result.output_dir))
    use = f"--model {shlex.quote(recipe.model)} --adapter {folder}"
    if recipe.quantization != NONE:  # whoever trained so has no room for the whole weights
        use += f" --quantization {recipe.quantization}"
    what = "Adapter"
    if recipe.training.train_parts:  # a warm-up: its result is a model of its own
        use, what = f"--model {folder}", "Model"
    console = make_console()
    console.print(f"Trained {result.steps} steps: mean loss {result.loss:.4f}{shown}.")
    for sentence in result.said:
        console.print(sentence)
    for finding in result.findings:
        console.print(f"Look: {finding.line} (docs/tuning.md)", style="yellow")
    console.print(f"{what} and checkpoints are in {result.output_dir}")
    console.print(f'Next: unigame answer PICTURE "a question" {use}')
    console.print(f'  or: unigame generate "a prompt" {use}')


def is_done(recipe: Recipe) -> bool:
    """Whether ``resume_from_checkpoint=auto`` has nothing left to do: this run's result is there.

    A scheduler may start the same command once more than needed, which is no mistake.
    """
    args = recipe.training
    folder = Path(args.output_dir or ".")
    if (args.resume_from_checkpoint or "").lower() != "auto" or args.overwrite_output_dir:
        return False
    try:
        state = read_json(folder / TRAINER_STATE_FILE)
        there = read_json(folder / SETTINGS_FILE)
        reached = state["global_step"] >= state["max_steps"]
    except (UserError, KeyError, TypeError):
        return False  # none, or not whole: what is wrong is said where it is resumed
    length = (args.max_steps, args.num_train_epochs)
    same = (there.get("max_steps"), there.get("num_train_epochs")) == length
    known = {"recipe": _blocks(recipe), "methods": recipe.methods}
    return bool(reached and same and not differences(folder, args, known))


def _of_a_done_run(recipe: Recipe) -> str:
    folder = recipe.training.output_dir
    return (
        f"Nothing left to do: {folder} holds this run's result, all its steps made "
        "(resume_from_checkpoint=auto). To train on, raise max_steps or num_train_epochs"
    )


def run_recipe(recipe: Recipe) -> RunResult:
    """Open the data, then load the model, train, and save the result in ``output_dir``.

    Raises:
        UserError: for missing or malformed data, a folder that holds or runs another run, a
            checkpoint that cannot be used, or a run that cannot be resumed.
    """
    args, heard = recipe.training, Heard()
    for line in recipe.doubts:  # said already; the page shows them too
        heard.hear(line)
    with locked(args.output_dir, args.process_index):
        resume = from_rank_zero(lambda: _folder_and_checkpoint(recipe))
        trainer = agreed(lambda: _trainer(recipe, heard))
        if args.overwrite_output_dir:
            from_rank_zero(lambda: run_folder.set_aside(args.output_dir))
        if resume and _only_lacks_its_result(resume, trainer):
            output = trainer.take_up(resume)
        else:
            output = trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            run_folder.drop_replaced(args.output_dir)
        metrics = _held_out(trainer)
    return RunResult(
        output_dir=Path(args.output_dir),
        steps=output.global_step,
        loss=trainer.guard.mean_loss,
        metrics=metrics,
        said=trainer.closing_sentences(),
        findings=tuple(trainer.health()),
    )


def _held_out(trainer: UniGameTrainer) -> dict[str, float]:
    """The evaluation of the trained model: the one that closed the training, if there was one."""
    if trainer.eval_dataset is None:
        return {}
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    last: dict[str, Any] = evaluations[-1] if evaluations else {}
    # The best model may be an earlier one.
    if last.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return {name: value for name, value in last.items() if name != "step"}
    return trainer.evaluate()


def _folder_and_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint to go on from, before any long work; None to start anew.

    Raises:
        UserError: another run lies in ``output_dir``, or its checkpoint is not of this run.
    """
    args = recipe.training
    resume = args.resume_from_checkpoint
    if resume is None or resume.lower() in ("false", "no", ""):
        resume = None
    if resume and args.overwrite_output_dir:
        raise UserError(
            f"resume_from_checkpoint={resume!r} with overwrite_output_dir: a run is either gone on "
            "with or started over; leave one of them out"
        )
    if resume is not None and resume.lower() == "auto":  # the same command begins and goes on
        resume = "true" if run_folder.checkpoints(args.output_dir) else None
    if resume is not None and resume.lower() == "true":
        found = run_folder.newest_whole(args.output_dir)
        make_console().print(found.said())
        resume = str(found.folder)
    elif resume:
        require_folder(resume)
        require_undamaged(resume, trust=args.resume_anyway)
    elsewhere = not resume or Path(resume).resolve().parent != Path(args.output_dir).resolve()
    if elsewhere and not args.overwrite_output_dir:
        run_folder.require_free(args.output_dir)
    if resume and run_folder.is_finished(args.output_dir, steps_done(resume)):
        require_steps_left(resume, args.max_steps)
    if resume and not args.resume_anyway:  # the trainer looks again, and then says what differs
        require_same_run(resume, args, {"recipe": _blocks(recipe), "methods": recipe.methods})
    return resume


def _trainer(recipe: Recipe, heard: Heard) -> UniGameTrainer:
    """Small files first, then data, weights last: a mistake should cost seconds."""
    from unigame.backbones import load_backbone
    from unigame.backbones.common.quantization import require_quantization
    from unigame.backbones.loading import find_model
    from unigame.training.health import require_work
    from unigame.training.preflight import check_before_loading, require_hub
    from unigame.training.sharding import loading_device
    from unigame.training.skip_report import report_skips
    from unigame.training.trainer import UniGameTrainer

    args = recipe.training
    lora = recipe.lora_config()
    methods = recipe.build_methods()
    adds_lora = recipe.adapter is None and not args.train_parts
    if recipe.adapter is not None:
        _warn_of_other_lora(recipe.adapter, recipe.lora)
    _, family = find_model(recipe.model, adapter=recipe.adapter, lora=lora if adds_lora else None)
    check_before_loading(args, methods)
    require_quantization(recipe.quantization)
    train_data = _open("data", recipe.data, args.seed)
    eval_data = _open("eval_data", recipe.eval_data, args.seed) if recipe.eval_data else None
    for data, block in ((train_data, "data"), (eval_data, "eval_data")):
        report_skips(data, block, args.max_skipped_share, speaks=args.process_index == 0)
    require_work(args, train_data, methods)
    looked = _look_at_rows(recipe.model, family, args, methods, train_data, eval_data)
    require_hub(args)
    backbone = load_backbone(
        recipe.model,
        dtype=recipe.weights_dtype,
        device=loading_device(args),
        adapter=recipe.adapter,
        quantization=recipe.quantization,
    )
    trainer = UniGameTrainer(
        model=backbone,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        peft_config=lora,
        methods=methods,
    )
    trainer.recipe, trainer.folder_is_held, trainer.heard = _blocks(recipe), True, heard
    trainer.data_check = looked or trainer.data_check
    return trainer


def _warn_of_other_lora(adapter: str, wanted: Mapping[str, Any]) -> None:
    """Say which LoRA settings of the recipe are not those of the adapter that the run goes on with.

    The adapter's layers are there, so that its own settings count.
    """
    try:
        content = read_json(Path(adapter).expanduser() / "adapter_config.json")
    except UserError:
        return  # of the Hub, or none: loading says so
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    other = [
        f"{name} {content[name]}, not {wanted[name]}"
        for name in names
        if name in wanted and name in content and plain(wanted[name]) != content[name]
    ]
    if other:
        warn(
            f"adapter={adapter} has LoRA settings of its own, which the run keeps: "
            f"{'; '.join(other)}; to train with others, start anew without adapter"
        )


def _look_at_rows(
    model: str,
    family: str,
    args: UniGameConfig,
    methods: Sequence[Method],
    train_data: Any,
    eval_data: Any,
) -> DataCheck | None:
    """Rows that the model cannot be trained on, found by its small files alone.

    None: of a family that needs its weights to say; the trainer looks then.

    Raises:
        UserError: there are too many such rows.
    """
    from unigame.backbones.loading import reading_without_weights
    from unigame.training.record_checks import DataCheck, check_before_weights

    reading = reading_without_weights(model)
    if reading is None:
        return None
    check = check_before_weights(reading, family, args, methods, train_data)
    looked = DataCheck(check, speaks=args.process_index == 0)
    looked.look_at(train_data, "data")
    looked.look_at(eval_data, "eval_data")
    return looked


def _blocks(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe makes the run, beside its settings."""
    names = ("model", "dtype", "quantization", "adapter", "data", "lora")
    return {name: getattr(recipe, name) for name in names}


def _only_lacks_its_result(resume: str, trainer: UniGameTrainer) -> bool:
    """Whether it was stopped between its last checkpoint and the saving of its result."""
    done = steps_done(resume)
    finished = run_folder.is_finished(trainer.args.output_dir, done)
    return done == trainer.planned_steps() and not finished


def _open(block: str, sources: list[dict[str, Any]], seed: int) -> Any:
    """The sources of a block of the recipe; messages say which block."""
    from unigame.data import build_dataset

    try:
        return build_dataset(sources, seed=seed)
    except UserError as error:
        # Of other data than the user's own, as a shipped recipe names some.
        without = ", or --eval_strategy no" if block == "eval_data" else ""
        raise UserError(f"{block}: {error}{without}") from error
