"""One arm of one seed: trained and measured, in a folder of its own that is never done twice.

    OUTPUT/seed-3/selfplay/adapter/          the weights
                          /trained.json      steps, seconds, log
                          /validation.json   figures, by metric

Training does not depend on the split that is measured later: questions of each split, seed and
metric come from a seed of their own, and none is a question of training.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from evidence_presets import Arm, Settings
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.evaluation.attacks.adversary import adversary_for
from unigame.evaluation.miniature import CAPTION_TOKENS, DRAWING
from unigame.evaluation.world import attack_entry, images_of, replies
from unigame.methods.base import Method, Run
from unigame.methods.registry import build_methods
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay import SelfPlaySettings
from unigame.seeds import derive_seed
from unigame.settings.rules import Number, Switch, Text, Whole, setting
from unigame.synthetic import SyntheticDataset, caption
from unigame.synthetic.dataset import CONDITIONS, SPLITS
from unigame.synthetic.questions import groups
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene
from unigame.training import UniGameConfig, UniGameTrainer

METRICS = ("ood", "id", "gacc", "attack", "consistency", "t2i", *(f"ood/{c}" for c in CONDITIONS))
SPLITS_OF = {"validation": ("ood_validation", "validation"), "test": ("ood", "test")}
"""What is asked out of and in distribution, of each split."""
Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Job:
    """One arm of one seed."""

    output: Path
    model: str
    settings: Settings
    arm: str
    seed: int
    split: str

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.output / f"seed-{self.seed}" / self.arm

    @property
    def result(self) -> Path:
        """There once it is done."""
        return self.folder / f"{self.split}.json"

    def figures(self) -> dict[str, float | None]:
        """What was measured, in percent, by metric."""
        found: dict[str, float | None] = json.loads(self.result.read_text("utf-8"))["figures"]
        return found


def do(job: Job, tell: Tell = lambda *_: None) -> None:
    """Train and measure what is not there yet."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    adapter = job.folder / "adapter"
    trained = job.settings.arms[job.arm].trained
    if trained and not (job.folder / "trained.json").exists():
        _train(job, tell)
    if not job.result.exists():
        backbone = load_backbone(job.model, dtype="float32", adapter=adapter if trained else None)
        clock = _Clock()
        figures = measure(backbone, job.settings, job.seed, job.split, tell)
        _write(job.result, {"figures": figures, **clock.read()})


class _Clock:
    """Seconds since it was made, as a clock on the wall counts them and as this process worked."""

    def __init__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both; on a busy machine they are far apart."""
        wall, work = self.begun
        return {
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - work, 1),
        }


def _write(file: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


# ---- training ------------------------------------------------------------------------------------
@dataclass
class ExtraSettings:
    """Settings of ``ExtraRows``."""

    split: str = setting("train", Text(choices=SPLITS), "Of the synthetic world.")
    severity: str = setting("strong", Text(), "Of its degradations.")
    size: int = setting(1200, Whole(low=1), "Questions to draw from.")
    rows: int = setting(8, Whole(low=1), "Added to each step.")
    weight: float = setting(0.5, Number(low=0), "Of them, as beta is of hard samples.")
    redrawn: bool = setting(False, Switch(), "Their pictures once through the image tokenizer.")


class ExtraRows(Method):
    """Real rows where the game would add hard ones: as many, of the same weight.

    Of clean pictures: fine-tuning on as many rows. Of degraded ones: the ceiling of any
    augmentation; redrawn: of any that the model's own decoder can draw.
    """

    name = "extra"
    Settings = ExtraSettings
    losses = ("answer",)

    def setup(self, run: Run) -> None:
        """Make the questions, each seed its own."""
        super().setup(run)
        chosen, seed = self.settings, derive_seed(run.args.seed, "extra")
        self.data = SyntheticDataset(chosen.split, chosen.size, seed, severity=chosen.severity)
        generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = torch.randperm(chosen.size, generator=generator).tolist()
        self.used = 0

    def before_step(self, batch: Batch, step: int) -> None:
        """Take the next ones."""
        count = self.settings.rows
        chosen = [self.data[self.order[(self.used + i) % len(self.order)]] for i in range(count)]
        self.used += count
        backbone = self.run.backbone
        images = backbone.preprocess([row["image"] for row in chosen]).to(self.run.device)
        if self.settings.redrawn:
            with torch.no_grad():
                images = backbone.render(backbone.encode_images(images)).float().clamp(0, 1)
        self.rows = Rows(
            images=images,
            questions=[row["question"] for row in chosen],
            answers=[row["answer"] for row in chosen],
            captions=[row["caption"] for row in chosen],
            ids=[row["id"] for row in chosen],
            source=[self.name] * count,
            weight=self.settings.weight,
        )

    def step_rows(self) -> list[Rows]:
        """All of them."""
        return [self.rows]

    def rows_at_most(self, args: Any) -> int:
        """Every step has as many."""
        return int(self.settings.rows)


def methods_of(arm: Arm, settings: Settings) -> list[Method]:
    """What is played beside fine-tuning in this arm."""
    if arm.extra is None:
        return build_methods(arm.methods)
    game = SelfPlaySettings(**settings.game)
    rows = game.hard_rows(settings.training["per_device_train_batch_size"])
    extra = {**arm.extra, "severity": settings.severity, "size": settings.extra}
    return [ExtraRows(rows=rows, weight=game.beta, **extra)]


def _train(job: Job, tell: Tell) -> None:
    settings, arm = job.settings, job.settings.arms[job.arm]
    steps = settings.steps + arm.alone
    shutil.rmtree(job.folder, ignore_errors=True)  # what a stopped command left half done
    clock = _Clock()
    set_seed(job.seed)  # equal LoRA initialisation in every arm of a seed
    args = UniGameConfig(
        output_dir=str(job.folder),
        max_steps=steps,
        seed=job.seed,
        save_strategy="no",
        eval_strategy="no",
        save_on_signal=False,
        disable_tqdm=True,
        logging_steps=max(1, steps // 10),
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings.training,
    )
    data = SyntheticDataset("train", settings.questions, derive_seed(job.seed, "data"))
    trainer = UniGameTrainer(
        model=load_backbone(job.model, dtype="float32"),
        args=args,
        train_dataset=data,
        peft_config=peft.LoraConfig(**settings.lora) if settings.lora else None,
        methods=methods_of(arm, settings),
        callbacks=[_Steps(tell, steps)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.backbone.save_pretrained(job.folder / "adapter")
    log = trainer.state.log_history
    _write(job.folder / "trained.json", {"steps": steps, **clock.read(), "log": log})


class _Steps(TrainerCallback):
    """Tells of each step."""

    def __init__(self, tell: Tell, steps: int) -> None:
        self.tell, self.steps = tell, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell("training", state.global_step, self.steps)


# ---- measuring -----------------------------------------------------------------------------------
def measure(
    backbone: Backbone,
    settings: Settings,
    seed: int,
    split: str,
    tell: Tell = lambda *_: None,
) -> dict[str, float | None]:
    """Every metric, in percent; None where there is nothing to average.

    ood, ood/CONDITION   questions about degraded pictures and unseen combinations
    id                   questions about pictures such as those of training
    gacc                 groups of two pictures x two questions, all four answers right
    attack               questions under a fresh attack that keeps the content
    t2i                  objects of a caption that are in the picture drawn of it
    consistency          objects of a picture that are in the picture drawn of U's own caption of it
    """
    backbone.eval()
    sizes, parts = settings.measured, 5
    out_of, within = SPLITS_OF[split]

    def own(metric: str) -> int:
        return derive_seed(seed, "evidence", split, metric)

    def data(name: str, metric: str, size: int) -> SyntheticDataset:
        return SyntheticDataset(name, size, own(metric), severity=settings.severity)  # type: ignore[arg-type]

    tell("measuring", 0, parts)
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    found |= _by_condition(backbone, data(out_of, "ood", sizes["ood"]))
    tell("measuring", 1, parts)
    found["id"] = _percent(_right(backbone, data(within, "id", sizes["id"])))
    tell("measuring", 2, parts)
    found["gacc"] = _group_accuracy(backbone, sizes["groups"], own("gacc"))
    tell("measuring", 3, parts)
    found["attack"] = _under_attack(backbone, settings, own("attack"))
    tell("measuring", 4, parts)
    pictures = data(within, "drawings", 6 * sizes["drawings"]).scenes  # six questions a scene
    found |= _drawing(backbone, pictures[: sizes["drawings"]], own("drawings"))
    tell("measuring", 5, parts)
    return found


def _percent(right: list[bool]) -> float | None:
    return round(100 * sum(right) / len(right), 4) if right else None


def _right(backbone: Backbone, data: SyntheticDataset) -> list[bool]:
    """Of each question, whether U says exactly the answer."""
    images = images_of(data.scenes, backbone)
    index = torch.tensor([row[0] for row in data.rows])
    said = replies(backbone, images[index], [row[1] for row in data.rows])
    return [word == row[2] for word, row in zip(said, data.rows, strict=True)]


def _by_condition(backbone: Backbone, data: SyntheticDataset) -> dict[str, float | None]:
    right = _right(backbone, data)
    found = {"ood": _percent(right)}
    for condition in CONDITIONS:
        own = [is_so for is_so, row in zip(right, data.rows, strict=True) if row[4] == condition]
        found[f"ood/{condition}"] = _percent(own)
    return found


def _group_accuracy(backbone: Backbone, number: int, seed: int) -> float | None:
    scenes: list[Scene] = []
    questions: list[str] = []
    for group in groups(number, seed):
        scenes += [scene for scene in group.scenes for _ in group.questions]
        questions += [question for _ in group.scenes for question in group.questions]
    said = replies(backbone, images_of(scenes, backbone), questions)
    fours = [said[i : i + 4] for i in range(0, len(said), 4)]
    return _percent([four == ["yes", "no", "no", "yes"] for four in fours])


def _under_attack(backbone: Backbone, settings: Settings, seed: int) -> float | None:
    sizes, usual = settings.measured, adversary_for(SelfPlaySettings(**settings.game))
    adversary = replace(
        usual,
        steps=sizes["attack_steps"],
        practice=min(usual.practice, sizes["attacked"]),
        seed=derive_seed(seed, "C"),
    )
    entry = attack_entry(backbone, adversary, sizes["attacked"], seed)
    if entry is None:
        return None
    (right,) = entry["metrics"]["accuracy"]["units"]["counts"]
    return _percent([bool(value) for value in right])


def _drawing(backbone: Backbone, scenes: list[Scene], seed: int) -> dict[str, float | None]:
    said = backbone.caption(images_of(scenes, backbone), max_new_tokens=CAPTION_TOKENS)
    wanted = [truth(scene) for scene in scenes]
    found: dict[str, float | None] = {}
    for name, texts in (("t2i", [caption(scene) for scene in scenes]), ("consistency", said)):
        drawn = backbone.generate(
            texts,
            seeds=[derive_seed(seed, name, row) for row in range(len(texts))],
            guidance_scale=DRAWING.guidance_scale,
            temperature=DRAWING.temperature,
        )
        pictures = drawn.permute(0, 2, 3, 1).float().cpu().numpy()
        found[name] = round(100 * object_match([read(p) for p in pictures], wanted), 4)
    return found
