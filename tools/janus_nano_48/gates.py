"""Stage 5: what the finished model must do before it may ship, measured on fresh scenes.

The fifth gate, room for improvement, needs training and so lives in ``benchmarks/ceiling.py``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.janus.model import JanusBackbone
from unigame.synthetic.dataset import SyntheticDataset, to_pil
from unigame.synthetic.knowledge import facts
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import Scene, caption, random_scene

from .common import Log, portion
from .knowledge import drawn_right

ANCHOR = 6.0
BANDS = {  # name: lowest and highest value that passes
    "tokenizer": (0.99, 1.0),
    "drawing": (0.75, 0.92),
    "anchor": (0.97, 1.0),
    "understanding": (0.78, 0.88),
    "knowledge": (0.5, 0.95),
}
CHANCE = {
    "count": 0.45,
    "colour": 0.2,
    "shape": 0.3,
    "existence": 0.55,
    "relation": 0.55,
    "comparison": 0.55,
}  # a little above what guessing the most frequent answer gives


def fresh(count: int, seed: int) -> list[Scene]:
    """Clean scenes of all combinations that no stage has seen."""
    rng = np.random.default_rng([seed, 4242])
    return [random_scene(rng, combinations="all") for _ in range(count)]


def _match(images: torch.Tensor, scenes: list[Scene]) -> float:
    return object_match([read(i) for i in images.permute(0, 2, 3, 1).numpy()], map(truth, scenes))


def _pixels(backbone: Backbone, scenes: list[Scene]) -> torch.Tensor:
    return backbone.preprocess([to_pil(s) for s in scenes])


@torch.no_grad()
def tokenizer(backbone: Backbone, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Object match through encode -> decode."""
    count = portion(2000, scale)
    scenes = fresh(count, seed)
    drawn = [
        backbone.render(backbone.encode_images(_pixels(backbone, scenes[i : i + 100])))
        for i in range(0, count, 100)
    ]
    return {"tokenizer": _match(torch.cat(drawn), scenes)}


@torch.no_grad()
def drawing(backbone: Backbone, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Caption -> image, sampled and greedy; variety of 40 pictures of one caption; the anchor."""
    scenes = fresh(portion(200, scale), seed + 1)
    captions = [caption(s) for s in scenes]
    sampled = backbone.generate(captions, seed=seed, guidance_scale=1.0, temperature=0.7)
    greedy = backbone.generate(captions, seed=seed, guidance_scale=1.0, do_sample=False)
    same = backbone.generate([captions[0]] * 40, seed=seed, guidance_scale=1.0, temperature=0.7)
    codes = backbone.encode_images(same)
    images = _pixels(backbone, scenes)
    states = backbone.visual_states(images, captions)
    anchored = backbone.draw(states.states_BNH, states.codes, anchor=ANCHOR).images
    return {
        "drawing": _match(sampled, scenes),
        "drawing_greedy": _match(greedy, scenes),
        "distinct_of_40": len(torch.unique(codes, dim=0)),
        "codes_used": len(torch.unique(backbone.encode_images(sampled))),
        "anchor": _match(anchored, scenes),
    }


@torch.no_grad()
def understanding(backbone: Backbone, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Share of right one-word answers by kind, their mean, and the same out of distribution."""
    figures: dict[str, float] = {}
    count = max(60, portion(1800, scale))
    for split in ("validation", "ood_validation"):
        data = SyntheticDataset(split, count, seed)
        images, right = _pixels(backbone, data.scenes), defaultdict(list)
        for start in range(0, count, 120):
            rows = data.rows[start : start + 120]
            said = backbone.answer(
                images[[r[0] for r in rows]], [r[1] for r in rows], max_new_tokens=3
            )
            for (_, _, answer, kind, condition), word in zip(rows, said, strict=True):
                right[kind if split == "validation" else condition].append(word.strip() == answer)
        means = {name: float(np.mean(v)) for name, v in right.items()}
        name = "understanding" if split == "validation" else "ood"
        figures[name] = float(np.mean(list(means.values())))
        prefix = "" if split == "validation" else "ood_"
        figures |= {f"{prefix}{k}": v for k, v in means.items()}
    return figures


def knowing(backbone: Backbone, seed: int, scale: float = 1.0) -> dict[str, float]:
    """Share of drawings of knowledge prompts that show exactly the object; none was taught."""
    unseen = [fact for fact in facts() if not fact.taught]
    assert isinstance(backbone, JanusBackbone)
    figures = drawn_right(backbone, unseen, portion(240, scale), seed + 2)
    return {"knowledge": figures["exact"]}


def check(model: Path, log_folder: Path, seed: int = 0, scale: float = 1.0) -> bool:
    """Measure every gate, log the figures, and say whether all pass."""
    backbone = load_backbone(model, dtype="float32").eval()
    log, passed = Log(log_folder, "gates"), True
    for measure in (tokenizer, drawing, understanding, knowing):
        figures = measure(backbone, seed, scale)
        verdicts = {
            name: BANDS[name][0] <= value <= BANDS[name][1]
            for name, value in figures.items()
            if name in BANDS
        }
        verdicts |= {k: figures[k] > floor for k, floor in CHANCE.items() if k in figures}
        failed = [name for name, ok in verdicts.items() if not ok]
        passed &= not failed
        log(**figures, failed=", ".join(failed) or "none")
    return passed
