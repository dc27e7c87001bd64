"""Which objects a picture shows: what GenEval's rules are applied to.

The reference uses mmdet's Mask2Former (Swin-S, COCO instances). Here the detector is a checkpoint
of transformers: by default the same architecture with other weights, so scores are "GenEval-like"
and comparable only under the same detector; ``docs/evaluation-generation.md`` says how far.

Shapes: Q queries, C classes, N candidates, H x W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForUniversalSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
from transformers.utils import is_scipy_available

from unigame.errors import UserError
from unigame.evaluation.scorers.pretrained import Pretrained, PretrainedScorer
from unigame.evaluation.tasks.geneval.rules import CLASSES, Detection

DEFAULT_DETECTOR = "facebook/mask2former-swin-small-coco-instance"

# GenEval's own names of COCO classes, and the older names that some checkpoints carry.
_GENEVAL_NAME = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
    "hairdryer": "hair drier",
    "doughnut": "donut",
}
_SUPPORTED = ("mask2former", "maskformer", "eomt", "eomt_dinov3")
_MIN_SCORE = 0.05  # weaker detections are never used and would fill the store


class Detector(Protocol):
    """Finds objects. ``name`` goes into records: weights that differ must have other names."""

    @property
    def name(self) -> str:
        """Which weights, at which settings."""
        ...

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The objects of each RGB picture, in any order, with every score that may matter."""
        ...


class SegmentationDetector(PretrainedScorer):
    """Mask2Former, or another checkpoint that segments COCO instances by queries.

    Detections are those of Mask2Former's own instance inference: over all (query, class) pairs the
    Q best by class probability; a pair's score is that probability times the mean of the query's
    mask probabilities inside its mask (logit > 0); its box is the mask's extent, right and lower
    edge exclusive, as mmdet gives it. Nothing is suppressed: masks may overlap, and one query may
    be reported under two classes. transformers' ``post_process_instance_segmentation`` scores the
    same pairs, but on masks squeezed to 384 x 384 with the padding still in, and by default paints
    them into one map in which later objects erase earlier ones; so it is not used. Masks here are
    enlarged to the network's input, freed of its padding, enlarged to the picture, and only then
    cut and scored, which is the order of the original.

    Args:
        checkpoint: folder or Hub id of a model of type mask2former, maskformer or eomt.
        short_edge: pictures are resized to this, in pixels, the long edge to at most 5/3 of it. 800
            is what the weights were published with and what the reference uses; the Hub's processor
            squeezes to 384 x 384. None: as the checkpoint's processor does. EoMT ignores it.
        batch_size: pictures of equal size that are run together.
        device: None: the accelerator if there is one, else the CPU.

    Raises:
        UserError: not such a checkpoint, or one without some of the 80 COCO classes.
    """

    def __init__(
        self,
        checkpoint: str | Path = DEFAULT_DETECTOR,
        *,
        short_edge: int | None = 800,
        batch_size: int = 4,
        device: str | torch.device | None = None,
    ) -> None:
        self.checkpoint = Pretrained[Any](checkpoint, _read_segmenter, device)
        config = self.checkpoint.config
        if config.model_type not in _SUPPORTED:
            raise UserError(
                f"detector {str(checkpoint)!r} is a model of type {config.model_type!r}; give an "
                f"instance-segmentation checkpoint of type {', '.join(_SUPPORTED)}"
            )
        self._class_names = [geneval_name(config.id2label[i]) for i in range(config.num_labels)]
        missing = [name for name in CLASSES if name not in self._class_names]
        if missing:
            raise UserError(
                f"detector {str(checkpoint)!r} does not know {len(missing)} of GenEval's 80 "
                f"classes ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); give a "
                "checkpoint trained on COCO instances"
            )
        # EoMT has a fixed input size; its processor alone knows it.
        self._short_edge = short_edge if config.model_type.startswith("mask") else None
        self._batch_size = batch_size

    @property
    def name(self) -> str:
        """The checkpoint, and the size at which it looks at pictures."""
        size = f" at {self._short_edge} px" if self._short_edge else ""
        return f"{self.checkpoint.name}{size}"

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """The objects of each picture with a score of at least 0.05, best first."""
        found: dict[int, list[Detection]] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.size, []).append(index)
        # Pictures of one size need no padding, so what is found does not depend on the batch.
        for indices in by_size.values():
            for start in range(0, len(indices), self._batch_size):
                batch = indices[start : start + self._batch_size]
                results = self._detect_equal([images[i].convert("RGB") for i in batch])
                found.update(zip(batch, results, strict=True))
        return [found[index] for index in range(len(images))]

    def _detect_equal(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Objects of pictures that are all of one size."""
        width, height = images[0].size
        inputs = self.checkpoint.pixels(images, **self._resize())
        region = _content(inputs, (height, width), self.checkpoint.processor)
        with torch.inference_mode():
            output = self.checkpoint.load()(pixel_values=inputs["pixel_values"])
            input_size = tuple(inputs["pixel_values"].shape[-2:])
            return [
                self._instances(classes_QC, masks_QHW, input_size, region, (height, width))
                for classes_QC, masks_QHW in zip(
                    output.class_queries_logits, output.masks_queries_logits, strict=True
                )
            ]

    def _resize(self) -> dict[str, Any]:
        if self._short_edge is None:
            return {}
        # 800 to 1333: the usual limits of COCO detectors.
        longest = round(self._short_edge * 1333 / 800)
        return {"size": {"shortest_edge": self._short_edge, "longest_edge": longest}}

    def _instances(
        self,
        classes_QC: Tensor,
        masks_QHW: Tensor,
        input_size: tuple[int, ...],
        region: tuple[int, int],
        picture_size: tuple[int, int],
    ) -> list[Detection]:
        """Mask2Former's instance inference for one picture; all sizes are (height, width)."""
        probabilities_QC = classes_QC.softmax(-1)[:, :-1]  # the last class is "no object"
        num_queries, num_classes = probabilities_QC.shape
        best_N, flat_N = probabilities_QC.flatten().topk(min(num_queries, probabilities_QC.numel()))
        # The mean mask probability is at most 1: what is too weak already need not be enlarged.
        strong_N = best_N >= _MIN_SCORE
        best_N, flat_N = best_N[strong_N], flat_N[strong_N]
        found = []
        for class_score, flat in zip(best_N, flat_N.tolist(), strict=True):
            query, label = divmod(flat, num_classes)
            logits_HW = _enlarge(masks_QHW[query], input_size, region, picture_size)
            mask_HW = logits_HW > 0
            if self._class_names[label] not in CLASSES or not mask_HW.any():
                continue
            score = float(class_score * logits_HW[mask_HW].sigmoid().mean())
            if score >= _MIN_SCORE:
                mask = mask_HW.cpu().numpy()
                found.append(Detection(self._class_names[label], score, _extent(mask_HW), mask))
        return sorted(found, key=lambda each: -each.score)


def geneval_name(label: str) -> str:
    """A checkpoint's label in GenEval's spelling: "mouse" is "computer mouse"."""
    plain = label.strip().lower().replace("_", " ")
    return _GENEVAL_NAME.get(plain, plain)


def _content(
    inputs: Mapping[str, Tensor], picture_size: tuple[int, int], processor: Any
) -> tuple[int, int]:
    """(height, width) of the part of the network's input that is picture and not padding."""
    if "pixel_mask" in inputs:
        mask_HW = inputs["pixel_mask"][0]
        return int(mask_HW[:, 0].sum()), int(mask_HW[0].sum())
    height, width = inputs["pixel_values"].shape[-2:]
    if not processor.do_pad:
        return height, width
    scale = min(height / picture_size[0], width / picture_size[1])
    return round(picture_size[0] * scale), round(picture_size[1] * scale)


def _enlarge(
    logits_HW: Tensor,
    input_size: tuple[int, ...],
    region: tuple[int, int],
    picture_size: tuple[int, int],
) -> Tensor:
    """Mask logits of one query at the picture's size, (H, W)."""
    whole = F.interpolate(logits_HW[None, None].float(), input_size, mode="bilinear")
    content = whole[..., : region[0], : region[1]]
    return F.interpolate(content, picture_size, mode="bilinear")[0, 0]


def _extent(mask_HW: Tensor) -> tuple[float, float, float, float]:
    """The box around a mask that is not empty; its right and lower edges are exclusive."""
    rows, columns = mask_HW.any(1).nonzero()[:, 0], mask_HW.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def _read_segmenter(source: str, **kwargs: Any) -> Any:
    """The weights of a segmentation model."""
    model_class = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(AutoConfig.from_pretrained(source))]
    with _no_need_of_scipy(model_class):
        return AutoModelForUniversalSegmentation.from_pretrained(source, **kwargs)


@contextmanager
def _no_need_of_scipy(model_class: type) -> Iterator[None]:
    """Within: a segmentation model can be built where scipy is not installed.

    Its constructor also builds the training loss, which asks for scipy to match masks with. Nothing
    here trains it, so that one question is left unasked.
    """
    if is_scipy_available():
        yield
        return
    module = sys.modules[model_class.__module__]
    with mock.patch.object(module, "requires_backends", lambda *_: None):
        yield
