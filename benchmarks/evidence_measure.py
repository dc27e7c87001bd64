"""What ``evidence.py`` measures of a model: every metric, on questions of a seed and a split.

Questions of each split, seed and metric come from a seed of their own, and none is a question of
training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from evidence_presets import Settings
from evidence_rows import Task

from unigame.backbones.base import Backbone
from unigame.evaluation.attacks.adversary import adversary_for
from unigame.evaluation.base import DataSource
from unigame.evaluation.miniature import CAPTION_TOKENS, usual_drawing, world_benchmarks
from unigame.evaluation.run import evaluate
from unigame.evaluation.world import attack_entry, images_of, replies
from unigame.methods.selfplay import SelfPlaySettings
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset, caption
from unigame.synthetic.benchmarks.write import write_benchmarks
from unigame.synthetic.dataset import CONDITIONS
from unigame.synthetic.questions import groups
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene
from unigame.system.workers import Tell

METRICS = (
    *("ood", "id", "gacc", "attack", "consistency", "t2i"),
    *(f"ood/{condition}" for condition in CONDITIONS),
    *("t2i_exact", "new_task", "new_task_ood", "old_tasks", "score"),
)
SIZE_OF = {
    **{"ood": "ood", "id": "id", "gacc": "groups", "attack": "attacked"},
    **dict.fromkeys(("consistency", "t2i", "t2i_exact"), "drawings"),
    **dict.fromkeys(("new_task", "old_tasks"), "task"),
    "new_task_ood": "task_ood",
    "score": "score",
}
"""The size in `measured` that a metric is off with."""
SCORED = ("unifiedbench", "wise")
"""What the paper's consistency score is made of."""
SPLITS_OF = {"validation": ("ood_validation", "validation"), "test": ("ood", "test")}
"""What is asked out of and in distribution, of each split."""


def metrics_of(settings: Settings) -> list[str]:
    """The metrics that a preset measures."""
    sizes = dict(settings.measured)
    if not settings.task_scenes:
        sizes |= {"task": 0, "task_ood": 0}
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
    new_task_ood         the same about pictures that are degraded as those of ``ood`` are
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
        found |= _new_task(backbone, settings, own)
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


def _new_task(
    backbone: Backbone, settings: Settings, own: Callable[[str], int]
) -> dict[str, float | None]:
    sizes = settings.measured
    tasks = {"new_task": Task(sizes["task"], own("task"))}
    if sizes.get("task_ood"):
        tasks["new_task_ood"] = Task(sizes["task_ood"], own("task_ood"), settings.severity)
    return {name: _percent(_right(backbone, task)) for name, task in tasks.items()}


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
