"""``unigame demo``: the game and its controls on the embedded default, measured alike.

    base               the bundled model, untouched
    sft                fine-tuning on the training questions
    sft_equal_samples  the same number of steps, as many samples a step as the game has
    round_trip         the game at eps = 0: pictures redrawn and mined, but not attacked
    unigame            the game

All arms start from the same weights and LoRA initialisation and see the same data in the same
order. Each finished arm is written at once, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from transformers import PrinterCallback, TrainerCallback, set_seed

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.data import build_dataset
from unigame.evaluation.world import (
    METRIC_INFO,
    QUICK,
    AttackSettings,
    Scores,
    Sizes,
    evaluate,
)
from unigame.game import NoPerturber, attacked_images
from unigame.game.perturber import PerturberBase
from unigame.reports.bootstrap import bootstrap_difference, bootstrap_mean
from unigame.reports.curves import save_curves
from unigame.reports.gallery import GalleryRow, save_gallery
from unigame.reports.results import parse_results
from unigame.reports.table import print_table, to_csv, to_markdown
from unigame.training import UniGameConfig, UniGameTrainer
from unigame.training.game_state import challenge_config
from unigame.training.recipe import load_recipe

RECIPE = "janus_nano"
QUICK_SHARE = 3  # a quick demo takes a third of the steps
# The evaluation's adversary pays much for changing what a picture shows, and starts near the bound.
# With a weight of 0.5 at that eps, five in six of its pictures show something else, and the true
# answer no longer belongs to them.
ATTACK_LABEL_WEIGHT, ATTACK_START = 10.0, 2 / 3
CONTROLS: dict[str, dict[str, Any]] = {
    "sft": {"challenge_every": 0},
    "sft_equal_samples": {"challenge_every": 0},  # and a larger batch, see _settings
    "round_trip": {"perturbation": "none"},
    "unigame": {},
}
ARMS = ("base", *CONTROLS)


@dataclass
class ArmResult:
    """What is known of one finished arm."""

    scores: dict[str, Scores]
    steps: int
    seconds: float


def run_demo(
    output: Path, quick: bool = False, seed: int = 0, model: str = "janus-nano"
) -> dict[str, Any]:
    """Train and evaluate every arm; print the table; write everything to ``output``.

    Args:
        output: gets results.json, table.md, table.csv, config.json, adapter/, gallery.png,
            curves.png and a folder for each arm.
        quick: a third of the steps and questions.
        seed: of data, training and evaluation.
        model: checkpoint to start from.

    Returns:
        The content of results.json.

    Raises:
        UserError: the checkpoint or the recipe cannot be used; nothing has been written then.
    """
    console, output = Console(highlight=False, soft_wrap=True), Path(output)
    sizes = QUICK if quick else Sizes()
    recipe = load_recipe(RECIPE, ["--model", model, "--seed", str(seed)])
    config = {
        "recipe": RECIPE,
        "model": model,
        "quick": quick,
        "seed": seed,
        "sizes": asdict(sizes),
        "attack": {"label_weight": ATTACK_LABEL_WEIGHT, "eps_start": ATTACK_START},
        "arms": {arm: _settings(recipe.training, arm, quick) for arm in CONTROLS},
        "data": recipe.data,
        "lora": recipe.lora,
    }
    load_backbone(model, dtype="float32")  # an unusable checkpoint ends here
    _prepare(output, config, console)
    results: dict[str, ArmResult] = {}
    with _progress(console) as progress:
        overall = progress.add_task("the demo", total=len(ARMS))
        for arm in ARMS:
            found = _read_arm(output / "arms" / arm)
            if found is None:
                found = _run_arm(arm, output, recipe, config, sizes, progress)
            results[arm] = found
            written = _write_results(output, results, config)
            progress.advance(overall)
    (output / "INCOMPLETE").unlink()
    console.print()
    print_table(parse_results(written), console)
    console.print(
        f"\nWrote {output}/: results.json, table.md, gallery.png, curves.png, adapter/", style="dim"
    )
    return written


def _settings(training: UniGameConfig, arm: str, quick: bool) -> dict[str, Any]:
    """What this arm changes of the recipe."""
    changed = dict(CONTROLS[arm])
    if arm == "sft_equal_samples":
        changed["per_device_train_batch_size"] = (
            training.per_device_train_batch_size + training.resolved_hard_batch_size
        )
    if quick:
        changed["max_steps"] = max(1, training.max_steps // QUICK_SHARE)
    return changed


def _prepare(output: Path, config: dict[str, Any], console: Console) -> None:
    """Start a fresh folder, or keep the finished arms of an interrupted, equal demo."""
    marker = output / "INCOMPLETE"
    if marker.exists() and marker.read_text() == json.dumps(config, sort_keys=True):
        console.print(f"Going on with the interrupted demo in {output}/", style="dim")
        return
    if (output / "arms").exists():
        shutil.rmtree(output / "arms")
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(config, sort_keys=True))
    (output / "config.json").write_text(json.dumps(config, indent=2))


# ---- one arm -----------------------------------------------------------------------------------
def _run_arm(
    arm: str,
    output: Path,
    recipe: Any,
    config: dict[str, Any],
    sizes: Sizes,
    progress: Progress,
) -> ArmResult:
    """Train (unless it is the base), evaluate, and write the arm's folder."""
    folder, start, steps = output / "arms" / arm, time.perf_counter(), 0
    set_seed(config["seed"])  # equal LoRA initialisation in every arm
    backbone = load_backbone(config["model"], dtype="float32")
    args = recipe.training
    if arm != "base":
        trainer = _trainer(backbone, arm, folder, recipe, config, progress)
        steps = trainer.train().global_step
        args = trainer.args
        trainer.save_model(str(folder / "adapter"))
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    seconds = time.perf_counter() - start
    attack = AttackSettings(
        config=replace(challenge_config(args), label_weight=ATTACK_LABEL_WEIGHT),
        eps_max=args.eps_max,
        eps_init=ATTACK_START * args.eps_max,
        eps_mode=args.eps_mode,
    )
    task = progress.add_task(f"  {arm}: measuring", total=len(METRIC_INFO))
    scores = evaluate(
        backbone, sizes, attack, seed=config["seed"], report=lambda name: progress.advance(task)
    )
    progress.update(task, completed=len(METRIC_INFO))
    if arm == "unigame":
        _pictures(backbone, trainer, output)
    result = ArmResult(scores, steps, seconds)
    _write_arm(folder, result)
    return result


def _trainer(
    backbone: Backbone,
    arm: str,
    folder: Path,
    recipe: Any,
    config: dict[str, Any],
    progress: Progress,
) -> UniGameTrainer:
    changed = config["arms"][arm]
    steps = changed.get("max_steps", recipe.training.max_steps)
    settings = {
        **changed,
        "seed": config["seed"],
        "output_dir": str(folder),
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": max(1, min(5, steps // 10)),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    shared = load_recipe(RECIPE, words).training
    trainer = UniGameTrainer(
        model=backbone,
        args=shared,
        train_dataset=build_dataset(recipe.data, seed=config["seed"]),
        peft_config=recipe.lora_config(),
        callbacks=[_Bar(progress, f"  {arm}: training", shared.max_steps)],
    )
    trainer.remove_callback(PrinterCallback)  # the bar says it
    return trainer


class _Bar(TrainerCallback):
    """The trainer's steps on the demo's own progress display, with nothing printed beside it."""

    def __init__(self, progress: Progress, label: str, steps: int) -> None:
        self.progress, self.task = progress, progress.add_task(label, total=steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


# ---- what is written ---------------------------------------------------------------------------
def _pictures(backbone: Backbone, trainer: UniGameTrainer, output: Path) -> None:
    """Gallery, curves and the adapter of the UniGame arm."""
    assert trainer.game is not None
    save_curves(trainer.state.log_history, output / "curves.png")
    rows = gallery_rows(backbone, trainer.game.perturber, trainer.args)
    save_gallery(rows, output / "gallery.png")
    if (output / "adapter").exists():
        shutil.rmtree(output / "adapter")
    shutil.copytree(output / "arms" / "unigame" / "adapter", output / "adapter")


@torch.no_grad()
def gallery_rows(
    backbone: Backbone, perturber: PerturberBase, args: UniGameConfig, count: int = 8
) -> list[GalleryRow]:
    """Test pictures, redrawn and attacked, with the answers; those that the attack broke first."""
    from unigame.evaluation.world import _batch, replies
    from unigame.synthetic import SyntheticDataset

    backbone.eval()
    data = SyntheticDataset("test", 96, 900, questions_per_scene=1)
    batch, settings = _batch(backbone, data, 0, len(data)), challenge_config(args)
    drawn = attacked_images(backbone, NoPerturber(), batch, settings)
    adversarial = attacked_images(backbone, perturber, batch, settings)
    said = [replies(backbone, i, list(batch.questions)) for i in (batch.images, drawn, adversarial)]
    right = [[s == a for s, a in zip(words, batch.answers, strict=True)] for words in said]
    order = sorted(range(len(data)), key=lambda i: (not right[0][i], not right[1][i], right[2][i]))
    pictures = [i.permute(0, 2, 3, 1).cpu().numpy() for i in (batch.images, drawn, adversarial)]
    return [
        GalleryRow(
            clean=pictures[0][i],
            drawn=pictures[1][i],
            adversarial=pictures[2][i],
            question=batch.questions[i],
            answer=batch.answers[i],
            said_clean=said[0][i],
            said_drawn=said[1][i],
            said_adversarial=said[2][i],
        )
        for i in order[:count]
    ]


def _write_results(
    output: Path, results: dict[str, ArmResult], config: dict[str, Any]
) -> dict[str, Any]:
    """results.json (and the tables) of the arms so far."""
    written: dict[str, Any] = {"arms": {}, "differences": {}, "details": {}}
    for arm, result in results.items():
        written["arms"][arm] = {
            "metrics": {
                name: bootstrap_mean(s.values, s.clusters)
                for name, s in result.scores.items()
                if s.values  # an attack may leave no picture that still shows the true scene
            },
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
        }
        written["details"][arm] = _details(result.scores)
        if arm != "sft" and "sft" in results:
            written["differences"][arm] = differences(result, results["sft"])
    if "sft" in results and "base" in results:
        written["differences"]["base"] = differences(results["base"], results["sft"])
    written |= {"metric_info": METRIC_INFO, "seed": config["seed"], "config": config}
    _write_json(output / "results.json", written)
    parsed = parse_results(written)
    (output / "table.md").write_text(to_markdown(parsed))
    (output / "table.csv").write_text(to_csv(parsed))
    return written


def differences(arm: ArmResult, baseline: ArmResult) -> dict[str, Any]:
    """Arm minus baseline on the questions that both were asked, with bootstrap intervals."""
    found = {}
    for name, scores in arm.scores.items():
        reference = baseline.scores[name]
        other = dict(zip(reference.keys, reference.values, strict=True))
        both = scores.where(other.__contains__)
        if both.values:
            values = [other[key] for key in both.keys]
            found[name] = bootstrap_difference(both.values, values, both.clusters)
    return found


def _details(scores: dict[str, Scores]) -> dict[str, Any]:
    """Accuracy by condition and by kind of question; attacked pictures that were left out."""
    by_condition = _means(scores["ood"], 0)
    by_kind = _means(scores["in_distribution"], 1)
    return {
        "ood": by_condition,
        "in_distribution": by_kind,
        "g_acc": _means(scores["g_acc"], 0),
        "attack_pictures_with_changed_content": scores["attack"].skipped,
    }


def _means(scores: Scores, part: int) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for key, value in zip(scores.keys, scores.values, strict=True):
        groups.setdefault(key.split("/")[part], []).append(value)
    return {name: round(sum(v) / len(v), 4) for name, v in groups.items()}


def _write_arm(folder: Path, result: ArmResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "scores.json", asdict(result))


def _read_arm(folder: Path) -> ArmResult | None:
    """A finished arm of an interrupted demo, or None."""
    path = folder / "scores.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    raw["scores"] = {name: Scores(**scores) for name, scores in raw["scores"].items()}
    return ArmResult(**raw)


def _write_json(path: Path, content: Any) -> None:
    """Whole or not at all: a Ctrl-C in the middle leaves the previous file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)
