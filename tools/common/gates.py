"""The gates: what a finished model must do before it may ship, measured on fresh scenes.

The old ones (tokenizer, drawing, anchor, understanding) go through ``load_backbone``, as a user's
model would. The new ones say whether the game can win anything on the model: *drawable*, *room* and
*teachable*. Only validation splits are looked at.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.synthetic.dataset import CONDITIONS, SyntheticDataset, to_pil
from unigame.synthetic.knowledge import facts
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene, caption, random_scene

from .knowing import drawn_right
from .nano import QA, Nano
from .pictures import FAR, STYLES, pictures, styled
from .progress import Log, chance, portion, warm_cosine
from .reader import Verifier, cell_targets, load_verifier

ANCHOR = 6.0
CERTAIN = -0.7
"""A redrawing counts as verified where the truth has half of the probability in every cell."""
Bands = Mapping[str, tuple[float, float]]
BANDS: Bands = {  # name: lowest and highest value that passes, of either model
    "tokenizer": (0.99, 1.0),
    "anchor": (0.97, 1.0),
    "knowledge": (0.5, 0.95),
    "understanding": (0.78, 0.88),
    "drawable": (0.0, 0.02),
    "room": (0.05, 1.0),
    "room_conditions": (3, len(CONDITIONS)),
    "teachable": (0.8, 10.0),
    "model_megabytes": (0.0, 16.0),
}
CHANCE = {
    "count": 0.45,
    "colour": 0.2,
    "shape": 0.3,
    "existence": 0.55,
    "relation": 0.55,
    "comparison": 0.55,
}  # a little above what guessing the most frequent answer gives
Figures = dict[str, float]


# ---- the old gates: what a user's commands would see --------------------------------------------
def match(images: Tensor, scenes: list[Scene]) -> float:
    """Share of objects that are where and what they should be."""
    return object_match([read(i) for i in images.permute(0, 2, 3, 1).numpy()], map(truth, scenes))


@torch.no_grad()
def redrawing(
    backbone: Backbone, seed: int, scale: float, anchors: Mapping[str, float] | None = None
) -> tuple[Figures, list[Scene]]:
    """Object match through the image tokenizer, and of the game's drawing under anchors.

    Also the few scenes that free drawing is measured on.
    """
    rng, _ = chance(seed, 4242)
    scenes = [random_scene(rng, combinations="all") for _ in range(portion(1000, scale))]
    images = backbone.preprocess([to_pil(s) for s in scenes])
    redrawn = torch.cat([backbone.render(backbone.encode_images(x)) for x in images.split(96)])
    few = scenes[: portion(150, scale)]
    states = backbone.visual_states(images[: len(few)], [caption(s) for s in few])
    figures = {"tokenizer": match(redrawn, scenes)}
    for name, anchor in (anchors or {"anchor": ANCHOR}).items():
        anchored = backbone.draw(states.states_BNH, states.codes, anchor=anchor).images
        figures[name] = match(anchored, few)
    return figures, few


def knowing(model: Path, seed: int, scale: float, temperature: float) -> Figures:
    """Share of drawings of knowledge prompts that show exactly the object; none was taught."""
    backbone = load_backbone(model, dtype="float32").eval()
    unseen = [fact for fact in facts() if not fact.taught]
    shares = drawn_right(backbone, unseen, portion(120, scale), seed + 2, temperature)
    return {"knowledge": shares["exact"]}


@torch.no_grad()
def drawing_styles(nano: Nano, judge: Verifier, seed: int, scale: float) -> Figures:
    """Free drawings of captions that begin with a style word: share that the judge finds right."""
    figures = {}
    for style in STYLES:
        rng, _ = chance(seed, 4300)
        scenes = [styled(style, rng) for _ in range(portion(60, scale))]
        images = nano.draw([caption(s) for s in scenes], nano.temperature, seed)
        certain = judge.certainty(images, *cell_targets(scenes)) > CERTAIN
        figures[f"free_{style}"] = certain.float().mean().item()
        figures[f"free_{style}_spread"] = images.std((1, 2, 3)).mean().item()
    return figures


# ---- the new gates -------------------------------------------------------------------------------
@dataclass
class Exam:
    """Pictures of a split, the questions about each, and which condition and kind they are."""

    scenes: list[Scene]
    asked: list[list[QA]]
    condition: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    cluster: list[int] = field(default_factory=list)

    def by_condition(self, right: np.ndarray) -> Figures:
        """Share of right answers under each condition."""
        where = np.asarray(self.condition)
        return {c: float(right[where == c].mean()) for c in dict.fromkeys(self.condition)}

    def error(self, difference: np.ndarray, condition: str) -> float:
        """Standard error of a mean difference under a condition, scenes being the sample."""
        here = np.asarray(self.condition) == condition
        apart = (difference - difference[here].mean())[here]
        sums = np.bincount(np.asarray(self.cluster)[here], apart)
        return float(np.sqrt((sums**2).sum()) / here.sum())


def exam(split: str, size: int, seed: int, per_scene: int = 6) -> Exam:
    """A split of the synthetic world, questions packed by scene."""
    data = SyntheticDataset(split, size, seed, per_scene, severity=FAR)
    paper = Exam(data.scenes, [[] for _ in data.scenes])
    for scene, question, answer, kind, condition in data.rows:
        paper.asked[scene].append((question, answer))
        paper.condition.append(condition)
        paper.kind.append(kind)
        paper.cluster.append(scene)
    return paper


def megabytes(folder: Path) -> float:
    """Size of all files in a folder, in MiB."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


def sit(nano: Nano, paper: Exam, features: Tensor) -> np.ndarray:
    """1 for each question answered exactly, in order."""
    nano.model.eval()
    return np.asarray(nano.right(features, paper.asked), float)


def understanding(nano: Nano, seed: int, scale: float) -> Figures:
    """Share of right one-word answers by kind, and their mean."""
    paper = exam("validation", max(60, portion(1800, scale)), seed)
    right = sit(nano, paper, nano.see(pictures(paper.scenes)))
    kinds = np.asarray(paper.kind)
    by_kind = {k: float(right[kinds == k].mean()) for k in dict.fromkeys(paper.kind)}
    return {"understanding": float(np.mean(list(by_kind.values()))), **by_kind}


def drawable(nano: Nano, judge: Verifier, seed: int, scale: float) -> Figures:
    """U on redrawn against U on real pictures, per condition; the worst gap is the gate."""
    paper = exam("ood_validation", max(144, portion(14_400, scale)), seed, per_scene=12)
    true = pictures(paper.scenes)
    again = nano.redraw(true)
    before, after = (sit(nano, paper, nano.see(images)) for images in (true, again))
    real, redrawn = paper.by_condition(before), paper.by_condition(after)
    figures = {f"real_{k}": v for k, v in real.items()}
    figures |= {f"redrawn_{k}": v for k, v in redrawn.items()}
    figures |= {f"error_{c}": paper.error(after - before, c) for c in CONDITIONS}
    styles = np.asarray([paper.condition[paper.cluster.index(i)] for i in range(len(true))])
    for name, images in (("real", true), ("redrawn", again)):
        sure = (judge.certainty(images, *cell_targets(paper.scenes)) > CERTAIN).float().numpy()
        figures |= {f"verified_{name}_{c}": float(sure[styles == c].mean()) for c in CONDITIONS}
    figures["ood"] = float(np.mean(list(real.values())))
    return {"drawable": max(abs(real[c] - redrawn[c]) for c in CONDITIONS), **figures}


class Lora(nn.Module):
    """LoRA on the language model, in place; ``reset`` starts it anew."""

    def __init__(self, nano: Nano) -> None:
        super().__init__()
        nano.model.requires_grad_(False)
        self.wrapped = peft.get_peft_model(nano.model, nano.lora())
        self.weights = [p for p in nano.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.weights]

    def reset(self) -> None:
        """Back to the base model."""
        with torch.no_grad():
            for weight, start in zip(self.weights, self.start, strict=True):
                weight.copy_(start)


def study(
    nano: Nano, lora: Lora, asked: list[list[QA]], features: Tensor, steps: int, seed: int
) -> None:
    """LoRA steps on 8 pictures x 4 questions, lr 1e-3, the protocol of every arm."""
    torch.manual_seed(seed)
    lora.reset()
    nano.model.train()
    optimizer = torch.optim.AdamW(lora.weights, lr=1e-3, weight_decay=0.0)
    usable = np.asarray([i for i, qas in enumerate(asked) if len(qas) >= 4])
    if not len(usable):
        return  # nothing was verified: nothing is learned
    for step in range(steps):
        rng, _ = chance(seed + 50, step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warm_cosine(step, steps, 10)
        chosen = usable[rng.integers(len(usable), size=8)]
        some = [[asked[i][j] for j in rng.permutation(len(asked[i]))[:4]] for i in chosen]
        logits, targets, _ = nano.answer_logits(features[torch.from_numpy(chosen)], some)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lora.weights, 1.0)
        optimizer.step()


def room_and_teachable(
    nano: Nano, judge: Verifier, seed: int, scale: float, log: Log, seeds: int = 2
) -> Figures:
    """What real augmentation gains over SFT, and how much of it redrawn, verified pictures keep."""
    ood = exam("ood_validation", max(144, portion(4320, scale)), seed + 1, per_scene=12)
    inside = exam("validation", max(60, portion(720, scale)), seed + 1)
    seen = {id(p): nano.see(pictures(p.scenes)) for p in (ood, inside)}
    steps, size = portion(150, scale), max(72, portion(3600, scale))
    lora = Lora(nano)
    gains: dict[str, list[np.ndarray]] = defaultdict(list)
    for trial in range(seeds):
        plain, broad = exam("train", size, seed + trial), exam("augmented", size, seed + trial)
        true = pictures(broad.scenes)
        again = nano.redraw(true)
        kept = (judge.certainty(again, *cell_targets(broad.scenes)) > CERTAIN).tolist()
        verified = [qas if ok else [] for qas, ok in zip(broad.asked, kept, strict=True)]
        arms = {
            "sft": (plain.asked, nano.see(pictures(plain.scenes))),
            "real": (broad.asked, nano.see(true)),
            "redrawn": (verified, nano.see(again)),
        }
        sft: Figures = {}
        for name, (asked, features) in arms.items():
            study(nano, lora, asked, features, steps, seed + trial)
            scores = ood.by_condition(sit(nano, ood, seen[id(ood)]))
            scores["id"] = float(sit(nano, inside, seen[id(inside)]).mean())
            log(arm=name, trial=trial, kept=float(np.mean(kept)), **scores)
            sft = scores if name == "sft" else sft
            gains[name].append(np.asarray([scores[c] - sft[c] for c in (*CONDITIONS, "id")]))
    real, redrawn = (np.mean(gains[name], 0) for name in ("real", "redrawn"))
    names = (*CONDITIONS, "id")
    figures = {f"real_gain_{c}": float(v) for c, v in zip(names, real, strict=True)}
    figures |= {f"redrawn_gain_{c}": float(v) for c, v in zip(names, redrawn, strict=True)}
    room = float(real[:-1].mean())
    return {
        "room": room,
        "room_conditions": int((real[:-1] >= 0.03).sum()),
        "teachable": float(redrawn[:-1].mean()) / room if room > 0 else 0.0,
        **figures,
    }


Measure = Callable[[Path, int, float, Log], Figures]


def measures(load: Callable[[Path], Nano]) -> dict[str, Measure]:
    """What is measured alike of both models; ``load`` reads the finished model of a folder."""
    return {
        "understanding": lambda folder, seed, scale, _: understanding(load(folder), seed, scale),
        "drawable": lambda folder, seed, scale, _: drawable(
            load(folder), load_verifier(folder), seed, scale
        ),
        "room": lambda folder, seed, scale, log: room_and_teachable(
            load(folder), load_verifier(folder), seed, scale, log
        ),
        "styles": lambda folder, seed, scale, _: drawing_styles(
            load(folder), load_verifier(folder), seed, scale
        ),
    }


def check(
    folder: Path,
    measured: Mapping[str, Measure],
    bands: Bands,
    seed: int = 0,
    scale: float = 1.0,
    names: Sequence[str] = (),
) -> bool:
    """Measure gates, keep the figures in ``gates.json``, and say whether all kept ones pass.

    What is not among ``names`` (none: all) stays in the file as it was measured before.
    """
    torch.set_grad_enabled(True)
    log, path = Log(folder, "gates"), folder / "gates.json"
    record: dict[str, Any] = json.loads(path.read_text())["gates"] if path.exists() else {}
    for name in names or measured:
        figures = measured[name](folder, seed, scale, log)
        verdicts = {k: lo <= figures[k] <= hi for k, (lo, hi) in bands.items() if k in figures}
        verdicts |= {k: figures[k] > floor for k, floor in CHANCE.items() if k in figures}
        failed = [k for k, ok in verdicts.items() if not ok]
        record[name] = {"figures": figures, "failed": failed, "seed": seed, "scale": scale}
        log(**figures, failed=", ".join(failed) or "none")
        path.write_text(json.dumps({"bands": bands, "gates": record}, indent=1))
    return set(record) == set(measured) and not any(r["failed"] for r in record.values())
