"""Ways to run Janus's image decoder, forward and backward: transformers', ours, and two refused.

The challenge draws every candidate with a gradient to its codes' vectors. ``lean`` is what the
backbone does (``backbones/lean_decoder.py``); ``channels_last`` is the same with pixels' channels
side by side, ``compiled`` the same through ``torch.compile``.

Usage:
    python benchmarks/decoder.py --json FILE [--model janus-nano | janus_pro_small] [--compile]

``ratio`` is the median over rounds of each way's seconds over those of transformers' own decoder;
the ways alternate. ``difference`` is the largest one of the gradient, over its largest value;
``compile_seconds`` what compiling took, which needs a C++ compiler on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meters
import record
import torch
from models import build
from torch import Tensor

from unigame.backbones.common.fast import lean_decoder

Decode = Callable[[Any, Tensor], Tensor]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="a checkpoint, or a random shape")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures drawn at once")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vq = build(options.model, device, torch.float32).janus.model.vqmodel
    vq.requires_grad_(False).eval()
    figures = measure(vq, options.batch_size, options.rounds, options.compile)
    settings = {name: getattr(options, name) for name in ("model", "batch_size", "rounds")}
    found = record.write(figures, settings, options.json)
    for name, ratio in found["ratio"].items():
        print(f"{name:14} {ratio:.2f} x transformers")
    return found


def measure(vq: Any, batch_size: int, rounds: int, compiling: bool) -> dict[str, Any]:
    """Ratios, differences and seconds of all ways."""
    device = vq.post_quant_conv.weight.device
    grid = vq.quantize.quant_state_dims
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, vq.post_quant_conv.in_channels, *grid)
    latents = vq.post_quant_conv(torch.randn(shape, generator=generator).to(device))
    ways: dict[str, Decode] = {
        "transformers": lambda decoder, grid: decoder(grid),
        "lean": lean_decoder.decode,
        "channels_last": _channels_last,
    }
    if compiling:
        ways["compiled"] = torch.compile(lean_decoder.decode)

    def run(name: str) -> Tensor:
        layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
        vq.decoder.to(memory_format=layout)
        leaf = latents.detach().clone().requires_grad_()
        ways[name](vq.decoder, leaf).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    first = {name: meters.seconds(lambda name=name: run(name), device) for name in ways}  # type: ignore[misc]
    plain = run("transformers")
    seconds = [
        {name: meters.seconds(lambda name=name: run(name), device) for name in ways}  # type: ignore[misc]
        for _ in range(rounds)
    ]
    figures = {
        "ratio": {
            name: round(statistics.median(s[name] / s["transformers"] for s in seconds), 3)
            for name in ways
        },
        "difference": {
            name: float(f"{((run(name) - plain).abs().max() / plain.abs().max()).item():.1e}")
            for name in ways
        },
        "seconds": record.rounded({n: statistics.median(s[n] for s in seconds) for n in ways}),
    }
    return figures | ({"compile_seconds": round(first["compiled"], 1)} if compiling else {})


def _channels_last(decoder: Any, grid: Tensor) -> Tensor:
    return lean_decoder.decode(decoder, grid.contiguous(memory_format=torch.channels_last))


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
