"""Fault 3: the filter kept candidates *below* the similarity floor, or hard ones of any kind."""

from __future__ import annotations

import torch

from tests.faults.play import batch_of, strong_perturber, tiny_janus
from unigame.methods.selfplay import HardSampleBuffer, SelfPlaySettings, accept, challenge, mine
from unigame.methods.semantics import SimilarityScorer


class Fixed(SimilarityScorer):
    """Similarities decided by the test."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def forward(self, images, reference_images, texts, **features):
        return torch.tensor(self.values)


def test_hard_and_similar_not_hard_or_dissimilar():
    hardness = torch.tensor([9.0, 9.0, 1.0, 1.0])
    similarity = torch.tensor([0.9, 0.1, 0.9, 0.1])
    #   hard and similar: in; hard but another picture, easy, easy and another picture: out
    assert accept(hardness, similarity, 0.6, 0.3).tolist() == [True, False, False, False]


def test_what_lost_its_meaning_never_enters_the_buffer():
    backbone, batch, buffer = tiny_janus(), batch_of(), HardSampleBuffer()
    config = SelfPlaySettings(hard_quantile=0.0, clip_floor=0.3)
    scorer = Fixed([0.9, 0.1, 0.3])
    result = challenge(backbone, strong_perturber(), batch, config, scorer)
    # The dissimilar one may even look hardest: the floor's bonus is in its H.
    result.hardness_BK[1] += 100
    report = mine(result, batch, buffer, config)
    assert {s.source for s in buffer.samples} == {"picture 0", "picture 2"}
    assert report.accepted == 2
    assert all(s.similarity >= 0.3 - 1e-6 for s in buffer.samples)
