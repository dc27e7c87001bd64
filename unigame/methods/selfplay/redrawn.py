"""The redrawn baseline: the same pictures drawn again without C, and read by the same U.

A candidate differs from its original by what the redrawing does and by what C does. Only beside a
redrawing at eps = 0, under the same noise, can the two be told apart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigame.methods.rows import Rows
from unigame.methods.selfplay.candidates import ChallengeResult
from unigame.methods.selfplay.challenge import challenge
from unigame.methods.selfplay.perturber import NoPerturber
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import SimilarityScorer

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone, VisualStates


def redrawn(
    backbone: Backbone,
    rows: Rows,
    settings: SelfPlaySettings,
    scorer: SimilarityScorer | None = None,
    noise: Tensor | None = None,
    visual: VisualStates | None = None,
    pictures_at_once: int | None = None,
) -> ChallengeResult:
    """A challenge of nobody: eps = 0, no gradient, otherwise as the one it is compared with.

    Costs its forward passes again, without the teacher-forced one where ``visual`` is given. No
    generator moves.

    Args:
        backbone: the model.
        rows: as challenged.
        settings: of that challenge, which draws.
        scorer: of its similarity.
        noise: state of that challenge's generator before it drew, so that K candidates meet the
            same Gumbel noise. Needed where candidates are sampled.
        visual: the rows' visual states, where they are known.
        pictures_at_once: as in that challenge; it orders the noise.

    Raises:
        ValueError: nothing is drawn, or candidates are sampled and there is no noise.
    """
    if not settings.draws:
        raise ValueError("in token space nothing is redrawn")
    if noise is None and (settings.sample_candidates or settings.num_candidates > 1):
        raise ValueError("the redrawn baseline of sampled candidates needs their noise")
    generator = None
    if noise is not None:
        generator = torch.Generator(device=backbone.device)
        generator.set_state(noise)
    return challenge(
        backbone,
        NoPerturber(),
        rows,
        # Terms of C's objective, and C does not play.
        replace(settings, label_weight=0.0, content_weight=0.0, verified_target=None),
        scorer,
        generator,
        with_grad=False,
        visual=visual,
        pictures_at_once=pictures_at_once,
    )


def redrawn_figures(attacked: ChallengeResult, baseline: ChallengeResult) -> dict[str, float]:
    """Figures of the baseline, and which image codes C changed of those that it would have drawn.

    Keys: ``redrawn_ce``, ``redrawn_similarity`` and, where pictures are made of codes,
    ``redrawn_codes_changed`` (redrawing against original) and ``attack_codes_changed`` (attacked
    against redrawn).
    """
    figures = {
        "redrawn_ce": baseline.metrics["adversarial_ce"],
        "redrawn_similarity": baseline.metrics["similarity"],
    }
    if "codes_changed" in baseline.metrics:
        assert attacked.drawing is not None and baseline.drawing is not None
        changed = attacked.drawing.compact != baseline.drawing.compact
        figures["redrawn_codes_changed"] = baseline.metrics["codes_changed"]
        figures["attack_codes_changed"] = changed.float().mean().item()
    return figures
