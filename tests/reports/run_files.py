"""The folder of a run, as training writes it, made up: a log, pictures, findings, settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAID = (
    {"clean": "red", "redrawn": "red", "attacked": "red"},
    {"clean": "red", "redrawn": "blue", "attacked": "blue"},
    {"clean": "Red.", "redrawn": "red", "attacked": "green"},
    {"clean": "blue", "redrawn": "blue", "attacked": "blue"},
)
QUESTION = 'what <b>colour</b> is "it" & why?'


def log(steps: int = 12) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for n in range(1, steps + 1):
        fall = math.exp(-n / steps)
        entries.append(
            {
                "step": 10 * n,
                "loss": fall,
                "learning_rate": 1e-3,
                "clean_answer_ce": 0.6 * fall,
                "redrawn_ce": 0.8 * fall + 0.1,
                "adversarial_ce": fall + 0.3,
                "hard_answer_ce": fall + 0.4,
                "attack_success_rate": 0.4 * fall,
                "redrawn_success_rate": 0.1,
                "similarity": 0.8,
                "redrawn_similarity": 0.9,
                "buffer_size": 5.0 * n,
                "hardness_q25": 1.0,
                "hardness_q50": 1.5,
                "hardness_q75": 2.0 + 0.1 * n,
                "age_q25": 2.0 * n,
                "age_q50": 4.0 * n,
                "age_q75": 8.0 * n,
                "acceptance_rate": 0.2,
                "seconds_challenge": 0.5,
                "seconds_understand": 0.2,
            }
        )
    return entries


def write_dynamics(folder: Path) -> None:
    """A path that goes straight on and then turns, and a map of four kinds of pictures."""
    (folder / "dynamics").mkdir()
    points: list[dict[str, Any]] = [{"step": 0, "start": [0.5] * 4}]
    points += [{"step": 10 * n, "moved": [n, max(0, n - 6), 0.01 * n, 0]} for n in range(1, 13)]
    lines = "".join(json.dumps(point) + "\n" for point in points)
    (folder / "dynamics" / "path.jsonl").write_text(lines)
    places = np.random.default_rng(0).normal(size=(4, 12, 2)).tolist()
    names = ("clean", "candidates", "buffer", "held-out")
    kinds = {
        name: {"at": at, "nearest": 1.0 + number}
        for number, (name, at) in enumerate(zip(names, places, strict=True))
    }
    content = {"format": "unigame-coverage/1", "share": [0.4, 0.2], "kinds": kinds}
    (folder / "dynamics" / "coverage.json").write_text(json.dumps(content))


def write_run(
    folder: Path,
    *,
    findings: list[dict[str, Any]] | None = None,
    examples: int = 4,
    side: int = 16,
    dynamics: bool = True,
) -> Path:
    """What a finished run leaves, as far as the page reads it."""
    (folder / "examples").mkdir(parents=True)
    state = {"global_step": 120, "log_history": log()}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if dynamics:
        write_dynamics(folder)
    about = {
        "format": "unigame-run/1",
        "command": "unigame train janus_nano --seed 3",
        "seeds": {"seed": 3},
        "settings": {"max_steps": 120},
        "versions": {"unigame": "0.1.0", "torch": "2.13"},
        "device": "cpu",
        "processes": 1,
        "peak_memory_mb": 1234,
        "findings": findings or [],
    }
    (folder / "about.json").write_text(json.dumps(about))
    record = {"methods": {"selfplay": {"beta": 0.5}}, "recipe": {"model": "janus-nano"}}
    (folder / "run.json").write_text(json.dumps(record))
    entries = []
    for number in range(examples):
        names = {kind: f"{number}-{kind}.png" for kind in ("clean", "redrawn", "attacked")}
        for place, name in enumerate(names.values()):
            pixels = np.random.default_rng(number).integers(0, 200, (side, side, 3)) + 10 * place
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "examples" / name)
        entries.append(
            {
                "id": str(number),
                "question": QUESTION,
                "answer": "yes" if number == 4 else "red",
                "caption": "a red circle",
                "said": SAID[number % len(SAID)],
                "similarity": {"redrawn": 0.9, "attacked": 0.8},
                "pictures": names,
            }
        )
    content = {"format": "unigame-examples/1", "examples": entries}
    (folder / "examples" / "examples.json").write_text(json.dumps(content))
    return folder


def write_drawings(folder: Path, method: str = "verify", rights: tuple[Any, ...] = ()) -> None:
    """Drawings that U confirmed, as a run with a method of verified drawings leaves them."""
    (folder / "drawings").mkdir(exist_ok=True)
    entries = []
    for number, right in enumerate(rights):
        name = f"{method}-{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "drawings" / name)
        entries.append(
            {
                "caption": f"a <red> circle {number}",
                "step": 25 * number,
                "questions": [["is there a red circle?", "yes"]],
                "right": right,
                "picture": name,
            }
        )
    content = {"format": "unigame-drawings/1", "method": method, "drawings": entries}
    (folder / "drawings" / f"{method}.json").write_text(json.dumps(content))
