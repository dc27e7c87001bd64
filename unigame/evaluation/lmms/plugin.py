"""Makes our models known to lmms-eval: entry point ``unigame`` of the group ``lmms_eval.models``.

lmms-eval calls ``manifest`` when it starts; the classes are imported only if they are asked for.
``docs/lmms-eval.md`` shows how to use them.
"""

from __future__ import annotations

from typing import Any

_CLASSES = "unigame.evaluation.lmms.models"


def manifest() -> Any:
    """The ``ModelManifest`` of ``--model unigame``: chat by default, simple with a switch."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]

    return ModelManifest(
        model_id="unigame",
        simple_class_path=f"{_CLASSES}.UniGameSimple",
        chat_class_path=f"{_CLASSES}.UniGameChat",
    )
