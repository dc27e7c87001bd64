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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import peft
import record
import torch
from evidence_presets import TEXTS, Arm, Settings
from torch.utils.data import Dataset
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.demo.run import StepsTold
from unigame.evaluation.attacks.adversary import adversary_for
from unigame.evaluation.base import DataSource
from unigame.evaluation.miniature import CAPTION_TOKENS, usual_drawing, world_benchmarks
from unigame.evaluation.run import evaluate
from unigame.evaluation.world import attack_entry, images_of, replies
from unigame.methods.base import Method, Run
from unigame.methods.registry import build_methods
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay import SelfPlaySettings
from unigame.seeds import derive_seed
from unigame.settings.rules import Many, Number, Switch, Text, Whole, setting
from unigame.synthetic import SyntheticDataset, caption
from unigame.synthetic.benchmarks.write import write_benchmarks
from unigame.synthetic.dataset import CONDITIONS, SPLITS, to_pil
from unigame.synthetic.from_captions import where
from unigame.synthetic.questions import groups
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene, random_scene
from unigame.system.workers import Tell
from unigame.training import UniGameConfig, UniGameTrainer

METRICS = (
    *("ood", "id", "gacc", "attack", "consistency", "t2i"),
    *(f"ood/{condition}" for condition in CONDITIONS),
    *("t2i_exact", "new_task", "old_tasks", "score"),
)
SIZE_OF = {
    **{"ood": "ood", "id": "id", "gacc": "groups", "attack": "attacked"},
    **dict.fromkeys(("consistency", "t2i", "t2i_exact"), "drawings"),
    **dict.fromkeys(("new_task", "old_tasks"), "task"),
    "score": "score",
}
"""The size in `measured` that a metric is off with."""
SCORED = ("unifiedbench", "wise")
"""What the paper's consistency score is made of."""
SPLITS_OF = {"validation": ("ood_validation", "validation"), "test": ("ood", "test")}
"""What is asked out of and in distribution, of each split."""


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

    def code(self) -> set[str]:
        """What trained and measured it."""
        files = (self.folder / "trained.json", self.result)
        records = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
        return {record.get("code", "unknown") for record in records}

    def hard_rows(self) -> float | None:
        """Rows of the buffer that U learned from, a step; None where nothing was mined."""
        trained = self.folder / "trained.json"
        if not trained.exists():
            return None
        log = json.loads(trained.read_text("utf-8"))["log"]
        found = [entry["replayed"] for entry in log if "replayed" in entry]
        return sum(found) / len(found) if found else None


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
        _write(job.result, {"figures": figures, **clock.read(), "code": record.CODE})


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


@dataclass
class RealSettings:
    """Settings of ``RealPairs`` and ``RealScenes``."""

    texts: int = setting(600, Whole(low=1), "Captions.")
    counts: Sequence[int] = setting((1, 2, 3, 4), Many(item=Whole(low=1, high=9)), "Of objects.")
    rows: int = setting(24, Whole(low=1), "Added to each step.")
    weight: float = setting(1.0, Number(low=0), "Of them.")


class RealPairs(Method):
    """Real pictures of the very captions that others draw from, to draw: what pictures would give.

    The control of ``verify``: it has what verify has not.
    """

    name = "real_pairs"
    Settings = RealSettings
    losses = ("generation",)

    def setup(self, run: Run) -> None:
        """Render the scenes, each seed its own."""
        super().setup(run)
        chosen = self.settings
        self.scenes = scenes_of_texts(chosen.texts, run.args.seed, tuple(chosen.counts))
        self.images = images_of(self.scenes, run.backbone)
        seed = derive_seed(run.args.seed, self.name)
        self.generator = torch.Generator().manual_seed(seed)

    def step_rows(self) -> list[Rows]:
        """Some of them."""
        size = (self.settings.rows,)
        rows = torch.randint(len(self.scenes), size, generator=self.generator).tolist()
        return [
            Rows(
                images=self.images[rows],
                codes=self.run.backbone.encode_images(self.images[rows]),
                captions=[caption(self.scenes[row]) for row in rows],
                loss="generation",
                source=[self.name] * len(rows),
                weight=self.settings.weight,
            )
        ]


class RealScenes(RealPairs):
    """Real pictures of the captions with the new task's questions: the ceiling of ``imagine``."""

    name = "real_scenes"
    losses = ("answer",)

    def step_rows(self) -> list[Rows]:
        """Some questions about some of them."""
        asked = [(row, *pair) for row, scene in enumerate(self.scenes) for pair in where(scene)]
        size = (self.settings.rows,)
        picked = torch.randint(len(asked), size, generator=self.generator).tolist()
        rows, questions, answers = zip(*(asked[i] for i in picked), strict=True)
        return [
            Rows(
                images=self.images[list(rows)],
                questions=list(questions),
                answers=list(answers),
                source=[self.name] * len(rows),
                weight=self.settings.weight,
            )
        ]

    def rows_at_most(self, args: Any) -> int:
        """Every step has as many."""
        return int(self.settings.rows)


TASK_COUNTS = (2, 3, 4)
"""Objects of a scene of the new task: of one alone there is little to ask."""


def scenes_of_texts(number: int, seed: int, counts: tuple[int, ...]) -> list[Scene]:
    """The scenes of the captions of a seed."""
    rng = np.random.default_rng(derive_seed(seed, "texts"))
    return [random_scene(rng, counts=counts) for _ in range(number)]


class Task(Dataset[dict[str, Any]]):
    """The new task: where is an object?

    Args:
        scenes: how many.
        seed: of them.
    """

    def __init__(self, scenes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.scenes = [random_scene(rng, counts=TASK_COUNTS) for _ in range(scenes)]
        self.rows = [
            (row, question, answer)
            for row, scene in enumerate(self.scenes)
            for question, answer in where(scene)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, question, answer = self.rows[index]
        scene = self.scenes[row]
        return {
            "image": to_pil(scene),
            "question": question,
            "answer": answer,
            "caption": caption(scene),
            "id": f"task-{row}-{index}",
        }


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Objects of the scenes that captions tell of."""
    return TASK_COUNTS if settings.task_scenes else (1, 2, 3, 4)


def write_texts(file: Path, settings: Settings, seed: int) -> None:
    """The captions of a seed, with the new task's questions where there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as opened:
        for scene in scenes_of_texts(settings.texts, seed, counts_of(settings)):
            asked = where(scene) if settings.task_scenes else []
            questions = [{"question": question, "answer": answer} for question, answer in asked]
            opened.write(json.dumps({"caption": caption(scene), "questions": questions}) + "\n")


def methods_of(arm: Arm, settings: Settings, texts: Path | None = None) -> list[Method]:
    """What is played beside fine-tuning in this arm.

    Args:
        arm: it.
        settings: of the preset.
        texts: the file of captions, where the arm has one.
    """
    for kind, given in ((RealPairs, arm.real_pairs), (RealScenes, arm.real_scenes)):
        if given is not None:
            return [kind(texts=settings.texts, counts=list(counts_of(settings)), **given)]
    if arm.extra is None:
        listed = {name: dict(own) for name, own in arm.methods.items()}
        for own in listed.values():
            if own.get("texts") == TEXTS and texts is not None:
                own["texts"] = str(texts)
        return build_methods(listed)
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
    data: Dataset[dict[str, Any]]
    if settings.task_scenes:
        data = Task(settings.task_scenes, derive_seed(job.seed, "task"))
    else:
        data = SyntheticDataset("train", settings.questions, derive_seed(job.seed, "data"))
    texts = job.folder / TEXTS
    if settings.texts:
        write_texts(texts, settings, job.seed)
    trainer = UniGameTrainer(
        model=load_backbone(job.model, dtype="float32"),
        args=args,
        train_dataset=data,
        peft_config=peft.LoraConfig(**settings.lora) if settings.lora else None,
        methods=methods_of(arm, settings, texts),
        callbacks=[StepsTold(tell, steps)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.backbone.save_pretrained(job.folder / "adapter")
    log = trainer.state.log_history
    said = [text for method in trainer.methods if (text := method.summary())]
    spent = {"steps": steps, **clock.read(), "said": said, "log": log}
    _write(job.folder / "trained.json", {**spent, "code": record.CODE})


# ---- measuring -----------------------------------------------------------------------------------
def metrics_of(settings: Settings) -> list[str]:
    """The metrics that a preset measures."""
    sizes = {**settings.measured, "task": settings.task_scenes and settings.measured["task"]}
    return [metric for metric in METRICS if sizes.get(SIZE_OF[metric.split("/")[0]])]


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
    t2i_exact            captions whose drawing shows exactly their objects
    consistency          objects of a picture that are in the picture drawn of U's own caption of it
    new_task             questions of the new task, about scenes that it was not trained on
    old_tasks            what ``id`` asks, where a new task is trained: what is left of old skills
    score                the paper's consistency score, 0.6 UnifiedBench + 0.4 WISE, in miniature

    What a size of 0 leaves out is None.
    """
    backbone.eval()
    sizes, parts = settings.measured, 7
    out_of, within = SPLITS_OF[split]

    def own(metric: str) -> int:
        return derive_seed(seed, "evidence", split, metric)

    def data(name: str, metric: str, size: int) -> SyntheticDataset:
        return SyntheticDataset(name, size, own(metric), severity=settings.severity)  # type: ignore[arg-type]

    tell("measuring", 0, parts)
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    if sizes["ood"]:
        found |= _by_condition(backbone, data(out_of, "ood", sizes["ood"]))
    tell("measuring", 1, parts)
    if sizes["id"]:
        found["id"] = _percent(_right(backbone, data(within, "id", sizes["id"])))
    tell("measuring", 2, parts)
    if sizes["groups"]:
        found["gacc"] = _group_accuracy(backbone, sizes["groups"], own("gacc"))
    tell("measuring", 3, parts)
    if sizes["attacked"]:
        found["attack"] = _under_attack(backbone, settings, own("attack"))
    tell("measuring", 4, parts)
    if sizes["drawings"]:
        pictures = data(within, "drawings", 6 * sizes["drawings"]).scenes  # six questions a scene
        found |= _drawing(backbone, pictures[: sizes["drawings"]], own("drawings"))
    tell("measuring", 5, parts)
    if settings.task_scenes:
        found["old_tasks"] = found["id"]
        found["new_task"] = _percent(_right(backbone, Task(sizes["task"], own("task"))))
    tell("measuring", 6, parts)
    if sizes.get("score"):
        found["score"] = _consistency_score(backbone, sizes["score"], own("score"))
    tell("measuring", 7, parts)
    return found


def _percent(right: list[bool]) -> float | None:
    return round(100 * sum(right) / len(right), 4) if right else None


def _right(backbone: Backbone, data: SyntheticDataset | Task) -> list[bool]:
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


def _consistency_score(backbone: Backbone, size: int, seed: int) -> float | None:
    """0.6 UnifiedBench + 0.4 WISE, as ``unigame demo`` has it; so many replies of each."""
    usual = usual_drawing(latents=backbone.facts.codebook_size is None)
    with TemporaryDirectory() as folder:
        root = write_benchmarks(Path(folder) / "data", size=size, seed=seed, names=SCORED)
        record = evaluate(
            backbone,
            [found for found in world_benchmarks(backbone) if found.name in SCORED],
            sources={name: DataSource(root=root / name) for name in SCORED},
            output=Path(folder) / "record",
            drawing=replace(usual, seed=seed),
        )
    value: float | None = record["summary"]["consistency"]["value"]
    return None if value is None else round(value, 4)


def _drawing(backbone: Backbone, scenes: list[Scene], seed: int) -> dict[str, float | None]:
    said = backbone.caption(images_of(scenes, backbone), max_new_tokens=CAPTION_TOKENS)
    wanted = [truth(scene) for scene in scenes]
    usual = usual_drawing(latents=backbone.facts.codebook_size is None)
    found: dict[str, float | None] = {}
    for name, texts in (("t2i", [caption(scene) for scene in scenes]), ("consistency", said)):
        drawn = backbone.generate(
            texts,
            seeds=[derive_seed(seed, name, row) for row in range(len(texts))],
            guidance_scale=usual.guidance_scale,
            temperature=usual.temperature,
        )
        pictures = [read(p) for p in drawn.permute(0, 2, 3, 1).float().cpu().numpy()]
        found[name] = round(100 * object_match(pictures, wanted), 4)
        if name == "t2i":
            pairs = zip(pictures, wanted, strict=True)
            found["t2i_exact"] = _percent([seen == there for seen, there in pairs])
    return found
