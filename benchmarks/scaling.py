"""How the cost of a step grows: image tokens N, batch, candidates K, and width of the LM.

Each axis runs through one base point, a Janus of the 1B model's proportions made thin: for one
sample the vision encoder and the drawing decoder each have 0.3 of the language model's arithmetic
(1B: 0.26 and 0.38). At every point an SFT step and a UniGame step with mining are measured as in
``step_cost.py``: seconds, operations, and the peak of memory above the model's own.

A cost that grows as size^p has the exponent p, here the slope of a line through the points in
log-log scale. ``terms`` takes both steps apart by phase and by kind of operation. A term is
reported under ``faster`` if its exponent is above that of the whole SFT step, and as
``worse_than_sft`` if SFT has no term of such an exponent: the game must have none of those. K is no
setting of SFT; there a term is worse if it grows faster than in proportion to K.

Usage:
    python benchmarks/scaling.py --json FILE [--image FILE.png] [--axis tokens batch ...]
    python benchmarks/scaling.py --json FILE --counted    times nothing: no machine is too busy

On a GPU: ``--shape janus_pro_1b --bf16``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import meters
import numpy as np
import record
import torch
from models import SHAPES, Shape, random_janus, resized
from scaling_picture import draw
from step_cost import Bench
from step_cost import parse_arguments as step_arguments

STEPS = ("sft", "unigame")
AXES = ("tokens", "batch", "candidates", "width")
TOLERANCE = 0.1  # exponents closer than this are the same: batches come in whole samples
# Why a kind of operation grows as it does, axis by axis.
REASONS = {
    ("tokens", "attention"): "every token looks at every other; SFT's attention does, too",
    ("tokens", "tokenizer attention"): "the image tokenizer's lowest level has one position for "
    "each image token and all look at all, as in SFT's attention",
    ("tokens", "matrix products"): "in proportion to N; the SFT step grows a little less, because "
    "the text of a row does not grow",
    ("tokens", "convolutions"): "in proportion to the pixels, so many per image token",
    ("candidates", "attention"): "each candidate is one more reading",
    ("candidates", "matrix products"): "each candidate is one more reading",
    ("candidates", "convolutions"): "each candidate is drawn",
    ("candidates", "tokenizer attention"): "each candidate is drawn",
}


@dataclass(frozen=True)
class Point:
    """One size of everything."""

    tokens: int = 576
    batch: int = 2
    candidates: int = 1
    width: int = 384


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write the JSON file and draw the picture."""
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = thin() if options.shape == "thin" else SHAPES[options.shape]
    base = base_point(shape, options.batch_size)
    measured: dict[Point, dict[str, Any]] = {}
    figures: dict[str, Any] = {"axes": {}}
    for axis in options.axis:
        sizes = options.sizes or axis_sizes(axis, base, shape)
        points = []
        for size in sizes:
            point = replace(base, **{axis: size})
            if point not in measured:
                measured[point] = measure(shape, point, options)
                print(f"{axis} {size}: {line(measured[point])}", flush=True)
            points.append({"size": size, **measured[point]})
        figures["axes"][axis] = {"points": points, **analyse(axis, points)}
    found = record.write(figures, settings(options, base), options.json)
    print(summary(found))
    if options.image:
        draw(found, options.image)
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--image", type=Path, help="picture to draw (PNG)")
    parser.add_argument("--axis", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--sizes", nargs="+", type=int, help="of one axis, in the place of its own")
    parser.add_argument("--shape", default="thin", choices=["thin", *SHAPES])
    parser.add_argument("--batch-size", type=int, default=2, help="clean samples, base point")
    parser.add_argument("--repetitions", type=int, default=3, help="of each kind of step")
    parser.add_argument("--counted", action="store_true", help="operations and memory, no seconds")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 weights and autocast")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    options = parser.parse_args(argv)
    if options.sizes and len(options.axis) != 1:
        parser.error("--sizes are those of one axis; name it with --axis")
    if options.sizes and len(set(options.sizes)) < 2:
        parser.error("--sizes needs two different sizes at least: one has no growth")
    if options.sizes and min(options.sizes) < 1:
        parser.error(f"--sizes {min(options.sizes)} is impossible: give 1 at least")
    return options


def thin() -> Shape:
    """Janus-Pro's proportions at 1/170 of the 1B model's arithmetic; its vocabulary is whole."""
    shape = copy.deepcopy(SHAPES["janus_pro_small"])
    # Half the pixels a side for as many tokens, as nothing narrower fits the decoder's group norms.
    shape |= {"image_size": 192, "patch": 8}
    shape["text"] |= {"num_hidden_layers": 4}
    shape["vision"] |= {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3}
    # The encoder widens in its residual blocks; without them all levels must be alike.
    shape["vq"] |= {"channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 0}
    return resized(shape, width=384)


def base_point(shape: Shape, batch: int) -> Point:
    """The point that all axes run through."""
    tokens = (shape["image_size"] // shape["patch"]) ** 2
    return Point(tokens, batch, 1, shape["text"]["hidden_size"])


def axis_sizes(axis: str, base: Point, shape: Shape) -> list[int]:
    """Four sizes of an axis, small ones first; widths are whole heads."""
    if axis == "tokens":
        return [64, 256, 576, 1024]
    if axis == "width":
        heads = shape["text"]["num_attention_heads"]
        wanted = {max(1, round(heads * factor)) for factor in (1 / 3, 2 / 3, 1, 2)}
        return [base.width // heads * count for count in sorted(wanted)]
    if axis == "candidates":
        return [1, 2, 4, 8]
    return sorted({max(1, base.batch // 2), base.batch, 2 * base.batch, 4 * base.batch})


# ---- one point ---------------------------------------------------------------------------------
def measure(shape: Shape, point: Point, options: argparse.Namespace) -> dict[str, Any]:
    """Operations and memory of both kinds of step, and their seconds unless ``--counted``."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    sized = resized(shape, tokens=point.tokens, width=point.width)
    backbone = random_janus(sized, device, dtype)
    wanted = step_arguments(["--batch-size", str(point.batch), "--kinds", *STEPS])
    for name in ("bf16", "gradient_checkpointing", "cpu"):
        setattr(wanted, name, getattr(options, name))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(backbone, wanted, Path(folder))
        bench.game.settings.num_candidates = point.candidates  # of the kind "unigame"
        bench.fill_buffer()
        figures: dict[str, Any] = {"point": asdict(point), "gflops": {}, "terms": {}, "tokens": {}}
        for kind in STEPS:
            counter = count(bench, kind)
            figures["gflops"][kind] = round(sum(counter.terms.values()) / 1e9, 7)
            figures["terms"][kind] = record.rounded(
                {name: flops / 1e9 for name, flops in sorted(counter.terms.items())}, 7
            )
            figures["tokens"][kind] = counter.tokens
        figures["ratio_counted"] = round(figures["gflops"]["unigame"] / figures["gflops"]["sft"], 3)
        memory = bench.memory()
        figures["megabytes"] = {kind: memory["megabytes"][kind] for kind in ("model", *STEPS)}
        figures |= {name: memory[name] for name in ("memory_ratio", "memory_ratio_above_model")}
        if not options.counted:
            timed = bench.measure(options.repetitions)
            figures |= {"ratio": timed["ratio"], "phases": timed["phases"]}
            figures["seconds"] = {kind: timed["seconds"][kind]["median"] for kind in STEPS}
    return figures


class Terms(meters.Counter):
    """Operations by phase and by kind of operation.

    Attributes:
        terms: ``{"phase: kind": operations}``. Kinds are attention (of the language model and the
            vision encoder, fused), tokenizer attention (of the image tokenizer and its decoder,
            written out, and the distances to the codebook), convolutions (theirs, and cutting
            pictures into patches) and matrix products (everything else).
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__(language_model)
        self.terms: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As ``PhaseTimer.phase``."""
        before = self._by_kind()
        with super().phase(name):
            yield
        for kind, flops in self._by_kind().items():
            if found := flops - before.get(kind, 0):
                term = f"{name}: {kind}"
                self.terms[term] = self.terms.get(term, 0.0) + found

    def _by_kind(self) -> dict[str, float]:
        kinds: dict[str, float] = {}
        for operation, flops in self._flops.get_flop_counts().get("Global", {}).items():
            kind = kind_of(str(operation))
            kinds[kind] = kinds.get(kind, 0) + flops
        return kinds


def kind_of(operation: str) -> str:
    """The kind that an operation of torch counts as."""
    if "attention" in operation:
        return "attention"
    if "convolution" in operation:
        return "convolutions"
    return "tokenizer attention" if "bmm" in operation else "matrix products"


def count(bench: Bench, kind: str) -> Terms:
    """One step's operations."""
    timer, counter = bench.trainer.timer, Terms(bench.trainer.backbone.language_model)
    bench.trainer.timer = counter  # type: ignore[assignment]
    try:
        with counter.counting():
            bench.step(kind)
    finally:
        bench.trainer.timer = timer
    return counter


# ---- what the points say -----------------------------------------------------------------------
def analyse(axis: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of both steps, of all terms, and the terms that grow faster than SFT."""
    sizes = [point["size"] for point in points]

    def exponents(name: str) -> dict[str, float]:
        return {kind: slope(sizes, [point[name][kind] for point in points]) for kind in STEPS}

    slopes = {
        name: exponents(name) for name in ("seconds", "gflops", "megabytes") if name in points[0]
    }
    terms: dict[str, dict[str, Any]] = {}
    for kind in STEPS:
        for name in points[-1]["terms"][kind]:
            values = [point["terms"][kind].get(name, 0.0) for point in points]
            if min(values) > 0:
                share = values[-1] / points[-1]["gflops"][kind]
                found = {"exponent": slope(sizes, values), "share_at_largest": round(share, 4)}
                terms.setdefault(kind, {})[name] = found
    own = 1.0 if axis == "candidates" else max(t["exponent"] for t in terms["sft"].values())
    faster = [
        {
            "term": name,
            **term,
            "worse_than_sft": term["exponent"] > own + TOLERANCE,
            "why": reason(axis, name, term["exponent"], terms["sft"]),
        }
        for name, term in terms["unigame"].items()
        if term["exponent"] > slopes["gflops"]["sft"] + TOLERANCE
    ]
    return {"slopes": slopes, "terms": terms, "steepest_of_sft": round(own, 3), "faster": faster}


def reason(axis: str, term: str, exponent: float, sft: dict[str, dict[str, float]]) -> str:
    """Why a term of UniGame grows as it does; empty where nobody knows."""
    kind = term.split(": ")[1]
    if (axis, kind) in REASONS:
        return REASONS[axis, kind]
    alike = [own["exponent"] for name, own in sft.items() if name.endswith(f": {kind}")]
    return f"as {kind} do in the SFT step" if max(alike, default=0) + TOLERANCE > exponent else ""


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of size^p that fits best in log-log scale."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 3)


def line(point: dict[str, Any]) -> str:
    """One point in one line."""
    words = [
        f"{point['ratio_counted']:.2f} counted",
        f"memory above the model {point['memory_ratio_above_model']:.2f}",
    ]
    if "ratio" in point:
        seconds = point["seconds"]
        words.insert(0, f"{seconds['sft']:.2f} s, {seconds['unigame']:.2f} s, {point['ratio']:.2f}")
    return ", ".join(words)


def summary(found: dict[str, Any]) -> str:
    """What grows how, axis by axis."""
    lines = []
    for axis, figures in found["axes"].items():
        for name, pair in figures["slopes"].items():
            lines.append(
                f"{axis:10} {name:9} sft {pair['sft']:5.2f}   unigame {pair['unigame']:5.2f}"
            )
        for term in figures["faster"]:
            word = "WORSE THAN SFT" if term["worse_than_sft"] else "faster"
            share = f"{100 * term['share_at_largest']:.1f} % of the largest step"
            lines.append(f"  {word}: {term['term']} {term['exponent']:.2f}, {share}; {term['why']}")
    return "\n".join(lines)


def settings(options: argparse.Namespace, base: Point) -> dict[str, Any]:
    """What was measured."""
    return {
        "shape": options.shape,
        "base": asdict(base),
        "repetitions": 0 if options.counted else options.repetitions,
        "dtype": "bfloat16" if options.bf16 else "float32",
        "gradient_checkpointing": options.gradient_checkpointing,
        "on_cpu": options.cpu or not torch.cuda.is_available(),
    }


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
