"""UniGame: a perturber attacks what the generation branch draws, and U learns from what it missed.

``method.py`` plays it within the trainer; ``challenge.py`` is the method as mathematics, which
``examples/plain_loop.py`` plays in a plain loop.
"""

from unigame.methods.rows import Rows
from unigame.methods.selfplay.buffer import HardSample, HardSampleBuffer, stack_compact
from unigame.methods.selfplay.challenge import (
    ChallengeResult,
    MiningReport,
    challenge,
    mine,
    perturber_step,
    teacher_forced_states,
)
from unigame.methods.selfplay.method import SelfPlay
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
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.semantics import (
    ClipSimilarity,
    FeatureSimilarity,
    NoSimilarity,
    SimilarityScorer,
    build_scorer,
)

__all__ = [
    "ChallengeResult",
    "ClipSimilarity",
    "FeatureSimilarity",
    "HardSample",
    "HardSampleBuffer",
    "MiningReport",
    "NoPerturber",
    "NoSimilarity",
    "Perturber",
    "PerturberBase",
    "RandomPerturber",
    "Rows",
    "SelfPlay",
    "SelfPlaySettings",
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
