"""Detector, judge and encoders for the synthetic world, where no real one would see anything.

They fill the places of Mask2Former, CLIP, a judge model and UnifiedBench's encoders, so that a demo
and the tests run the benchmarks' own code. Their scores compare models of this world and nothing
else; every name says so, because names go into the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unigame.backbones.base import Backbone
from unigame.data.images import CorruptImage, load_image, upright_rgb
from unigame.errors import UserError
from unigame.evaluation.scorers.encoders import Encoder
from unigame.evaluation.scorers.judges import Judge, JudgeUnavailable, Rubric
from unigame.evaluation.tasks.geneval.rules import Detection
from unigame.synthetic.benchmarks.dpg import holds
from unigame.synthetic.reader import SMALLEST_SIDE, Sighting, at_world_size, can_read, look
from unigame.synthetic.world import (
    CELL_PX,
    CELLS,
    COLOURS,
    GRID,
    SHAPES,
    SIDE,
    FloatImage,
    parse_caption,
)

READER = "synthetic reader"
CLEAN_FIT, FAIR_FIT = 0.9, 0.75
"""Share of a cell that a template explains: clean pictures of the world have 0.86 and more."""
CLEAN_GROUND, FAIR_GROUND = 0.05, 0.10
"""Standard deviation of the ground beside the objects, in [0, 1] pixels; 0 in clean pictures."""


def pixels(image: Image.Image) -> FloatImage:
    """A picture as the reader takes it, at the world's size: (48, 48, 3) in [0, 1].

    Raises:
        UserError: another size: it is no picture of the synthetic world.
    """
    if not can_read(*image.size):
        raise UserError(
            f"the {READER} takes square pictures of {SMALLEST_SIDE} to {SIDE} px, not "
            f"{image.width} x {image.height}; for other models choose a real detector, judge and "
            "encoders"
        )
    return at_world_size(np.asarray(upright_rgb(image), np.float32) / np.float32(255))


# ---- GenEval -----------------------------------------------------------------------------------
class SyntheticDetector:
    """The analytic reader as a detector; classes are the world's shapes."""

    name = f"{READER}, shapes"

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The objects of each picture with box and mask; see ``confidence`` for their scores."""
        return [[detection(seen) for seen in look(pixels(image))] for image in images]


def detection(seen: Sighting) -> Detection:
    """A sighting as GenEval's rules take it."""
    mask = seen.mask > 0.5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return Detection(
        class_name=seen.shape,
        score=confidence(seen),
        box=tuple(float(edge) for edge in box),  # type: ignore[arg-type]
        mask=mask,
    )


def confidence(seen: Sighting) -> float:
    """1 - (1 - fit)^2: above GenEval's 0.9 for counting where two thirds of a cell are explained.

    Like a trained detector it is sure of most of what it reports at all.
    """
    return 1 - (1 - seen.fit) ** 2


class ReaderColours:
    """The analytic reader as a colour classifier: the colour it saw where the object is."""

    name = f"{READER}, colours"

    def classify(
        self, image: Image.Image, detections: Sequence[Detection], class_name: str
    ) -> list[str]:
        """The colour of each object; ``"none"`` for one that the reader does not see there."""
        colours = {detection(seen).box: seen.colour for seen in look(pixels(image))}
        return [colours.get(each.box, "none") for each in detections]


# ---- WISE and DPG-Bench ------------------------------------------------------------------------
class SyntheticJudge(Judge):
    """The analytic reader as a judge that replies in words, in the form the rubric asks for.

    Without an explanation, as DPG-Bench asks, the prompt is a yes/no question about the world.

    With one, as in WISE, there are three scores. Consistency: 2 for exactly the objects that the
    explanation names, 1 where each is there but for one of place, colour and shape, or where
    something else is there too, else 0. Realism: how much of the drawn objects the world's own
    templates explain. Aesthetic quality: how even the ground is. The rubric's text is not read.
    """

    name = f"{READER}, agreement with the explanation"
    deterministic = True
    batch_size = 32  # as many judgements reach the disk together

    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """Yes or no, or three scores in the official form.

        Raises:
            JudgeUnavailable: the picture cannot be opened, the explanation names no object, or the
                question is none of the world's.
            UserError: the picture is not one of the synthetic world.
        """
        wanted = parse_caption(explanation)
        if explanation and not wanted:
            raise JudgeUnavailable("explanation names no object", retryable=False)
        try:
            image = pixels(load_image(picture))
        except (CorruptImage, OSError):
            raise JudgeUnavailable("unreadable picture", retryable=False) from None
        if not explanation:
            return _yes_or_no(prompt, image)
        seen = look(image)
        return (
            f"**Consistency**: {_consistency({s.triple for s in seen}, wanted)}\n"
            f"**Realism**: {_realism(seen)}\n"
            f"**Aesthetic Quality**: {_evenness(image, seen)}"
        )


def _yes_or_no(question: str, image: FloatImage) -> str:
    answer = holds(question, _triples(image.tobytes()))
    if answer is None:
        raise JudgeUnavailable("no question of the synthetic world", retryable=False)
    return "yes" if answer else "no"


@lru_cache(maxsize=8)  # all questions about a picture come one after the other
def _triples(image: bytes) -> frozenset[tuple[int, str, str]]:
    seen = look(np.frombuffer(image, np.float32).reshape(SIDE, SIDE, 3))
    return frozenset(each.triple for each in seen)


Triples = set[tuple[int, str, str]]


def _consistency(found: Triples, wanted: Triples) -> int:
    if found == wanted:
        return 2
    near = all(any(_agreement(one, other) >= 2 for other in found) for one in wanted)
    return 1 if near else 0


def _agreement(one: tuple[int, str, str], other: tuple[int, str, str]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def _realism(seen: Sequence[Sighting]) -> int:
    worst = min((each.fit for each in seen), default=0.0)
    return 2 if worst >= CLEAN_FIT else 1 if worst >= FAIR_FIT else 0


def _evenness(image: FloatImage, seen: Sequence[Sighting]) -> int:
    covered = np.zeros(image.shape[:2], bool)
    for each in seen:
        row, column = (CELL_PX * i for i in divmod(each.cell, GRID))
        covered[row : row + CELL_PX, column : column + CELL_PX] = True
    if covered.all():
        return 0
    spread = float(image[~covered].std(0).mean())
    return 2 if spread <= CLEAN_GROUND else 1 if spread <= FAIR_GROUND else 0


# ---- UnifiedBench ------------------------------------------------------------------------------
class BackboneEncoder:
    """A model's own frozen vision tower as an encoder.

    The same for every adapter, since training leaves the tower alone. It rewards pictures that the
    model *reads* alike, so it belongs beside others that know nothing of the model.

    Args:
        backbone: the model.
        pooled: the tokens' mean (what is there), or all tokens in a row (what is where).
    """

    def __init__(self, backbone: Backbone, *, pooled: bool) -> None:
        self.backbone, self.pooled = backbone, pooled
        self.name = "own-tower-mean" if pooled else "own-tower-tokens"

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, D), or (n, N * D) where tokens are not pooled."""
        batch = self.backbone.preprocess(list(images)).to(self.backbone.device)
        features_BND = self.backbone.image_features(batch).float()
        vectors = features_BND.mean(1) if self.pooled else features_BND.flatten(1)
        return vectors.cpu().numpy()


class ObjectEncoder:
    """The analytic reader's objects as a vector: one entry for each cell's colour and shape."""

    name = "reader-objects"

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, 9 x 10 + 1); the last entry is 0.1 always, so that no vector is zero."""
        attributes = (*COLOURS, *SHAPES)
        vectors = np.zeros((len(images), len(CELLS), len(attributes)), np.float32)
        for vector, image in zip(vectors, images, strict=True):
            for seen in look(pixels(image)):
                vector[seen.cell, attributes.index(seen.colour)] = 1
                vector[seen.cell, attributes.index(seen.shape)] = 1
        constant = np.full((len(images), 1), 0.1, np.float32)
        return np.concatenate([vectors.reshape(len(images), -1), constant], axis=1)


class LayoutEncoder:
    """Where which colours are: the picture at 12 x 12 px, less its median, the ground's colour."""

    name = "colour-layout"

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, 432)."""
        small = [image.convert("RGB").resize((12, 12), Image.Resampling.BOX) for image in images]
        pixels_N = np.stack([np.asarray(each, np.float32) for each in small])
        centred = pixels_N - np.median(pixels_N, axis=(1, 2), keepdims=True)
        return (centred / 255).reshape(len(images), -1).astype(np.float32)


def stand_in_encoders(backbone: Backbone) -> list[Encoder]:
    """Four, the number that UnifiedBench's average asks for: two of the model's tower, two not."""
    return [
        BackboneEncoder(backbone, pooled=True),
        BackboneEncoder(backbone, pooled=False),
        ObjectEncoder(),
        LayoutEncoder(),
    ]
