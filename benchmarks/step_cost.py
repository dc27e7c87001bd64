"""What one UniGame step costs beside one SFT step of the same trainer on the same batch.

Passes through the language model for a batch of B samples, K = 1, mining at every step, and one
hard sample for two clean ones:

    phase        forward   backward   of what
    SFT             B          B      the clean batch
    UniGame
      challenge     B          -      teacher-forced pass that gives the states z_hat
                    B          B      the candidates, re-read; the backward pass goes on to C
      mine          -          -      the challenge's candidates are reused
      understand  1.5 B      1.5 B    the mixed batch

The challenge takes ``challenge_share`` of the batch. ``ratio`` is measured at the share of the
``janus_nano`` recipe, one half: it draws as many candidates as the mixed batch has hard samples.
``ratio_full_share`` challenges the whole batch, as in the table above.

With frozen weights a backward pass costs about a forward one (gradients of activations only; LoRA
adds little), so the language model does 6 B against 2 B: a factor of 3. The rest is pictures: the
image tokenizer encodes B, the decoder draws B (with gradient) and B / 2 (without), and the vision
encoder reads 2.5 B, B of them with gradient, where SFT reads B.

Usage:
    python benchmarks/step_cost.py --json FILE [--model janus-nano | tiny | PATH]

SFT and UniGame steps alternate in one run, and the medians are compared, so that a machine that
slows down slows both. An optimizer step of U is part of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be measured without installing it

from unigame.backbones import load_backbone  # noqa: E402
from unigame.training import UniGameConfig, UniGameTrainer  # noqa: E402
from unigame.training.metrics import PHASES  # noqa: E402

QUESTION, ANSWER = "what colour is the circle", "red"


def main() -> None:
    """Measure, print, and write the JSON file."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, Path(folder))
        result = measure(trainer, options)
    result = {**result, **describe(trainer, options)}
    text = json.dumps(result, indent=2)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    share = options.challenge_share
    print(f"UniGame step / SFT step = {result['ratio']:.2f}, challenging {share:.0%} of the batch")
    print(f"                          {result['ratio_full_share']:.2f}, challenging all of it")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument(
        "--model", default="janus-nano", help="bundled name, 'tiny', folder, Hub id"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="clean samples")
    parser.add_argument("--repetitions", type=int, default=15, help="of each kind of step")
    parser.add_argument("--num-candidates", type=int, default=1, help="K")
    parser.add_argument("--challenge-share", type=float, default=0.5, help="of the batch")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 weights and autocast")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    return parser.parse_args()


def make_trainer(options: argparse.Namespace, folder: Path) -> UniGameTrainer:
    """One trainer, ready for steps without its loop."""
    args = UniGameConfig(
        output_dir=str(folder),
        per_device_train_batch_size=options.batch_size,
        num_candidates=options.num_candidates,
        challenge_share=options.challenge_share,
        gradient_checkpointing=options.gradient_checkpointing,
        eps_mode="relative",
        eps_max=0.6,
        eps_init=0.3,
        anchor=6.0,
        clip_floor=-1.0,  # every hard candidate passes, so that every step has its hard samples
        buffer_min_size=1,
        max_steps=1000,
        bf16=options.bf16,
        use_cpu=options.cpu,
        disable_tqdm=True,
    )
    model = options.model
    if model == "tiny":
        from tests.tiny import make_tiny_janus

        model = make_tiny_janus(folder / "tiny", image_size=32, hidden=64)
    dtype = "bfloat16" if options.bf16 else "float32"
    backbone = load_backbone(model, dtype=dtype, device=args.device)
    if options.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    data = records(options.batch_size, backbone.facts.image_size)
    trainer = UniGameTrainer(model=backbone, args=args, train_dataset=data)
    trainer.create_optimizer_and_scheduler(num_training_steps=args.max_steps)
    return trainer


def records(size: int, side: int) -> Any:
    """Random pictures of the model's own size: the cost of a step does not hang on the content."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (size, side, side, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(p), "question": QUESTION, "answer": ANSWER, "id": str(i)}
        for i, p in enumerate(pixels)
    ]


def measure(trainer: UniGameTrainer, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of alternating SFT and UniGame steps on one batch, after a warm-up of two each."""
    shares = {"unigame": options.challenge_share, "unigame_full_share": 1.0}
    batch = trainer.data_collator(list(trainer.train_dataset))
    game = trainer.game
    assert game is not None
    seconds: dict[str, list[float]] = {kind: [] for kind in ("sft", *shares)}
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    for repetition in range(-2, options.repetitions):
        for kind in seconds:
            trainer.game = None if kind == "sft" else game
            trainer.args.challenge_share = shares.get(kind, 1.0)
            elapsed = timed(lambda: optimizer_step(trainer, batch), trainer.args.device)
            trainer.timer.flush(trainer.meter)
            figures = trainer.meter.flush(lambda pairs: pairs)
            if repetition < 0:
                continue
            seconds[kind].append(elapsed)
            if kind == "unigame":
                assert "acceptance_rate" in figures and "hard_ce" in figures
                for name in PHASES:
                    phases[name].append(figures[f"seconds_{name}"])
    trainer.game = game
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "ratio": medians["unigame"] / medians["sft"],
        "ratio_full_share": medians["unigame_full_share"] / medians["sft"],
        **{f"{kind}_step_seconds": value for kind, value in medians.items()},
        "phases": {name: statistics.median(values) for name, values in phases.items()},
        "spread": {
            f"{kind}_{name}": pick(values)
            for kind, values in seconds.items()
            for name, pick in (("fastest", min), ("slowest", max))
        },
    }


def optimizer_step(trainer: UniGameTrainer, batch: dict[str, Any]) -> None:
    """What the Trainer's loop does for one step without accumulation."""
    _, counts = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.training_step(trainer.model, batch, counts)
    torch.nn.utils.clip_grad_norm_(
        trainer.backbone.trainable_parameters(), trainer.args.max_grad_norm
    )
    assert trainer.optimizer is not None
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, on a GPU until its work is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    begun = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begun


def describe(trainer: UniGameTrainer, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and on what."""
    device, facts = trainer.args.device, trainer.backbone.facts
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "settings": {
            "model": options.model,
            "parameters": facts.num_parameters,
            "image_size": facts.image_size,
            "image_tokens": facts.num_image_tokens,
            "batch_size": options.batch_size,
            "hard_batch_size": trainer.args.resolved_hard_batch_size,
            "num_candidates": options.num_candidates,
            "challenge_share": options.challenge_share,
            "dtype": str(facts.dtype).removeprefix("torch."),
            "gradient_checkpointing": options.gradient_checkpointing,
            "repetitions": options.repetitions,
        },
        "command": shlex.join(["python", "benchmarks/step_cost.py", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    main()
