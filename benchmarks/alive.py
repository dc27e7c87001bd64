"""Is the game alive on a family? C must raise U's loss, and U must lower it again.

A tiny model of the family is trained on the synthetic world (see ``alive_models.py``), and then

    attack    C trains, U is frozen: the adversarial CE should rise
    defence   U trains on clean and hard pictures, C is frozen: it should fall again
    game      both train, as in a real run; shown, not judged

Every few steps the current C attacks the same held-out scenes and the current U reads them; that
CE is the curve. The run passes if the attack raised it by at least ``RISE`` of a nat and the
defence took back at least half of that.

    OMP_NUM_THREADS=1 python benchmarks/alive.py --family composed_sd
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alive_models import MODELS, ROOT, Family, Play, World, make_world

from unigame.backbones.base import Backbone
from unigame.methods.selfplay import (
    FeatureSimilarity,
    HardSampleBuffer,
    Perturber,
    Rows,
    SelfPlaySettings,
    challenge,
    mine,
    perturber_step,
    stack_compact,
    understanding_loss,
)

RISE = 0.1
BATCH, HARD, EVERY = 16, 8, 5


def main() -> int:
    """Train, play, write the JSON and the picture; 0 if the game is alive."""
    args = parse_arguments()
    family = MODELS[args.family]
    torch.manual_seed(args.seed)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        backbone = family.build(Path(folder))
        trained = prepare(backbone, family, args)
        record = play(backbone, family.play, args)
    record = {
        "family": args.family,
        **record,
        "seconds": {"training": trained, "all": time.perf_counter() - begun},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "parameters": backbone.facts.num_parameters,
        "command": shlex.join(["python", "benchmarks/alive.py", *sys.argv[1:]]),
    }
    write(record, args)
    print(verdict(record))
    return 0 if record["alive"] else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", required=True, choices=sorted(MODELS))
    parser.add_argument("--attack-steps", type=int, default=60)
    parser.add_argument("--defence-steps", type=int, default=100)
    parser.add_argument("--game-steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=64, help="scenes of the curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="trained weights: read, or written if missing")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/DATE-alive-FAMILY")
    parser.add_argument("--image", type=Path, help="default: docs/backbones/images/FAMILY.png")
    return parser.parse_args()


def prepare(backbone: Backbone, family: Family, args: argparse.Namespace) -> float:
    """Train the tiny model, or read its weights; the seconds it took."""
    begun = time.perf_counter()
    if family.train is None:
        return 0.0
    if args.weights and args.weights.is_file():
        state = torch.load(args.weights, weights_only=True)
        backbone.load_state_dict(state["model"])
        for name, value in state["scales"].items():
            backbone.branch.__setattr__(name, value)
        return float(state["seconds"])
    family.train(backbone, make_world(backbone, family.play, 2000, seed=1))
    seconds = time.perf_counter() - begun
    if args.weights:
        scales = {"scale": backbone.branch.scale} if hasattr(backbone, "branch") else {}
        state = {"model": backbone.state_dict(), "scales": scales, "seconds": seconds}
        torch.save(state, args.weights)
    return seconds


def play(backbone: Backbone, settings: Play, args: argparse.Namespace) -> dict[str, Any]:
    """All phases; the curve and what it says."""
    held_out = make_world(backbone, settings, args.held_out, seed=args.seed + 100)
    world = make_world(backbone, settings, 1000, seed=args.seed + 200)
    right = [
        answer == truth
        for answer, truth in zip(
            backbone.answer(held_out.images, held_out.questions, max_new_tokens=4),
            held_out.answers,
            strict=True,
        )
    ]
    backbone.add_lora().eval()
    game = Game(backbone, settings, args.seed)
    attack_ends, defence_ends = args.attack_steps, args.attack_steps + args.defence_steps
    end = defence_ends + args.game_steps
    curve = []
    for step in range(end + 1):
        if step % EVERY == 0:
            curve.append({"step": step, **game.measure(held_out)})
            print(f"  {curve[-1]}", flush=True)
        if step < end:
            game.step(
                world,
                step,
                c_learns=step < attack_ends or step >= defence_ends,
                u_learns=step >= attack_ends,
            )
    start = curve[0]["adversarial_ce"]
    peak = _mean(curve, attack_ends - 2 * EVERY, attack_ends)
    defended = _mean(curve, defence_ends - 2 * EVERY, defence_ends)
    return {
        "accuracy_before": float(np.mean(right)),
        "start": start,
        "after_attack": peak,
        "after_defence": defended,
        "after_game": _mean(curve, end - 2 * EVERY, end),
        "alive": peak - start >= RISE and peak - defended >= 0.5 * (peak - start),
        "attack_ends": attack_ends,
        "defence_ends": defence_ends,
        "settings": vars(settings),
        "curve": curve,
    }


def _mean(curve: list[dict[str, float]], first: int, last: int) -> float:
    """Mean adversarial CE over the points from step ``first`` to ``last``."""
    return float(np.mean([p["adversarial_ce"] for p in curve if first <= p["step"] <= last]))


class Game:
    """The plain loop of ``examples/plain_loop.py``, in which either player may rest."""

    def __init__(self, backbone: Backbone, settings: Play, seed: int) -> None:
        self.backbone = backbone
        self.config = SelfPlaySettings(
            anchor=settings.anchor,
            label_weight=settings.label_weight,
            clip_floor=0.0,
            hard_quantile=0.5,
        )
        self.perturber = Perturber(
            backbone.facts.hidden_size,
            eps_max=settings.eps_max,
            eps_init=settings.eps_init,
            eps_mode="relative",
        )
        self.player_c = torch.optim.AdamW(
            self.perturber.parameters(), lr=settings.perturber_learning_rate
        )
        self.player_u = torch.optim.AdamW(
            backbone.trainable_parameters(), lr=settings.learning_rate
        )
        self.buffer = HardSampleBuffer(capacity=200, seed=seed, per_source=2)
        self.similarity = FeatureSimilarity(backbone.image_features)
        self.rng = np.random.default_rng(seed)

    def step(self, world: World, step: int, *, c_learns: bool, u_learns: bool) -> None:
        """C attacks, and ascends if it learns; the buffer is fed; U descends if it learns."""
        rows = world.batch(BATCH, self.rng)
        batch = Rows(rows.images, rows.questions, rows.answers, rows.captions)
        result = challenge(
            self.backbone,
            self.perturber,
            batch,
            self.config,
            self.similarity,
            with_grad=c_learns,
        )
        if c_learns:
            perturber_step(result, self.perturber, self.player_c)
        mine(result, batch, self.buffer, self.config, step)
        if not u_learns:
            return
        hard = self.buffer.sample(HARD)
        images = torch.cat([rows.images, self.backbone.render(stack_compact(hard))])
        questions = rows.questions + [sample.question for sample in hard]
        answers = rows.answers + [sample.answer for sample in hard]
        self.backbone.train()
        loss_B = self.backbone.answer_loss(images, questions, answers)
        loss = understanding_loss(loss_B, torch.arange(len(loss_B)) >= BATCH, beta=0.5)
        self.player_u.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.backbone.trainable_parameters(), 1.0)
        self.player_u.step()
        self.backbone.eval()

    @torch.no_grad()
    def measure(self, held_out: World) -> dict[str, float]:
        """CE of the true answers on clean held-out scenes, and on the pictures C makes of them."""
        batch = Rows(held_out.images, held_out.questions, held_out.answers, held_out.captions)
        result = challenge(
            self.backbone, self.perturber, batch, self.config, self.similarity, with_grad=False
        )
        clean_B = self.backbone.answer_loss(held_out.images, held_out.questions, held_out.answers)
        return {
            "clean_ce": round(float(clean_B.mean()), 4),
            "adversarial_ce": round(float(result.ce_BK.mean()), 4),
            "similarity": round(float(result.similarity_BK.mean()), 4),
        }


def write(record: dict[str, Any], args: argparse.Namespace) -> None:
    """The JSON file and the picture of the curve."""
    day = time.strftime("%Y-%m-%d")
    place = args.json or ROOT / "benchmarks/results" / f"{day}-alive-{args.family}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record, indent=1) + "\n")
    draw_curve(record, args.image or ROOT / "docs/backbones/images" / f"{args.family}.png")


def draw_curve(record: dict[str, Any], place: Path) -> None:
    """Clean and adversarial CE over steps, and where U begins to learn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    steps = [point["step"] for point in record["curve"]]
    for name, label, colour in (
        ("adversarial_ce", "drawn by C", "#c0392b"),
        ("clean_ce", "clean", "#2c6fbb"),
    ):
        axes.plot(steps, [p[name] for p in record["curve"]], label=label, color=colour)
    top = axes.get_ylim()[1]
    phases = (
        (0, "C learns"),
        (record["attack_ends"], "U learns"),
        (record["defence_ends"], "both"),
    )
    for begins, text in phases:
        axes.axvline(begins, color="#888888", linestyle="--", linewidth=1)
        axes.text(begins, top, f" {text}", va="top", color="#555555")
    axes.set(xlabel="step", ylabel="CE of the true answer, held out")
    axes.set_title(record["family"], loc="left")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120)


def verdict(record: dict[str, Any]) -> str:
    """One line."""
    word = "alive" if record["alive"] else "NOT alive"
    return (
        f"{record['family']}: {word}; clean accuracy {record['accuracy_before']:.2f}, adversarial "
        f"CE {record['start']:.3f} at first, {record['after_attack']:.3f} after the attack, "
        f"{record['after_defence']:.3f} after the defence "
        f"({record['seconds']['all']:.0f} s on {os.cpu_count()} cores)"
    )


if __name__ == "__main__":
    sys.exit(main())
