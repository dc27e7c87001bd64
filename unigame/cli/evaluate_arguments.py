"""Arguments of ``unigame evaluate``. Nothing heavy is imported here: every command reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from unigame.cli import values

SYNTHETIC = "synthetic"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What is asked, of which data, how pictures are drawn, and what scores."""
    command.add_argument(
        "--benchmarks", required=True, help="names with commas between, such as pope,mmmu; or all"
    )
    command.add_argument("--limit", type=values.positive_int, help="items of each benchmark")
    command.add_argument(
        "--output", type=Path, help="folder to write; default runs/evaluate/<model>"
    )
    command.add_argument("--batch-size", type=values.positive_int, help="default: what should fit")
    command.add_argument("--seed", type=values.seed, default=0, help="of the drawn pictures")

    data = command.add_argument_group("data; of several benchmarks: vqav2=testdev,pope=random")
    data.add_argument(
        "--data-root",
        help="folder with one folder per benchmark (DIR/pope/), or 'synthetic' for small made-up "
        "data (the default of janus-nano); otherwise data come from the Hub",
    )
    data.add_argument("--split", help="another than the benchmark's own")
    data.add_argument("--config", help="configuration, such as cn of MMBench or Full of POPE")
    data.add_argument("--hub-id", help="another copy on the Hub, such as MMMU/MMMU")
    data.add_argument("--revision", help="commit, tag or branch of the copy on the Hub")

    variants = command.add_argument_group("variants, where references differ (docs/evaluation.md)")
    variants.add_argument("--prompt", help="such as bare, or pope=bare,mmmu=torchumm")
    variants.add_argument("--parser", help="such as official, or vqav2=official,mmmu=bagel")
    variants.add_argument(
        "--max-images", type=values.positive_int, help="pictures that a question may show"
    )

    drawing = command.add_argument_group("pictures that the model draws")
    drawing.add_argument("--samples", type=values.positive_int, help="of each GenEval prompt")
    drawing.add_argument(
        "--guidance-scale", type=values.guidance, help="default 5; on synthetic data 1 (none)"
    )
    drawing.add_argument(
        "--temperature", type=values.temperature, help="default 1; on synthetic data 0.7"
    )
    drawing.add_argument(
        "--caption-tokens", type=values.positive_int, help="longest caption in UnifiedBench"
    )

    scoring = command.add_argument_group("models that score")
    scoring.add_argument("--judge", help="of WISE: hf:ID or openai:MODEL@BASE_URL")
    scoring.add_argument(
        "--rubric", type=Path, help="of the judge: text file, such as the official"
    )
    scoring.add_argument("--detector", help="of GenEval: instance segmentation, Hub id or folder")
    scoring.add_argument("--matcher", help="of MMBench's unread replies: a text LLM, as hf:ID")
    scoring.add_argument("--colours", help="of GenEval: CLIP, Hub id or folder")
    scoring.add_argument("--encoders", help="of UnifiedBench: paper, uae, or names and ids")

    attacks = command.add_argument_group("robustness (docs/robustness.md)")
    attacks.add_argument(
        "--robustness",
        help="also measure, on the first benchmark that asks questions: adversary, pgd, "
        "corruptions, with commas between",
    )
    attacks.add_argument(
        "--attack-recipe", help="recipe whose bounds the adversary takes, such as janus_nano"
    )
