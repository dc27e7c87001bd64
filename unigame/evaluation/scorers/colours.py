"""In which colour an object is: CLIP, zero-shot, on the object cut out of its picture.

Shapes: N objects, C colours, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from unigame.errors import UserError
from unigame.evaluation.scorers.pretrained import Pretrained, PretrainedScorer, clear_errors
from unigame.evaluation.tasks.geneval.rules import COLOURS, Detection

DEFAULT_CLIP = "openai/clip-vit-large-patch14"

_GREY = "#999"
_TEMPLATES = (
    "a photo of a {colour} {class_name}",
    "a photo of a {colour}-colored {class_name}",
    "a photo of a {colour} object",
)


class ColourClassifier(Protocol):
    """Names colours of objects. ``name`` goes into records."""

    @property
    def name(self) -> str:
        """Which weights."""
        ...

    def classify(
        self, image: Image.Image, detections: Sequence[Detection], class_name: str
    ) -> list[str]:
        """The colour of each object of one class in an RGB picture."""
        ...


class CLIPColours(PretrainedScorer):
    """The colour of an object by CLIP, zero-shot.

    As in the reference: the object is pasted by its mask on grey (#999) and cut to its box; its
    encoding is compared with ten text vectors, each the normalised mean of the normalised encodings
    of three sentences; the nearest wins. The reference lets CLIP run in half precision; here it is
    float32.

    Args:
        checkpoint: folder or Hub id of a CLIP model with its tokenizer.
        batch_size: objects that are encoded together.
        device: None: the accelerator if there is one, else the CPU.

    Raises:
        UserError: not such a checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | Path = DEFAULT_CLIP,
        *,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> None:
        self.checkpoint = Pretrained[Any](checkpoint, AutoModel.from_pretrained, device)
        if self.checkpoint.config.model_type != "clip":
            raise UserError(
                f"colour classifier {str(checkpoint)!r} is a model of type "
                f"{self.checkpoint.config.model_type!r}; give a CLIP checkpoint such as "
                f"{DEFAULT_CLIP}"
            )
        with clear_errors(self.checkpoint.source, "its tokenizer"):
            self._tokenizer = AutoTokenizer.from_pretrained(self.checkpoint.source)
        self._batch_size = batch_size
        self._colours_of: dict[str, Tensor] = {}

    def classify(
        self, image: Image.Image, detections: Sequence[Detection], class_name: str
    ) -> list[str]:
        """One of the ten colours for each object."""
        colours: list[str] = []
        for start in range(0, len(detections), self._batch_size):
            batch = detections[start : start + self._batch_size]
            inputs = self.checkpoint.pixels([cut_out(image, each) for each in batch])
            with torch.inference_mode():
                features = self.checkpoint.load().get_image_features(**inputs).pooler_output
                objects_ND = F.normalize(features, dim=-1)
                nearest_N = (objects_ND @ self._colour_vectors(class_name).T).argmax(-1)
            colours += [COLOURS[index] for index in nearest_N.tolist()]
        return colours

    def _colour_vectors(self, class_name: str) -> Tensor:
        """One unit vector per colour, (10, D)."""
        if class_name not in self._colours_of:
            sentences = [
                template.format(colour=colour, class_name=class_name)
                for colour in COLOURS
                for template in _TEMPLATES
            ]
            tokens = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(self.checkpoint.device)
            features = self.checkpoint.load().get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            unit = F.normalize(features.pooler_output, dim=-1)
            mean_CD = unit.unflatten(0, (len(COLOURS), len(_TEMPLATES))).mean(1)
            self._colours_of[class_name] = F.normalize(mean_CD, dim=-1)
        return self._colours_of[class_name]

    def unload(self) -> None:
        """See ``Loadable``."""
        super().unload()
        self._colours_of.clear()


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """An object alone on grey, cut to its box (to one pixel where the box is empty)."""
    rgb = image.convert("RGB")
    if detection.mask is not None:
        mask = Image.fromarray(detection.mask.astype("uint8") * 255)
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, _GREY), mask)
    x0, y0, x1, y1 = map(round, detection.box)
    return rgb.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
