"""How much faster ``unigame evaluate`` asks a model than a loop over transformers' ``generate``.

The loop is what a user of transformers writes: one picture and one question at a time through the
processor and ``generate``, and one prompt at a time for drawings. Ours is the harness: decoding the
pictures, batches, and predictions and drawings written to disk. Both get the same synthetic POPE
(six questions a picture) and GenEval from the same files; loading data and scoring is left out of
both. Greedy answers and greedy image codes of both are compared.

Usage:
    python benchmarks/evaluate_speed.py --json FILE
    python benchmarks/evaluate_speed.py --shape janus_pro_1b --json FILE      # on a GPU

Loop and harness alternate; a speed-up is the median over rounds of the ratio of seconds per item.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from generation import GUIDANCE, theirs
from models import SHAPES, build
from PIL import Image

from unigame.backbones.janus.model import JanusBackbone
from unigame.evaluation.ask import Drawing, to_pictures
from unigame.evaluation.base import DataSource, Item
from unigame.evaluation.record import model_entry
from unigame.evaluation.registry import build_benchmark
from unigame.evaluation.running import Job, Run, Silent
from unigame.evaluation.scorers.stand_ins import ReaderColours, SyntheticDetector
from unigame.synthetic.benchmarks import write_benchmarks


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = model(options)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(backbone, options, Path(folder))
    result |= describe(backbone, options)
    text = json.dumps(result, indent=2)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    for kind in ("answers", "images"):
        print(f"{kind}: {result[f'{kind}_speedup']:.1f} times as fast as the loop")
    return result


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="bundled name, folder or Hub id")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--drawings", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=16, help="random weights never end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="default: as the harness chooses")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    return parser.parse_args(argv)


# ---- the model -----------------------------------------------------------------------------------


def model(options: argparse.Namespace) -> JanusBackbone:
    """The model that both sides use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    return build(options.shape or options.model, device, getattr(torch, dtype))


# ---- the loop ------------------------------------------------------------------------------------


def naive_answer(backbone: JanusBackbone, item: Item, max_new_tokens: int) -> str:
    """One question as a user of transformers asks it."""
    processor = backbone.processor
    content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[item.pictures[0]()], return_tensors="pt")
    inputs = inputs.to(backbone.device, backbone.dtype)
    whole = backbone.janus.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new = whole[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


def naive_drawing(backbone: JanusBackbone, prompt: str) -> Image.Image:
    """One picture."""
    codes = theirs(backbone, [prompt], do_sample=True)
    pixels_1SS3 = backbone.janus.decode_image_tokens(codes.to(backbone.device))
    return to_pictures(pixels_1SS3.permute(0, 3, 1, 2).float() / 2 + 0.5)[0]


# ---- measuring -----------------------------------------------------------------------------------


def measure(backbone: JanusBackbone, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both speed-ups, and how many greedy outputs are equal."""
    size = min(1000, max(8, options.questions, options.drawings))
    data = write_benchmarks(folder / "data", size=size, names=["pope", "geneval"])
    pope = build_benchmark("pope", {"prompt": "bare"})
    pope.max_new_tokens = options.max_new_tokens  # type: ignore[misc]  # a constant of the class
    drawer = build_benchmark(
        "geneval", {"samples": 1, "detector": SyntheticDetector(), "colours": ReaderColours()}
    )
    asked = Job(pope, pope.load(DataSource(root=data / "pope"), options.questions))
    drawn = Job(drawer, drawer.load(DataSource(root=data / "geneval"), options.drawings))
    entry = model_entry(backbone)
    replies: dict[str, str] = {}

    def loop_answers(out: Path) -> None:
        with (out / "predictions.jsonl").open("w") as file:
            for item in asked.loaded.items:
                replies[item.id] = naive_answer(backbone, item, options.max_new_tokens)
                file.write(json.dumps({"id": item.id, "text": replies[item.id]}) + "\n")

    def loop_drawings(out: Path) -> None:
        for item in drawn.loaded.items:
            naive_drawing(backbone, item.prompt).save(out / f"{item.id}.png")

    ours: dict[str, str] = {}

    def harness(job: Job) -> Callable[[Path], None]:
        def work(out: Path) -> None:
            how = Drawing(guidance_scale=GUIDANCE)
            run = Run(job, out, entry, how, backbone.max_images)
            run.ask(backbone, options.batch_size, Silent())
            if job is asked:
                ours.update({id: found.text for id, found in run.predictions().items()})

        return work

    answers = compare(loop_answers, harness(asked), options.rounds, folder / "answers")
    images = compare(loop_drawings, harness(drawn), options.rounds, folder / "images")
    few = [item.prompt for item in drawn.loaded.items[:4]]
    greedy_BN = torch.cat([theirs(backbone, [prompt], do_sample=False) for prompt in few])
    same_BN = greedy_BN.to(backbone.device) == backbone.generate_codes(
        few, do_sample=False, guidance_scale=GUIDANCE
    )
    return {
        "answers_speedup": answers["speedup"],
        "images_speedup": images["speedup"],
        "answers_equal": sum(ours[id] == text for id, text in replies.items()) / len(replies),
        "greedy_image_codes_equal": same_BN.float().mean().item(),
        "answers": {**answers, "items": len(asked.loaded.items)},
        "images": {**images, "items": len(drawn.loaded.items)},
    }


def compare(
    loop: Callable[[Path], None], ours: Callable[[Path], None], rounds: int, folder: Path
) -> dict[str, Any]:
    """Seconds of both in alternation, after one run of ours that warms up what both use."""

    def seconds(work: Callable[[Path], None], name: str) -> float:
        out = folder / name
        out.mkdir(parents=True)
        start = time.perf_counter()
        work(out)
        return time.perf_counter() - start

    seconds(ours, "warm-up")
    pairs = [(seconds(loop, f"loop {i}"), seconds(ours, f"ours {i}")) for i in range(rounds)]
    return {
        "speedup": statistics.median(slow / fast for slow, fast in pairs),
        "loop_seconds": [round(slow, 3) for slow, _ in pairs],
        "harness_seconds": [round(fast, 3) for _, fast in pairs],
    }


def describe(backbone: JanusBackbone, options: argparse.Namespace) -> dict[str, Any]:
    """Settings, machine and versions."""
    facts = backbone.facts
    cuda = backbone.device.type == "cuda"
    return {
        "settings": {
            "model": options.shape or options.model,
            "parameters": facts.num_parameters,
            "image_size": facts.image_size,
            "image_tokens": facts.num_image_tokens,
            "dtype": str(facts.dtype).removeprefix("torch."),
            "batch_size": options.batch_size or "automatic",
            "max_new_tokens": options.max_new_tokens,
            "guidance_scale": GUIDANCE,
            "rounds": options.rounds,
        },
        "hardware": {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": shlex.join(["python", "benchmarks/evaluate_speed.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
