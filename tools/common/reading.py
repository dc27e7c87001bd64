"""The narrow part of the language stage: answers on clean scenes of seen combinations."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unigame.backbones.base import CAPTION_QUESTION
from unigame.synthetic.questions import KINDS, ask
from unigame.synthetic.reader import exact_match, object_match, read, truth
from unigame.synthetic.world import Scene, caption, random_scene

from .nano import QA, Nano
from .pictures import FAR, STYLES, pictures, styled
from .progress import Log, portion

ASKED = (  # questions asked of every scene at every step; the hard kinds more often
    *("existence", "existence", "existence", "relation", "relation", "relation", "comparison"),
    *("comparison", "count", "colour", "shape", "position", "position"),
)


def questions(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """The questions of one scene in one step, its caption among them; a fixed number."""
    asked = [ask(scene, kind, rng) or ask(scene, "existence", rng) for kind in ASKED]
    return [qa for qa in asked if qa is not None] + [(CAPTION_QUESTION, caption(scene))]


class Answering:
    """Scenes, their features, and the loss of answering about them."""

    def __init__(self, nano: Nano, seed: int, scale: float) -> None:
        rng = np.random.default_rng([seed, 20])
        self.nano = nano
        self.scenes = [random_scene(rng) for _ in range(portion(3500, scale))]
        self.features = nano.see(pictures(self.scenes))

    def loss(self, batch: int, rng: np.random.Generator) -> Tensor:
        """CE over the answers of 13 questions and a caption for each of a batch of scenes."""
        chosen = rng.integers(len(self.scenes), size=batch)
        asked = [questions(self.scenes[i], rng) for i in chosen]
        logits, targets, _ = self.nano.answer_logits(self.features[torch.from_numpy(chosen)], asked)
        return F.cross_entropy(logits, targets)


def understanding(nano: Nano, scenes: list[Scene], seed: int) -> dict[str, float]:
    """Share of questions of each kind answered exactly right, and their mean."""
    rng = np.random.default_rng(seed)
    asked, kinds = [], []
    for scene in scenes:
        found = [(k, qa) for k in KINDS if (qa := ask(scene, k, rng)) is not None]
        asked.append([qa for _, qa in found])
        kinds += [k for k, _ in found]
    right = np.asarray(nano.right(nano.see(pictures(scenes)), asked))
    scores = {k: float(right[np.asarray(kinds) == k].mean()) for k in KINDS}
    return {"mean": float(np.mean(list(scores.values()))), **scores}


def drawn(
    nano: Nano, count: int, seed: int, style: str = "clean", temperature: float = 0.0
) -> dict[str, float]:
    """Objects, whole pictures and places of free-running pictures of captions in one style.

    ``drawn_places``: cells with the right or a wrong object, as a share of those that have one in
    the drawing or in the caption.
    """
    rng = np.random.default_rng([seed, 5])
    scenes = [styled(style, rng) for _ in range(count)]
    images = nano.draw([caption(s) for s in scenes], temperature, seed)
    found = [read(i) for i in images.permute(0, 2, 3, 1).numpy()]
    wanted = [truth(s) for s in scenes]
    return {
        "drawn": object_match(found, wanted),
        "drawn_exact": exact_match(found, wanted),
        "drawn_places": _agreement(
            [({t[0] for t in f}, {t[0] for t in w}) for f, w in zip(found, wanted, strict=True)]
        ),
    }


def _agreement(pairs: list[tuple[set[str], set[str]]]) -> float:
    """Mean share of what two sets have in common of what either has."""
    return float(np.mean([len(a & b) / max(len(a | b), 1) for a, b in pairs]))


def evaluate(nano: Nano, seed: int, log: Log, step: int, draws: bool, scale: float = 1.0) -> None:
    """Log answers on clean scenes and, as a mean, on each style; and drawings without chance."""
    nano.model.eval()
    rng = np.random.default_rng([seed, 77])
    clean = [random_scene(rng) for _ in range(max(12, portion(150, scale)))]
    styles = {
        s: understanding(
            nano, [styled(s, rng, FAR) for _ in range(max(12, portion(40, scale)))], 7
        )["mean"]
        for s in STYLES[1:]
    }
    shown = drawn(nano, portion(40, scale), seed) if draws else {}
    log(step=step, **understanding(nano, clean, 6), **styles, **shown)
    nano.model.train()
