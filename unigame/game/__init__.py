"""The method as mathematics: perturber, challenge, buffer, objectives, similarity.

Nothing here knows a trainer or a particular model; ``examples/plain_loop.py`` plays the game in a
plain loop. Read ``challenge.py`` first.
"""

from unigame.game.attack import attacked_images, frozen_attack
from unigame.game.buffer import HardSample, HardSampleBuffer, stack_compact
from unigame.game.challenge import (
    ChallengeResult,
    MiningReport,
    challenge,
    mine,
    perturber_step,
    teacher_forced_states,
)
from unigame.game.objectives import (
    accept,
    hardness,
    label_penalty,
    perturber_objective,
    understanding_loss,
    understanding_weights,
)
from unigame.game.perturber import (
    NoPerturber,
    Perturber,
    PerturberBase,
    RandomPerturber,
    build_perturber,
)
from unigame.game.redrawn import redrawn, redrawn_figures
from unigame.game.semantics import (
    ClipSimilarity,
    FeatureSimilarity,
    NoSimilarity,
    SimilarityScorer,
    build_scorer,
)
from unigame.game.setting import ChallengeConfig, GameBatch

__all__ = [
    "ChallengeConfig",
    "ChallengeResult",
    "ClipSimilarity",
    "FeatureSimilarity",
    "GameBatch",
    "HardSample",
    "HardSampleBuffer",
    "MiningReport",
    "NoPerturber",
    "NoSimilarity",
    "Perturber",
    "PerturberBase",
    "RandomPerturber",
    "SimilarityScorer",
    "accept",
    "attacked_images",
    "build_perturber",
    "build_scorer",
    "challenge",
    "frozen_attack",
    "hardness",
    "label_penalty",
    "mine",
    "perturber_objective",
    "perturber_step",
    "redrawn",
    "redrawn_figures",
    "stack_compact",
    "teacher_forced_states",
    "understanding_loss",
    "understanding_weights",
]
