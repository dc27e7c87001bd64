"""The method as mathematics: perturber, challenge, buffer, objectives.

Nothing here knows a trainer or a particular model; ``examples/plain_loop.py`` plays the game in a
plain loop. Read ``challenge.py`` first.
"""

from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer, stack_compact
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    MiningReport,
    challenge,
    mine,
    perturber_step,
    teacher_forced_states,
)
from unigame.methods.selfplay.objectives import (
    accept,
    hardness,
    label_penalty,
    perturber_objective,
    understanding_loss,
    understanding_weights,
)
from unigame.methods.selfplay.perturber import (
    NoPerturber,
    Perturber,
    PerturberBase,
    RandomPerturber,
    build_perturber,
)
from unigame.methods.selfplay.redrawn import redrawn, redrawn_figures
from unigame.methods.selfplay.setting import ChallengeConfig, GameBatch
from unigame.methods.semantics import (
    ClipSimilarity,
    FeatureSimilarity,
    NoSimilarity,
    SimilarityScorer,
    build_scorer,
)

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
    "build_perturber",
    "build_scorer",
    "challenge",
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
