"""The ceiling test: is there anything to win on the bundled model at all?

LoRA on the language model only, the same number of steps and samples: plain SFT on clean scenes
against SFT on *real* out-of-distribution pictures (noise, blur, contrast, occlusion, textures). If
real augmentation does not gain at least five points out of distribution, no adversary can either.

    python benchmarks/ceiling.py --json benchmarks/results/ceiling.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import set_seed

from unigame.backbones import load_backbone
from unigame.evaluation.world import Scores, accuracy
from unigame.reports.metrics import Metric, Unit, difference, estimate
from unigame.synthetic import SyntheticDataset
from unigame.training import UniGameConfig, UniGameTrainer

NEEDED = 0.05


def metric(scores: Scores) -> Metric:
    """The share of right answers, with the picture of each question."""
    units = zip(scores.keys, scores.values, scores.clusters, strict=True)
    return Metric("accuracy", "accuracy", tuple(Unit(k, (v,), c) for k, v, c in units), scale=1)


def arm(model: str, split: str | None, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Validation scores of one arm, in and out of distribution; ``None`` is the base model."""
    set_seed(seed)
    backbone = load_backbone(model, dtype="float32")
    if split is not None:
        with tempfile.TemporaryDirectory() as folder:
            config = UniGameConfig(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                lr_scheduler_type="cosine",
                seed=seed,
                save_strategy="no",
                logging_steps=50,
            )
            data = SyntheticDataset(split, args.steps * args.batch_size, seed)
            trainer = UniGameTrainer(backbone, config, data, methods=["sft"])
            trainer.train()
    backbone.eval()
    return {
        name: accuracy(backbone, name, args.questions, 0)
        for name in ("validation", "ood_validation")
    }


def main() -> None:
    """Train both arms for every seed and print what augmentation gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="janus-nano")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--questions", type=int, default=1080)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    record: dict[str, Any] = {"command": " ".join(sys.argv), "seeds": {}}
    base = arm(args.model, None, args, 0)
    for seed in args.seeds:
        sft, real = (arm(args.model, split, args, seed) for split in ("train", "augmented"))
        figures: dict[str, Any] = {}
        for name in sft:
            metrics = {
                k: metric(v[name]) for k, v in (("base", base), ("sft", sft), ("augmented", real))
            }
            gain = difference(metrics["augmented"], metrics["sft"])
            figures[name] = {k: estimate(m) for k, m in metrics.items()} | {"gain": gain}
        record["seeds"][seed] = figures
        print(
            json.dumps(
                {
                    name: {k: round(v["value"], 4) for k, v in f.items()}  # noqa: T201
                    for name, f in figures.items()
                }
            )
        )
    gains = [f["ood_validation"]["gain"]["value"] for f in record["seeds"].values()]
    record["passed"] = min(gains) >= NEEDED
    print(f"augmentation gains {min(gains):+.3f} OOD (needed {NEEDED:+.2f})")  # noqa: T201
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
