"""A judge that is one of this package's own models: the U of any backbone.

A model that judges its own drawings forgives what it cannot see. So take another model than the one
under test, or the same one for *all* models that are compared, which is what ``--judge`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.folder import find_checkpoint, find_family
from unigame.backbones.registry import available_backbones
from unigame.data.images import CorruptImage, load_image
from unigame.evaluation.scorers.judges import Judge, JudgeRequest, JudgeUnavailable, Rubric
from unigame.evaluation.scorers.pretrained import checkpoint_name


class BackboneJudge(Judge):
    """A backbone's answers to the rubric, greedy and batched; loaded at the first picture.

    Args:
        model: a checkpoint folder, the bundled model's name, or a Hub id.
        batch_size: pictures judged at once.
        max_new_tokens: longest reply.
        dtype: of the weights; ``"auto"``: the checkpoint's own.

    Raises:
        UserError: neither a folder nor a Hub id.
    """

    deterministic = True

    def __init__(
        self, model: str, *, batch_size: int = 8, max_new_tokens: int = 64, dtype: str = "auto"
    ) -> None:
        find_checkpoint(model)
        self.model = model
        self.batch_size, self.max_new_tokens, self.dtype = batch_size, max_new_tokens, dtype
        self._loaded: Backbone | None = None

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # read once it is asked for
        """With a digest of a folder's files or a Hub id's commit; see ``checkpoint_name``."""
        place, snapshot = find_checkpoint(self.model), self._config_file.parent
        commit = snapshot.name if snapshot.parent.name == "snapshots" else ""
        return f"unigame:{checkpoint_name(place, commit)}"

    @cached_property
    def _config_file(self) -> Path:
        return find_family(find_checkpoint(self.model), available_backbones())[1]

    def check(self) -> None:
        """See that it is a checkpoint of a known family; loads no weights."""
        _ = self._config_file

    def settings(self) -> dict[str, Any]:
        """Decoding."""
        return {"decoding": "greedy", "max_new_tokens": self.max_new_tokens}

    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """One picture alone. See ``Judge.reply``."""
        return self.replies([JudgeRequest("", prompt, explanation, picture)], rubric)[0]

    def replies(self, requests: Sequence[JudgeRequest], rubric: Rubric) -> list[str]:
        """One batch. See ``Judge.replies``."""
        try:
            images = [load_image(each.picture) for each in requests]
        except (CorruptImage, OSError):
            raise JudgeUnavailable("unreadable picture", retryable=False) from None
        backbone = self._backbone()
        said = backbone.answer(
            backbone.preprocess(images).to(backbone.device),
            [rubric.fill(each.prompt, each.explanation) for each in requests],
            max_new_tokens=self.max_new_tokens,
        )
        return [reply.strip() for reply in said]

    def _backbone(self) -> Backbone:
        if self._loaded is None:
            dtype = self.dtype
            if dtype == "auto" and not torch.cuda.is_available():
                dtype = "float32"  # most CPUs only imitate bfloat16, ten times slower
            self._loaded = load_backbone(self.model, dtype=dtype)
        return self._loaded
