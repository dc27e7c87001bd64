"""Records of evaluations as ``unigame evaluate`` writes them, made from lists of scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from unigame.reports.combined import Part, combine
from unigame.reports.metrics import Metric, Unit, to_json

TITLES = {"vqav2": "VQAv2", "mmmu": "MMMU", "mmbench": "MMBench", "pope": "POPE", "wise": "WISE"}
SIZE = 60


def mean_metric(values, name="accuracy", scale=100.0):
    units = tuple(Unit(f"q{i}", (float(v),), f"picture {i // 2}") for i, v in enumerate(values))
    return Metric(name, name, units, scale=scale)


def benchmark(name, *metrics, **fields):
    """One benchmark's entry; ``fields`` replace whole parts of it."""
    entry = {
        "title": TITLES.get(name, name),
        "group": "understanding",
        "task": "answer",
        "dataset": {"id": f"org/{name}", "split": "test", "fingerprint": "f00d"},
        "variant": {"prompt": "lmms_eval", "parser": "official"},
        "scorer": {},
        "generation": {"max_new_tokens": 16},
        "counts": {"items": SIZE, "scored": SIZE, "unparsed": 0, "skipped": {}, "unscored": {}},
        "warnings": [],
        "metrics": {m.name: to_json(m) | {"headline": m is metrics[0]} for m in metrics},
    }
    return entry | fields


def record(benchmarks, model="janus", sha="aa", adapter=None, summary=None):
    return {
        "format": "unigame-evaluation/1",
        "model": {
            "id": f"models/{model}",
            "sha256": sha,
            "adapter": adapter and {"id": f"runs/{adapter}", "sha256": adapter},
        },
        "benchmarks": benchmarks,
        "summary": summary or {"consistency": None, "understanding": None},
    }


def write(folder: Path, name: str, content) -> Path:
    path = folder / name / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def answers(right: float, seed: int = 0) -> list[float]:
    """Ones and zeros over fixed questions: a higher share keeps what a lower one had right."""
    return (np.random.default_rng(seed).random(SIZE) < right).astype(float).tolist()


def four(right: float):
    """The four benchmarks of the understanding mean, and the mean as the evaluation writes it."""
    names = ("vqav2", "mmmu", "mmbench", "pope")
    metrics = {name: mean_metric(answers(right, seed)) for seed, name in enumerate(names)}
    score = combine([Part(metric, 0.25) for metric in metrics.values()])
    parts = [{"benchmark": n, "metric": "accuracy", "weight": 0.25} for n in names]
    summary = {"understanding": {**score, "parts": parts}, "consistency": None}
    return {name: benchmark(name, metric) for name, metric in metrics.items()}, summary
