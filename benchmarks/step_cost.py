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
    RecA            B          B      the clean batch
                  0.5 B      0.5 B    rows of two pictures, one read and one drawn

That is 6 against 2 if the whole batch is challenged, and 4.5 against 2 at ``challenge_share`` 0.5,
the recipes' setting: as many candidates are drawn as the mixed batch has hard samples. Each further
candidate adds a forward pass of what is challenged. The rest is pictures: the image tokenizer
encodes them, the decoder draws the candidates, the vision encoder reads them.

The keys: ``ratio`` (K = 1, the recipes' share), ``ratio_full_share``, ``ratio_k4``, ``ratio_reca``;
``memory_ratio`` (peaks, the model included), ``memory_ratio_above_model`` (without it); ``phases``
in seconds; ``counted`` (operations and tokens by phase, and the ratios by operations alone).

``--methods verify imagine`` adds what these cost beside an SFT step, ``ratio_verify`` and
``ratio_imagine``: at their defaults, on captions of the synthetic world, the steps between two
rounds and the one with a round weighed as they occur.

Usage:
    python benchmarks/step_cost.py --json FILE [--model NAME]

NAME: janus-nano, bagel-nano, janus_pro_small, bagel_small, tiny, bagel_tiny, a folder or a Hub id.
``bagel_small`` has BAGEL-7B-MoT's proportions; its latents are encoded at every step, since
``--cache-codes`` keeps codes alone.

The kinds of step alternate in one run and medians are compared, so that a machine that slows down
slows all. An optimizer step of U is part of each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import meters
import numpy as np
import record
import torch
from models import build_any
from PIL import Image

from unigame.backbones.base import Backbone
from unigame.doctor.peak import peak_bytes, tensor_bytes
from unigame.methods.drawings.method import DrawingMethod
from unigame.methods.reca import RecA
from unigame.methods.registry import build_methods
from unigame.methods.selfplay import SelfPlay
from unigame.synthetic.world import caption, random_scene
from unigame.training import UniGameConfig, UniGameTrainer
from unigame.training.metrics import PHASES as OF_TRAINER

PHASES = (*OF_TRAINER[:2], *SelfPlay.phases, *OF_TRAINER[2:])
QUESTION, ANSWER = "what colour is the circle", "red"
# kind of step -> its method, and what is changed of its settings
KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "sft": (None, {}),
    "unigame": ("selfplay", {}),
    "full_share": ("selfplay", {"challenge_share": 1.0}),
    "k4": ("selfplay", {"num_candidates": 4}),
    "reca": ("reca", {}),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    options = parse_arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    backbone = build_any(options.model, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(backbone, options, Path(folder))
        bench.fill_buffer()
        figures = bench.measure(options.repetitions)
        figures |= {"counted": bench.count(), **bench.memory(), **bench.teach(options.repetitions)}
    found = record.write(figures, describe(backbone, options), options.json)
    ratios = [f"ratio_{name}" for name in options.methods]
    for kind in ("ratio", "ratio_full_share", "ratio_k4", "ratio_reca", "memory_ratio", *ratios):
        if kind in found:
            print(f"{kind:18} {found[kind]:.2f}")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus-nano", help="a checkpoint, or a random shape")
    parser.add_argument("--batch-size", type=int, default=16, help="clean samples")
    parser.add_argument("--repetitions", type=int, default=15, help="of each kind of step")
    parser.add_argument("--challenge-share", type=float, default=0.5, help="of the batch")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument(
        "--methods", nargs="+", default=[], choices=("verify", "imagine"), help="measure them, too"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 weights and autocast")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--challenge-micro-batch", type=int)
    parser.add_argument("--cache-codes", action="store_true", help="as from the second epoch on")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    return parser.parse_args(argv)


class Bench:
    """One trainer whose steps are run one by one, without its loop.

    Args:
        backbone: the model.
        options: batch size and settings; see ``parse_arguments``.
        folder: for what a trainer wants to write.
    """

    def __init__(self, backbone: Backbone, options: argparse.Namespace, folder: Path) -> None:
        self.args = UniGameConfig(
            output_dir=str(folder),
            per_device_train_batch_size=options.batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
            cache_codes=options.cache_codes,
            max_steps=1000,
            bf16=options.bf16,
            use_cpu=options.cpu,
            disable_tqdm=True,
        )
        if options.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        data = pictures(options.batch_size, backbone.facts.image_size)
        self.game = SelfPlay(
            challenge_share=options.challenge_share,
            challenge_micro_batch=options.challenge_micro_batch,
            eps_mode="relative",
            eps_max=0.6,
            eps_init=0.3,
            anchor=6.0,
            clip_floor=-1.0,  # every candidate passes, so that every step has its hard samples
            hard_quantile=0.0,
            buffer_min_size=1,
            missing_captions="question",  # a description is made once, and is no part of a step
            drop_learned=False,  # the one batch is soon learned, and its cost is what is asked for
            redrawn_every=0,  # by default one challenge in ten costs a quarter more
        )
        self.methods = {"selfplay": self.game, "reca": RecA()}
        self.teachers = teachers(options.methods, folder)
        self.trainer = UniGameTrainer(
            model=backbone,
            args=self.args,
            train_dataset=data,
            methods=[*self.methods.values(), *self.teachers],
        )
        self.trainer.methods = [self.game]
        self.trainer.create_optimizer_and_scheduler(num_training_steps=self.args.max_steps)
        self.batch = self.trainer.data_collator(data)
        self.kinds = options.kinds
        self.device = self.args.device

    def step(self, kind: str) -> None:
        """What the Trainer's loop does for one step without accumulation."""
        trainer = self.trainer
        with self.playing(kind):
            _, counts = trainer.get_batch_samples(iter([self.batch]), 1, self.device)
            trainer.training_step(trainer.model, self.batch, counts)
            parameters = trainer.backbone.trainable_parameters()
            torch.nn.utils.clip_grad_norm_(parameters, trainer.args.max_grad_norm)
            assert trainer.optimizer is not None
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    @contextmanager
    def playing(self, kind: str) -> Any:
        """The trainer set up for one kind of step."""
        name, changes = KINDS.get(kind, (None, {}))
        before = self.game.settings
        listed = [] if name is None else [self.methods[name]]
        self.trainer.methods = [t for t in self.teachers if t.name == kind] or listed
        self.game.play_by(replace(before, **changes))
        try:
            yield
        finally:
            self.trainer.methods = [self.game]
            self.game.play_by(before)

    def fill_buffer(self, most: int = 20) -> None:
        """Play until a mixed batch gets all of its hard samples.

        Raises:
            RuntimeError: the buffer stays too small, so no step would cost what a step costs.
        """
        wanted = self.game.settings.hard_rows(self.args.per_device_train_batch_size)
        for _ in range(most):
            self.step("unigame")
            if len(self.game.buffer) >= wanted:
                return
        raise RuntimeError(f"{len(self.game.buffer)} of {wanted} hard samples, {most} steps")

    def measure(self, repetitions: int) -> dict[str, Any]:
        """Medians of alternating steps on one batch, after a warm-up of two each."""
        seconds: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        phases: dict[str, list[float]] = {name: [] for name in PHASES}
        trainer = self.trainer
        for repetition in range(-2, repetitions):
            for kind in self.kinds:
                elapsed = meters.seconds(lambda kind=kind: self.step(kind), self.device)  # type: ignore[misc]
                trainer.timer.flush(trainer.meter)
                figures = trainer.meter.flush(lambda pairs: pairs)
                if repetition < 0:
                    continue
                seconds[kind].append(elapsed)
                if kind == "unigame":
                    assert "acceptance_rate" in figures and "hard_ce" in figures
                    for name in PHASES:
                        phases[name].append(figures[f"seconds_{name}"])
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        ratios = {kind: value / medians["sft"] for kind, value in medians.items() if kind != "sft"}
        named = {"unigame": "ratio"}
        return {
            **record.rounded({named.get(k, f"ratio_{k}"): v for k, v in ratios.items()}, 3),
            "phases": record.rounded(
                {name: statistics.median(values) for name, values in phases.items() if values}
            ),
            "seconds": {
                kind: record.rounded(
                    {"median": medians[kind], "fastest": min(values), "slowest": max(values)}
                )
                for kind, values in seconds.items()
            },
        }

    def teach(self, repetitions: int) -> dict[str, Any]:
        """What a step of each method of verified drawings costs, its share of a round included."""
        found: dict[str, Any] = {}
        for teacher in self.teachers:
            self._fill(teacher)
            kinds = ("sft", "between", "round")
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for repetition in range(-1, repetitions):
                for kind in kinds:
                    teacher.last_round = -1 if kind == "round" else 0  # of step 0, which all are
                    name = "sft" if kind == "sft" else teacher.name
                    elapsed = meters.seconds(lambda name=name: self.step(name), self.device)  # type: ignore[misc]
                    if repetition >= 0:
                        seconds[kind].append(elapsed)
            medians = {kind: statistics.median(values) for kind, values in seconds.items()}
            every = teacher.settings.every
            amortised = ((every - 1) * medians["between"] + medians["round"]) / every
            found |= record.rounded({f"ratio_{teacher.name}": amortised / medians["sft"]}, 3)
            found[f"seconds_{teacher.name}"] = record.rounded(medians)
        return found

    def _fill(self, teacher: DrawingMethod) -> None:
        """Put drawings into the store, whatever U says of them."""
        check = teacher.verifier
        teacher.verifier = replace(check, who="none")
        self.step(teacher.name)
        teacher.verifier = check

    def count(self) -> dict[str, Any]:
        """Operations and tokens of each kind of step, by phase."""
        trainer, timer = self.trainer, self.trainer.timer
        found: dict[str, Any] = {}
        for kind in self.kinds:
            counter = meters.Counter(trainer.backbone.language_model)
            trainer.timer = counter  # type: ignore[assignment]
            with counter.counting():
                self.step(kind)
            found[kind] = {
                "gflops": record.rounded({k: v / 1e9 for k, v in counter.flops.items()}, 3),
                "gflops_in_all": round(sum(counter.flops.values()) / 1e9, 3),
                "tokens": counter.tokens,
            }
        trainer.timer = timer
        plain = found["sft"]["gflops_in_all"]
        for kind in self.kinds:
            found[kind]["ratio"] = round(found[kind]["gflops_in_all"] / plain, 3)
        return found

    def memory(self) -> dict[str, Any]:
        """Peaks of each kind of step, and the two ratios."""
        model = tensor_bytes(self.trainer.model)
        peaks = {kind: self.peak(lambda kind=kind: self.step(kind)) for kind in self.kinds}  # type: ignore[misc]
        figures: dict[str, Any] = {
            "megabytes": {"model": round(model / 1e6, 1)}
            | {kind: round(peak / 1e6, 1) for kind, peak in peaks.items()}
        }
        if "unigame" in peaks:
            above = peaks["unigame"] / peaks["sft"]
            whole = (model + peaks["unigame"]) / (model + peaks["sft"])
            figures |= record.rounded({"memory_ratio": whole, "memory_ratio_above_model": above}, 3)
        return figures

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes above what lives between steps."""
        return peak_bytes(work, self.device)


def teachers(names: list[str], folder: Path) -> list[DrawingMethod]:
    """Methods of verified drawings, at their defaults."""
    rng = np.random.default_rng(0)
    texts = folder / "captions.txt"
    texts.write_text("\n".join(caption(random_scene(rng)) for _ in range(200)), encoding="utf-8")
    return build_methods({name: {"texts": str(texts)} for name in names})  # type: ignore[return-value]


def pictures(size: int, side: int) -> list[dict[str, Any]]:
    """Random pictures of the model's own size: the cost of a step does not hang on the content."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (size, side, side, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(p), "question": QUESTION, "answer": ANSWER, "id": str(i)}
        for i, p in enumerate(pixels)
    ]


def describe(backbone: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured."""
    facts = backbone.facts
    return {
        "model": options.model,
        "parameters": facts.num_parameters,
        "image_size": facts.image_size,
        "image_tokens": facts.num_image_tokens,
        "batch_size": options.batch_size,
        "hard_batch_size": max(1, options.batch_size // 2),
        "challenge_share": options.challenge_share,
        "challenge_micro_batch": options.challenge_micro_batch,
        "cache_codes": options.cache_codes,
        "dtype": str(facts.dtype).removeprefix("torch."),
        "gradient_checkpointing": options.gradient_checkpointing,
        "repetitions": options.repetitions,
    }


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
