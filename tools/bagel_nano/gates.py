"""The gates of ``tools.common.gates`` for this model, and that of drawing by flow.

Its verifier is the bundled CLIP of the other model, which has gates of its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from tools.common import gates
from tools.common.gates import CERTAIN, Figures, Measure, match, megabytes
from tools.common.reader import Verifier, cell_targets, load_verifier
from unigame.backbones import load_backbone
from unigame.synthetic.reader import exact_match, read, truth
from unigame.synthetic.world import caption

from .nano import BagelNano

FOLDER = "bagel_nano"
# No upper end: what leaves room is what U misreads, and free drawing is the game's other half.
BANDS: gates.Bands = {**gates.BANDS, "drawing": (0.85, 1.0)}
ANCHORS = {"anchor": 0.5, "unanchored": 0.0}
"""Of the recipe, and none. Janus' anchor of 6 adds to logits; here it would be a mix that is six
parts the picture's own latent, which nothing fails."""


@torch.no_grad()
def drawing(model: Path, judge: Verifier, seed: int, scale: float) -> Figures:
    """Autoencoder and anchor; caption -> image, as objects, as whole pictures, and for the judge.

    Also with guidance, and how far pictures of one caption differ.
    """
    backbone = load_backbone(model, dtype="float32").eval()
    figures, few = gates.redrawing(backbone, seed, scale, ANCHORS)
    words = [caption(scene) for scene in few]
    for name, guidance in (("drawing", 1.0), ("drawing_guided", 2.0)):
        images = backbone.generate(words, seed=seed, guidance_scale=guidance)
        found = [read(i) for i in images.permute(0, 2, 3, 1).numpy()]
        figures[name] = match(images, few)
        figures[f"{name}_exact"] = exact_match(found, map(truth, few))
        sure = judge.certainty(images, *cell_targets(few)) > CERTAIN
        figures[f"{name}_judged"] = sure.float().mean().item()
    same = backbone.generate([words[0]] * 12, seed=seed, guidance_scale=1.0)
    figures["variety"] = same.std(0).mean().item()
    figures["model_megabytes"] = megabytes(model)
    return figures


def load_nano(folder: Path) -> BagelNano:
    """The finished checkpoint in the recipe's own packed form."""
    return BagelNano.load(folder / FOLDER)


MEASURES: dict[str, Measure] = {
    **gates.measures(load_nano),
    "drawing": lambda folder, seed, scale, _: drawing(
        folder / FOLDER, load_verifier(folder), seed, scale
    ),
    "knowledge": lambda folder, seed, scale, _: gates.knowing(
        folder / FOLDER, seed, scale, BagelNano.temperature
    ),
}
check = partial(gates.check, measured=MEASURES, bands=BANDS)
