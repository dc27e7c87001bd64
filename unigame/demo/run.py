"""``unigame demo``: the game, its controls and the methods beside it, measured alike.

The arms are in ``arms.py``. All of them start from the same weights and LoRA initialisation and see
the same data in the same order. What is reported is the ten benchmarks' own code on data of the
synthetic world, its out-of-distribution split, a task that no data of training has, and a fresh
attack. Every arm leaves a record, and the demo's tables are what ``unigame compare`` makes of them.
Arms run side by side, one a core. Each finished arm is written at once, so an interrupted demo goes
on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.data import build_dataset
from unigame.demo.arms import ARMS, CONTROLS, METHODS, QUICK, Sizes, changes, placed, write_texts
from unigame.demo.folder import ARM_DONE, begin, choose_folder, finish
from unigame.demo.kinds import kind_of
from unigame.evaluation.ask import Drawing
from unigame.evaluation.attacks.adversary import LABEL_WEIGHT, START, adversary_for
from unigame.evaluation.attacks.fresh import attacked_images
from unigame.evaluation.base import DataSource
from unigame.evaluation.miniature import world_benchmarks, write_world
from unigame.evaluation.record import write_json
from unigame.evaluation.run import RESULTS, evaluate
from unigame.evaluation.running import Silent
from unigame.evaluation.world import attack_entry, batch_of, replies
from unigame.methods.selfplay import NoPerturber, SelfPlay
from unigame.methods.selfplay.settings import CAPTION
from unigame.reports.compare import Comparison, compare
from unigame.reports.curves import save_curves
from unigame.reports.gallery import GalleryRow, save_gallery
from unigame.reports.page.runs import DEMO_BASELINE, DEMO_LABELS, DEMO_PLAYER, demo_findings
from unigame.reports.page.verdict import judged_demo
from unigame.reports.records import read_record
from unigame.reports.tables import print_comparison, write_comparison
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset
from unigame.synthetic.reader import shows
from unigame.synthetic.world import Scene
from unigame.system.console import make_console
from unigame.system.progress import progress_on
from unigame.system.workers import Tell, cores, run_all
from unigame.training import UniGameTrainer
from unigame.training.recipe import Recipe, load_recipe

DATA, RECORD = "benchmarks", "evaluation"
# So that no core is left with a long one at the end.
_LONGEST_FIRST = (
    *("unigame", "round_trip", "imagine", "sft_equal_samples"),
    *("verify", "reca", "sft", "base"),
)


def run_demo(
    output: Path,
    quick: bool = False,
    seed: int = 0,
    model: str = "janus-nano",
    overwrite: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Train and evaluate every arm; print the tables; write everything to ``output``.

    Args:
        output: gets compare.md, compare.csv, compare.tex, config.json, adapter/, gallery.png,
            curves.png, the data, and a folder for each arm with its predictions and record.
        quick: a third of the steps, and of the questions or so.
        seed: of data, training and evaluation.
        model: checkpoint to start from; of a BAGEL, recipe ``bagel_nano`` is played.
        overwrite: whether a demo of other settings in ``output`` is replaced. One of the same
            settings is; what is there stays until all arms of the new one are done.
        workers: arms at a time, each in a process of its own; None means one a core, and one on an
            accelerator.

    Raises:
        UserError: the checkpoint or the recipe cannot be used, or ``output`` holds a demo of other
            settings or of an earlier version; nothing has been written then.
    """
    console, final = make_console(), Path(output)
    kind = kind_of(model)
    recipe = load_recipe(kind.recipe, ["--model", model, "--seed", str(seed)])
    config = {"recipe": kind.recipe, **_config(recipe, model, quick, seed, kind.latents)}
    config["drawing"] = asdict(kind.drawing)
    output = choose_folder(final, config, overwrite)
    load_backbone(model, dtype="float32")  # an unusable checkpoint ends here
    if begin(output, final, config):
        console.print(f"Going on with the interrupted demo in {output}/", style="dim", markup=False)
    sizes = {name: config["sizes"][name] for name in ("answers", "drawings", "ood")}
    sources = write_world(output / DATA, **sizes, seed=seed)
    write_texts(output / DATA, config["sizes"]["captions"], seed)
    with progress_on(console) as progress:
        overall = progress.add_task("the demo", total=len(ARMS))
        due = sorted(ARMS, key=_LONGEST_FIRST.index)
        left = [arm for arm in due if not (output / "arms" / arm / ARM_DONE).exists()]
        progress.update(overall, completed=len(ARMS) - len(left))
        run_all(
            [(arm, Job(arm, output, recipe, config, sources)) for arm in left],
            _run_arm,
            workers or _workers(),
            progress,
            lambda: progress.advance(overall),
        )
    records = [read_record(output / "arms" / arm / RECORD) for arm in ARMS]
    labels = [DEMO_LABELS.get(arm, arm) for arm in ARMS]
    found = judged_demo(
        compare(records, labels, ARMS.index(DEMO_BASELINE)), seed, demo_findings(output)
    )
    write_comparison(found, records, output)
    finish(output, final)
    console.print()
    print_comparison(found, console)
    console.print(
        "\nThe benchmarks' code on the synthetic world's data: none of these figures is one of the "
        "real benchmarks.",
        style="dim",
    )
    baseline = sorted(ARMS).index(DEMO_BASELINE) + 1  # as a shell sorts them
    records_of = f"{shlex.quote(str(final))}/arms/*/{RECORD}"
    console.print(
        f"Wrote {final}/: compare.md, gallery.png, curves.png, adapter/, and a record of "
        f"each arm: unigame compare {records_of} --baseline {baseline}",
        style="dim",
        markup=False,
    )
    return found


def _workers() -> int:
    """Arms at a time: one a core; an accelerator takes one."""
    return 1 if torch.accelerator.is_available() else cores()


def _config(recipe: Recipe, model: str, quick: bool, seed: int, latents: bool) -> dict[str, Any]:
    """The settings of a demo: two demos of the same settings are the same demo."""
    config = {
        "model": model,
        "quick": quick,
        "seed": seed,
        "sizes": asdict(QUICK if quick else Sizes()),
        "attack": {"label_weight": LABEL_WEIGHT, "eps_start": START},
        "arms": {arm: changes(recipe, arm, quick, latents) for arm in (*CONTROLS, *METHODS)},
        "data": recipe.data,
        "lora": recipe.lora,
        "methods": recipe.methods,
        "learning_rate": recipe.training.learning_rate,
    }
    written: dict[str, Any] = json.loads(json.dumps(config))  # lists for tuples, as it is read back
    return written


# ---- one arm -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """An arm, and what all of them share."""

    arm: str
    output: Path
    recipe: Recipe
    config: dict[str, Any]
    sources: dict[str, DataSource]


def _run_arm(job: Job, tell: Tell) -> None:
    """Train (unless it is the base), evaluate, and write the arm's folder."""
    datasets.disable_progress_bars()  # each arm reads the same small files
    arm, start, steps = job.arm, time.perf_counter(), 0
    folder = job.output / "arms" / arm
    if folder.exists():  # what an interrupted run left half done, with other weights
        shutil.rmtree(folder)
    set_seed(job.config["seed"])  # equal LoRA initialisation in every arm
    backbone = load_backbone(job.config["model"], dtype="float32")
    if arm != "base":
        trainer = trainer_of(backbone, folder, job, tell)
        steps = trainer.train().global_step
        trainer.save_model(str(folder / "adapter"))
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    cost = {"steps": steps, "seconds": round(time.perf_counter() - start, 1)}
    _measure(backbone, cost, job, tell)
    if arm == DEMO_PLAYER:
        _pictures(backbone, trainer, job.output)
    (folder / ARM_DONE).touch()


def _measure(backbone: Backbone, cost: dict[str, Any], job: Job, tell: Tell) -> None:
    """All benchmarks, the fresh attack and what training cost, into the arm's record."""
    benchmarks, seed, sizes = world_benchmarks(backbone), job.config["seed"], job.config["sizes"]
    folder = job.output / "arms" / job.arm / RECORD
    bars = _Measuring(tell, len(benchmarks) + 1)
    record = evaluate(
        backbone,
        benchmarks,
        sources=job.sources,
        output=folder,
        drawing=replace(Drawing(**job.config["drawing"]), seed=seed),
        progress=bars,
    )
    adversary = replace(
        adversary_for(job.recipe.settings_of("selfplay")),
        steps=sizes["attack_steps"],
        seed=derive_seed(seed, "adversary"),
    )
    entry = attack_entry(backbone, adversary, sizes["attack"], seed)
    if entry is not None:
        record["benchmarks"]["attack"] = entry
    record["model"]["id"], record["training"] = job.arm, cost
    write_json(folder / RESULTS, record)
    bars.end("attack", entry)


def trainer_of(backbone: Backbone, folder: Path, job: Job, tell: Tell) -> UniGameTrainer:
    """What trains an arm, ready to train."""
    recipe = job.recipe
    changed: dict[str, Any] = placed(job.config["arms"][job.arm], job.output / DATA)
    seed = job.config["seed"]
    steps = changed.get("max_steps") or recipe.training.max_steps
    settings = {
        **changed,
        "seed": seed,
        "output_dir": str(folder),
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_on_signal": False,  # a stopped demo keeps its finished arms, and no half ones
        "disable_tqdm": True,
        "logging_steps": max(1, min(5, steps // 10)),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", _word(value))]
    changed_recipe = load_recipe(job.config["recipe"], words)
    shared = changed_recipe.training
    trainer = UniGameTrainer(
        model=backbone,
        args=shared,
        train_dataset=build_dataset(recipe.data, seed=seed),
        peft_config=recipe.lora_config(),
        methods=changed_recipe.build_methods(),
        callbacks=[StepsTold(tell, shared.max_steps)],
    )
    trainer.remove_callback(PrinterCallback)  # the bar says it
    return trainer


def _word(value: Any) -> str:
    """As it is written on a command line."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


class StepsTold(TrainerCallback):
    """Tells of each step, with nothing printed beside it."""

    def __init__(self, tell: Tell, steps: int) -> None:
        self.tell, self.steps = tell, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more."""
        self.tell("training", state.global_step, self.steps)


class _Measuring(Silent):
    """Tells of each benchmark that is done."""

    def __init__(self, tell: Tell, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def end(self, name: str, entry: Any) -> None:
        self.done += 1
        self.tell("measuring", self.done, self.total)


# ---- what is written ---------------------------------------------------------------------------
def _pictures(backbone: Backbone, trainer: UniGameTrainer, output: Path) -> None:
    """Gallery, curves and the adapter of the UniGame arm."""
    game = trainer.method("selfplay")
    save_curves(trainer.state.log_history, output / "curves.png")
    rows = _gallery_rows(backbone, game)
    save_gallery(rows, output / "gallery.png")
    if (output / "adapter").exists():
        shutil.rmtree(output / "adapter")
    shutil.copytree(output / "arms" / DEMO_PLAYER / "adapter", output / "adapter")


@torch.no_grad()
def _gallery_rows(backbone: Backbone, game: SelfPlay, count: int = 8) -> list[GalleryRow]:
    """Test pictures, redrawn and attacked, with the answers; those that the attack broke first."""
    backbone.eval()
    data = SyntheticDataset("test", 96, 900, questions_per_scene=1)
    batch = batch_of(backbone, data, 0, len(data))
    drawn = attacked_images(backbone, NoPerturber(), batch, game.settings)
    adversarial = attacked_images(backbone, game.perturber, batch, game.settings)
    sets = [batch.pictures, drawn, adversarial]
    styles: list[str] = []
    if game.styles is not None:
        styled, styles = game.styles.show(batch)
        assert styled.drawing is not None
        sets.append(styled.drawing.images)
    said = [replies(backbone, images, list(batch.questions)) for images in sets]
    right = [[s == a for s, a in zip(words, batch.answers, strict=True)] for words in said]
    order = sorted(range(len(data)), key=lambda i: (not right[0][i], not right[1][i], right[2][i]))
    pictures = [images.permute(0, 2, 3, 1).cpu().numpy() for images in sets]
    found = [
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
    if styles:
        for row, i in zip(found, order, strict=False):
            row["styled"], row["said_styled"] = pictures[3][i], said[3][i]
            row["style"] = styles[i].replace(CAPTION, "").strip(" :,")
    for row, i in zip(found, order, strict=False):
        row["changed"] = _changed(row, data.scenes[data[i]["scene"]])
    return found


def _changed(row: GalleryRow, scene: Scene) -> frozenset[str]:
    """Redrawings in which the exact reader does not find the scene.

    Free drawings are left out: of hard styles it is no judge, true pictures included.
    """
    redrawn = {"drawn": row["drawn"], "adversarial": row["adversarial"]}
    return frozenset(key for key, picture in redrawn.items() if not shows(picture, scene))
