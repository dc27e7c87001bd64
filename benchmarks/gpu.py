"""Janus-Pro-7B and 1B on one GPU: what a step costs, how near it is to the card's limit, drawing.

Self-contained: random weights of the exact shapes are made on the device. Training is as in the
recipe ``janus_pro_7b``: bfloat16 weights, float32 LoRA of rank 16 and perturber, gradient
checkpointing (and without, where that fits), on a batch of 8 at 384 px, mining at every step. The
recipe challenges the whole batch: that is ``full_share``; ``unigame`` and ``k4`` challenge half of
it. Not in it: captions (the recipe's Eq. 3 on a fifth of the samples) and CLIP.

Parts, in this order; each is kept as soon as it is there, and none starts that the budget leaves
no time for:

    matmul                             the card's own rate: large matrix products in bfloat16
    SHAPE                              training with gradient checkpointing
    generation_SHAPE_batch_B           ``generation.py`` at batch 1 and 16, on the smallest shape
    SHAPE_without_checkpointing        training without

Keys of training: ``seconds`` a step, ``ratio``, ``ratio_full_share`` and ``ratio_k4`` as in
``step_cost.py``; ``phases`` and ``phase_shares`` of a UniGame step; ``gigabytes`` at the worst
moment, the model included; ``lm_tokens_per_second`` (forward, so that passes with and without a
backward pass count alike); ``utilization``: operations that the mathematics needs (counted without
checkpointing) in a second, over the matmul rate, of whole steps, of each phase of a UniGame step,
and under ``understand`` of the understanding step; ``utilization_executed`` also counts what
checkpointing computes twice; ``gpu_hours`` for 5,000 steps; ``profile``: where the device's time
goes. A part that does not fit is ``"stopped": "out of memory"``.

Usage:
    python benchmarks/gpu.py --json FILE [--budget-s 450]
    python benchmarks/gpu.py --shape tiny                 the same on a CPU, in seconds
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import generation
import meters
import record
import torch
import transformers
from kernel_times import summarise
from models import SHAPES, build
from step_cost import KINDS, Bench
from step_cost import parse_arguments as step_arguments

from unigame.doctor.peak import tensor_bytes

RUN_STEPS = 5_000
# Rough seconds that a part takes on an H100: it is not begun with less time left.
NEEDS = {"janus_pro_7b": 70, "janus_pro_1b": 40, "generation": 50}
COUNTED_BATCH = 2  # operations are in proportion to an even batch; two rows fit any card


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run all parts, print, and write the JSON file after each."""
    begun = time.perf_counter()
    transformers.utils.logging.set_verbosity_error()
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    run = Run(device, options, begun)
    run.part("matmul", 0, lambda note: note(matmul_rates(device)))
    for shape in options.shape:
        run.part(shape, NEEDS.get(shape, 0), Training(run, shape, True).measure)
    shape = options.shape[-1]
    for batch in options.generation_batches:
        needed = NEEDS["generation"] if shape in NEEDS else 0
        run.part(
            f"generation_{shape}_batch_{batch}",
            needed,
            lambda note, batch=batch: note(draw(shape, batch, device)),  # type: ignore[misc]
        )
    for shape in options.shape:
        name = f"{shape}_without_checkpointing"
        run.part(name, NEEDS.get(shape, 0), Training(run, shape, False).measure)
    found = record.write(run.figures, run.settings, options.json)
    print(summary(found))
    if run.failed:
        raise SystemExit("a part failed; see its key 'stopped' and the traceback above")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument(
        "--shape",
        nargs="+",
        default=["janus_pro_7b", "janus_pro_1b"],
        choices=list(SHAPES),
        help="to train, in this order; the last one also draws",
    )
    parser.add_argument("--budget-s", type=float, default=450, help="seconds for everything")
    parser.add_argument("--batch-size", type=int, default=8, help="clean samples; even")
    parser.add_argument("--repetitions", type=int, default=8, help="of each kind of step, at most")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--generation-batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--float32", action="store_true", help="weights; the default on a CPU")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    options = parser.parse_args(argv)
    if options.batch_size % COUNTED_BATCH:
        parser.error(f"--batch-size {options.batch_size} is odd; give an even number")
    if not {"sft", "unigame"} <= set(options.kinds):
        parser.error("--kinds needs sft and unigame: one is measured against the other")
    return options


class Run:
    """Figures of the parts so far, on disk after each.

    Args:
        device: where everything runs.
        options: see ``parse_arguments``.
        begun: ``time.perf_counter()`` at the start.
    """

    def __init__(self, device: torch.device, options: argparse.Namespace, begun: float) -> None:
        self.device, self.options = device, options
        self.dtype = torch.float32 if device.type == "cpu" or options.float32 else torch.bfloat16
        self.figures: dict[str, Any] = {}
        self.settings = {**describe(device), "dtype": str(self.dtype).removeprefix("torch.")}
        self.settings |= {"batch_size": options.batch_size, "budget_s": options.budget_s}
        self.deadline = begun + options.budget_s
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.perf_counter()

    def part(self, name: str, needs_s: float, work: Callable[[Callable], None]) -> None:
        """Do ``work``, which hands its figures to ``note`` bit by bit, if there is time for it."""
        figures = self.figures.setdefault(name, {})

        def note(found: dict[str, Any]) -> None:
            figures.update(found)
            self.save()

        if self.left < needs_s:
            note({"skipped": f"{self.left:.0f} s left of the budget, about {needs_s} s needed"})
            return
        begun = time.perf_counter()
        try:
            work(note)
        except torch.OutOfMemoryError:
            figures["stopped"] = "out of memory"
        except Exception as error:  # a GPU may be lent only once: the other parts still run
            traceback.print_exc()
            figures["stopped"] = f"{type(error).__name__}: {error}".splitlines()[0]
            self.failed = True
        note({"part_seconds": round(time.perf_counter() - begun, 1)})
        # Only here is the error gone, and with it the frames that hold on to tensors.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {figures['part_seconds']} s, {self.left:.0f} s left", flush=True)

    def save(self) -> None:
        """All figures so far, in the form that ``record.write`` gives at the end."""
        file = self.options.json
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            whole = {**self.figures, "settings": self.settings, **record.machine()}
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(file)


def describe(device: torch.device) -> dict[str, Any]:
    """What it runs on, in plain words."""
    if device.type == "cpu":
        return {"ran_on": "cpu: no figure here says anything of a GPU"}
    card = torch.cuda.get_device_properties(device)
    return {
        "ran_on": card.name,
        "memory_gigabytes": round(card.total_memory / 1e9, 1),
        "multiprocessors": card.multi_processor_count,
        "cuda": torch.version.cuda,
    }


# ---- the card ----------------------------------------------------------------------------------
def matmul_rates(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of square matrix products, bfloat16 on a GPU; ``tflops`` is the best of them."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    rates = {}
    for size in (4096, 8192, 16_384) if cuda else (256, 512):
        left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
        times = max(3, round(2e14 / size**3)) if cuda else 3

        def multiply(left=left, right=right, times=times) -> None:  # type: ignore[no-untyped-def]
            for _ in range(times):
                left @ right

        multiply()  # the library picks its kernel at the first
        elapsed = meters.seconds(multiply, device)
        rates[str(size)] = round(2 * size**3 * times / elapsed / 1e12, 4)
    return {"tflops": max(rates.values()), "by_size": rates, "dtype": str(dtype)[6:]}


# ---- training ----------------------------------------------------------------------------------
class Training:
    """SFT and UniGame steps of one shape.

    Args:
        run: device, options, and the card's rate.
        shape: of ``models.SHAPES``.
        checkpointing: whether activations are computed again in the backward pass.
    """

    def __init__(self, run: Run, shape: str, checkpointing: bool) -> None:
        self.run, self.shape, self.checkpointing = run, shape, checkpointing
        self.kinds: list[str] = run.options.kinds

    def measure(self, note: Callable[[dict[str, Any]], None]) -> None:
        """All figures; what fails or takes too long loses only what comes after it."""
        backbone = build(self.shape, self.run.device, self.run.dtype)
        note({"parameters": backbone.facts.num_parameters})
        with tempfile.TemporaryDirectory() as folder:
            # First, because checkpointing is not turned off again.
            small = self.bench(backbone, Path(folder), COUNTED_BATCH, checkpointing=False)
            needed = self.count(small)
            del small
            gc.collect()  # a trainer holds itself in a circle
            bench = self.bench(
                backbone, Path(folder), self.run.options.batch_size, self.checkpointing
            )
            bench.fill_buffer()
            timed = bench.measure(self.repetitions(bench))
            note(self.time_figures(timed))
            note(self.rate_figures(timed, needed))
            note(self.memory(bench))
            if self.checkpointing:
                note(self.executed(timed, self.count(bench)))
                step = partial(bench.step, "unigame")
                note({"profile": {"of": "one UniGame step", **summarise(step, self.run.device)}})

    def bench(self, backbone: Any, folder: Path, batch: int, checkpointing: bool) -> Bench:
        """A trainer of this model with a batch of its own."""
        wanted = step_arguments(["--batch-size", str(batch), "--kinds", *self.kinds])
        wanted.bf16 = self.run.dtype == torch.bfloat16
        wanted.cpu = self.run.device.type == "cpu"
        wanted.gradient_checkpointing = checkpointing
        return Bench(backbone, wanted, folder)

    def repetitions(self, bench: Bench) -> int:
        """As many as wished, or as a third of the time left allows."""
        once = sum(
            meters.seconds(lambda kind=kind: bench.step(kind), self.run.device)  # type: ignore[misc]
            for kind in self.kinds
        )
        return max(1, min(self.run.options.repetitions, int(self.run.left / 3 / once) - 2))

    def count(self, bench: Bench) -> dict[str, Any]:
        """TFLOP and tokens of each kind of step at the batch that is timed."""
        bench.fill_buffer()
        times = self.run.options.batch_size / bench.args.per_device_train_batch_size
        counted: dict[str, Any] = {}
        for kind, found in bench.count().items():
            forward = sum(tokens["forward"] for tokens in found["tokens"].values())
            counted[kind] = {
                "tflop": found["gflops_in_all"] * times / 1e3,
                "phases": {name: g * times / 1e3 for name, g in found["gflops"].items()},
                "tokens": round(forward * times),
            }
        return counted

    def time_figures(self, timed: dict[str, Any]) -> dict[str, Any]:
        """Seconds, ratios, shares of the phases, and hours of a whole run."""
        seconds, phases = timed["seconds"], timed["phases"]
        whole = seconds["unigame"]["median"]
        shares = {name: value / whole for name, value in phases.items()}
        shares["other"] = 1 - sum(shares.values())
        hours = {kind: RUN_STEPS * seconds[kind]["median"] / 3600 for kind in self.kinds}
        return {
            **{name: value for name, value in timed.items() if name.startswith("ratio")},
            "seconds": seconds,
            "phases": phases,
            "phase_shares": record.rounded(shares, 3),
            "gpu_hours": {"steps": RUN_STEPS, **record.rounded(hours, 3)},
        }

    def rate_figures(self, timed: dict[str, Any], needed: dict[str, Any]) -> dict[str, Any]:
        """Tokens and needed operations per second, and these over the card's matmul rate."""
        medians = {kind: timed["seconds"][kind]["median"] for kind in self.kinds}
        peak = self.run.figures["matmul"]["tflops"]
        achieved = {kind: needed[kind]["tflop"] / medians[kind] for kind in self.kinds}
        phases = timed["phases"]
        reached = {
            name: needed["unigame"]["phases"].get(name, 0.0) / seconds
            for name, seconds in phases.items()
            if seconds
        }
        sft = needed["sft"]["tflop"]
        return {
            "ratio_counted": round(needed["unigame"]["tflop"] / sft, 3),
            "tflop_needed": {
                kind: record.rounded(needed[kind]["phases"], 6) for kind in self.kinds
            },
            "lm_tokens_per_second": {
                kind: round(needed[kind]["tokens"] / medians[kind], 1) for kind in self.kinds
            },
            "tflops_achieved": record.rounded(achieved),
            "utilization": {
                **record.rounded({k: rate / peak for k, rate in achieved.items()}, 5),
                "phases": record.rounded({k: rate / peak for k, rate in reached.items()}, 5),
                "understand": round(reached["understand"] / peak, 5),
            },
        }

    def executed(self, timed: dict[str, Any], counted: dict[str, Any]) -> dict[str, Any]:
        """The same with what checkpointing computes twice."""
        rate = counted["unigame"]["phases"]["understand"] / timed["phases"]["understand"]
        peak = self.run.figures["matmul"]["tflops"]
        return {
            "tflop_executed": {
                kind: record.rounded(counted[kind]["phases"], 6) for kind in self.kinds
            },
            "utilization_executed": {"understand": round(rate / peak, 5)},
        }

    def memory(self, bench: Bench) -> dict[str, Any]:
        """Peaks of whole steps, with all that lives between them, and their ratio."""
        cuda = self.run.device.type == "cuda"
        model = tensor_bytes(bench.trainer.model)
        held = torch.cuda.memory_allocated() if cuda else model
        peaks = {
            kind: held + bench.peak(lambda kind=kind: bench.step(kind))  # type: ignore[misc]
            for kind in self.kinds
        }
        sizes = {"model": model, "between_steps": held, **peaks}
        return {
            "gigabytes": record.rounded({name: size / 1e9 for name, size in sizes.items()}),
            "memory_ratio": round(peaks["unigame"] / peaks["sft"], 3),
        }


# ---- drawing -----------------------------------------------------------------------------------
def draw(shape: str, batch: int, device: torch.device) -> dict[str, Any]:
    """``generation.py``'s figures, one round."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return generation.measure(build(shape, device, dtype), batch, rounds=1)


def summary(found: dict[str, Any]) -> str:
    """The figures that a page would state."""
    lines = [f"on {found['settings']['ran_on']}, matmul {found['matmul']['tflops']:.1f} TFLOP/s"]
    for name, part in found.items():
        if not isinstance(part, dict) or not {"seconds", "stopped", "skipped"} & part.keys():
            continue
        if "seconds" in part and "ratio" in part:
            text = (
                f"SFT {part['seconds']['sft']['median']:.3f} s, UniGame {part['ratio']:.2f} x, "
                f"{part['gpu_hours']['unigame']:.1f} GPU-hours"
            )
            if "utilization" in part:
                text += f", understanding at {part['utilization']['understand']:.0%} of matmul"
            if "gigabytes" in part:
                text += f", {part['gigabytes']['unigame']:.1f} GB"
        elif "speedup_vs_transformers" in part:
            text = f"{part['speedup_vs_transformers']:.2f} x transformers"
        else:
            text = ""
        ends = [part[key] for key in ("stopped", "skipped") if key in part]
        lines.append(f"{name}: {', '.join([text, *ends] if text else ends)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
