"""The gates of ``tools.common.gates`` for this model, and those of its codes and its CLIP."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import JanusForConditionalGeneration

from tools.common import gates
from tools.common.gates import Figures, Measure, match, megabytes
from tools.common.progress import portion
from tools.common.reader import cell_targets, load_verifier
from unigame.backbones import load_backbone
from unigame.synthetic.world import caption

from . import clip
from .language import JanusNano

BANDS: gates.Bands = {
    **gates.BANDS,
    "drawing": (0.75, 0.92),
    "auc_mild": (0.98, 1.0),
    "auc_strong": (0.95, 1.0),
    "clip_megabytes": (0.0, 2.0),
}


@torch.no_grad()
def drawing(model: Path, seed: int, scale: float) -> Figures:
    """Tokenizer and anchor, caption -> image (sampled, greedy), variety."""
    backbone = load_backbone(model, dtype="float32").eval()
    figures, few = gates.redrawing(backbone, seed, scale)
    words, free = [caption(s) for s in few], {"seed": seed, "guidance_scale": 1.0}
    figures["drawing"] = match(backbone.generate(words, temperature=0.7, **free), few)
    figures["drawing_greedy"] = match(backbone.generate(words, do_sample=False, **free), few)
    same = backbone.generate([words[0]] * 40, temperature=0.7, **free)
    figures["distinct_of_40"] = len(torch.unique(backbone.encode_images(same), dim=0))
    return figures


def verifying(folder: Path, seed: int, scale: float) -> Figures:
    """AUC of style against content: the CLIP verifier as it was saved, and the cell reader."""
    clip_folder, count = folder / "verifier_clip", portion(600, scale)
    figures = clip.auc_figures(clip.load(clip_folder).similarity, seed, count)
    for severity in clip.NEEDED:
        figures[f"auc_{severity}"] = min(
            figures[f"auc_{severity}_{against}"] for against in clip.AGAINST
        )
    judge = load_verifier(folder)
    reader = clip.auc_figures(
        lambda images, scenes: judge.certainty(images, *cell_targets(scenes)), seed, count
    )
    figures |= {f"reader_{k}": v for k, v in reader.items()}
    figures["model_megabytes"] = megabytes(folder / "janus_nano")
    figures["clip_megabytes"] = megabytes(clip_folder)
    return figures


def load_nano(folder: Path) -> JanusNano:
    """The finished checkpoint in the recipe's own packed form, weights as saved (bfloat16)."""
    nano = JanusNano(folder)
    nano.model = JanusForConditionalGeneration.from_pretrained(folder / "janus_nano").float()
    nano.core = nano.model.model
    return nano


MEASURES: dict[str, Measure] = {
    **gates.measures(load_nano),
    "verifying": lambda folder, seed, scale, _: verifying(folder, seed, scale),
    "drawing": lambda folder, seed, scale, _: drawing(folder / "janus_nano", seed, scale),
    "knowledge": lambda folder, seed, scale, _: gates.knowing(
        folder / "janus_nano", seed, scale, JanusNano.temperature
    ),
}
check = partial(gates.check, measured=MEASURES, bands=BANDS)
