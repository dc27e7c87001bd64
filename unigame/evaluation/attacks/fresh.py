"""An attack made for evaluation only: a fresh C, trained against a U that no longer moves.

Accuracy on its pictures asks whether U became robust to decoder-constrained attacks, or only to the
one C it trained with. Nothing of the training run's perturber or buffer is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.methods.rows import Rows
from unigame.methods.selfplay.challenge import challenge, perturber_step, teacher_forced_states
from unigame.methods.selfplay.perturber import (
    EpsMode,
    Perturber,
    PerturberBase,
    Scope,
    build_perturber,
)
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import SimilarityScorer

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone, VisualStates


def frozen_attack(
    backbone: Backbone,
    batch: Rows | Sequence[Rows],
    steps: int,
    lr: float,
    config: SelfPlaySettings,
    seed: int = 0,
    *,
    width: int = 256,
    depth: int = 3,
    eps_max: float = 0.02,
    eps_init: float = 0.01,
    eps_mode: EpsMode = "absolute",
    scope: Scope = "token",
    scorer: SimilarityScorer | None = None,
    max_norm: float = 1.0,
) -> Perturber:
    """Train a fresh perturber against a frozen model and return it.

    Args:
        backbone: U and G; its weights and gradients stay as they are.
        batch: what to train on, one batch or several that are taken in turn. The visual states of
            each are computed once, since the model does not change.
        steps: updates of the fresh C.
        lr: of its AdamW.
        config: of the challenge; usually that of the training run.
        seed: of C's weights and of the Gumbel draws; the global random state is not touched.
        width: of the inner layers of C, as for ``Perturber``.
        depth: number of C's layers.
        eps_max: bound of the perturbation; usually that of the training run.
        eps_init: its length at the start.
        eps_mode: ``"absolute"`` or ``"relative"``.
        scope: ``"token"``, or ``"shared"``: one direction for all tokens of a picture.
        scorer: for the label-preservation term, where ``config.label_weight`` > 0.
        max_norm: clip of C's gradient.

    Raises:
        UserError: steps below 1, or no batch.
    """
    batches = [batch] if isinstance(batch, Rows) else list(batch)
    if not batches or steps < 1:
        raise UserError(
            f"an attack of {steps} steps on {len(batches)} batches: both must be at least 1"
        )
    perturber = build_perturber(
        "learned",
        backbone.facts.hidden_size,
        width=width,
        depth=depth,
        eps_max=eps_max,
        eps_init=eps_init,
        eps_mode=eps_mode,
        scope=scope,
        seed=seed,
    ).to(backbone.device)
    assert isinstance(perturber, Perturber)
    optimizer = torch.optim.AdamW(perturber.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator(device=backbone.device).manual_seed(seed)
    visual: dict[int, VisualStates] = {}
    for step in range(steps):
        i = step % len(batches)
        if config.perturb_space == "decoder" and i not in visual:
            visual[i] = teacher_forced_states(backbone, batches[i])
        result = challenge(
            backbone, perturber, batches[i], config, scorer, generator, visual=visual.get(i)
        )
        perturber_step(result, perturber, optimizer, max_norm)
    return perturber


@torch.no_grad()
def attacked_images(
    backbone: Backbone,
    perturber: PerturberBase,
    batch: Rows,
    config: SelfPlaySettings,
    generator: torch.Generator | None = None,
    strength: float = 1.0,
) -> Tensor:
    """The pictures that ``perturber`` makes of a batch: one for each sample, (B, 3, S, S).

    With ``config.num_candidates`` above 1 or ``config.sample`` the one is a Gumbel draw from
    ``generator``; otherwise the argmax. With ``NoPerturber`` it is the plain redrawing. The
    perturbation is taken ``strength`` times.

    Raises:
        UserError: in token space, where no picture is drawn.
    """
    if config.perturb_space == "tokens":
        raise UserError(
            "an attack in token space draws no picture: set space='decoder' for attacked images"
        )
    config = replace(
        config,
        num_candidates=1,
        sample_candidates=config.sample_candidates or config.num_candidates > 1,
    )
    with backbone.without_dropout():
        visual = teacher_forced_states(backbone, batch)
        states_BNH = visual.states_BNH
        drawing = backbone.draw(
            states_BNH + strength * perturber(states_BNH),
            visual.codes,
            sample=config.sample_candidates,
            generator=generator,
            **config.drawing_options,
        )
    return drawing.images
