"""One arm of one seed: trained and measured, in a folder of its own that is never done twice.

    OUTPUT/seed-3/selfplay/adapter/          the weights
                          /trained.json      steps, seconds, log
                          /validation.json   figures, by metric

Training does not depend on the split that is measured later.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import record
import torch
from evidence_measure import measure
from evidence_presets import TEXTS, Arm, Settings
from evidence_rows import ExtraRows, RealPairs, RealScenes, Task, counts_of, write_texts
from torch.utils.data import Dataset
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from unigame.backbones import load_backbone
from unigame.demo.run import StepsTold
from unigame.methods.base import Method
from unigame.methods.registry import build_methods
from unigame.methods.selfplay import SelfPlaySettings
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset
from unigame.system.workers import Tell
from unigame.training import UniGameConfig, UniGameTrainer


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
