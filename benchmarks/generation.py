"""Free-running text -> image: ours against transformers' ``generate(generation_mode="image")``.

Both draw the same prompts in the same batch with guidance, and both end with pixels. In greedy mode
the codes must be equal, bit for bit; sampled drawings are what is timed.

Usage:
    python benchmarks/generation.py --json FILE [--model janus-nano | janus_pro_small | PATH]

The two alternate; ``speedup_vs_transformers`` is the median over rounds of the ratio of seconds.
``greedy_equal`` is the share of pictures whose greedy codes are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import meters
import record
import torch
import transformers
from models import build
from packaging.version import Version
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.janus.model import JanusBackbone

GUIDANCE = 5.0
# Before that its Janus cannot make its own static cache (an argument is missing in its call), but
# takes another.
NEEDS_CACHE = Version(transformers.__version__) < Version("5.23")
PROMPTS = (
    "a red circle",
    "two small green squares left of a blue cross",
    "a big yellow triangle",
    "a blue square above a red triangle",
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    transformers.utils.logging.set_verbosity_error()
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    backbone = build(options.model, device, dtype)
    figures = measure(backbone, options.batch_size, options.rounds)
    settings = {
        "model": options.model,
        "parameters": backbone.facts.num_parameters,
        "image_tokens": backbone.facts.num_image_tokens,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "guidance_scale": GUIDANCE,
        "dtype": str(backbone.facts.dtype).removeprefix("torch."),
    }
    found = record.write(figures, settings, options.json)
    print(f"{found['speedup_vs_transformers']:.2f} times the images per second of transformers")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="a checkpoint, or a random shape")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures drawn at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    return parser.parse_args(argv)


def measure(backbone: JanusBackbone, batch_size: int, rounds: int) -> dict[str, Any]:
    """The speed-up, seconds of both, and whether greedy codes agree."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch_size)]
    ours_BN = backbone.generate_codes(prompts, do_sample=False, guidance_scale=GUIDANCE)
    theirs_BN = theirs(backbone, prompts, do_sample=False)  # both are warm now

    def draw_theirs() -> None:
        codes_BN = theirs(backbone, prompts, do_sample=True)
        with torch.no_grad():
            backbone.janus.decode_image_tokens(codes_BN)

    def draw_ours() -> None:
        backbone.generate(prompts, guidance_scale=GUIDANCE)

    pairs = [
        (meters.seconds(draw_theirs, backbone.device), meters.seconds(draw_ours, backbone.device))
        for _ in range(rounds)
    ]
    return {
        "speedup_vs_transformers": round(statistics.median(slow / fast for slow, fast in pairs), 3),
        "cache_of_transformers": "dynamic" if NEEDS_CACHE else "static",
        "greedy_equal": (ours_BN == theirs_BN).all(-1).float().mean().item(),
        "images_per_second": record.rounded(
            {
                "transformers": batch_size / statistics.median(slow for slow, _ in pairs),
                "unigame": batch_size / statistics.median(fast for _, fast in pairs),
            }
        ),
        "seconds": [record.rounded({"transformers": s, "unigame": f}) for s, f in pairs],
    }


def theirs(backbone: JanusBackbone, prompts: list[str], *, do_sample: bool) -> Tensor:
    """Image codes (B, N) as a user of transformers draws them."""
    processor = backbone.processor
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    inputs = processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
    cache = {}
    if NEEDS_CACHE:
        cache["past_key_values"] = DynamicCache(config=backbone.janus.config.text_config)
    codes: Tensor = backbone.janus.generate(
        **inputs.to(backbone.device),
        **cache,
        generation_mode="image",
        guidance_scale=GUIDANCE,
        do_sample=do_sample,
        use_cache=True,
    )
    return codes.to(backbone.device)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
