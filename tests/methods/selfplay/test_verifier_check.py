"""Whether the similarity knows content from style is measured, and told with its figure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.methods.selfplay.helpers import make_batch
from unigame.methods.selfplay.verifier_check import ENOUGH, VerifierCheck, auc
from unigame.methods.semantics import SimilarityScorer


class Brightness(SimilarityScorer):
    """Punishes any change of contrast; what is shown does not matter to it."""

    def forward(self, images: Tensor, reference_images: Tensor, texts, **features):  # type: ignore[no-untyped-def]
        def contrast(of: Tensor) -> Tensor:
            return of.std(dim=(1, 2, 3))

        return -(contrast(images) - contrast(reference_images)).abs()


class Pattern(SimilarityScorer):
    """Correlation of the pixels: content, whatever the contrast."""

    def forward(self, images: Tensor, reference_images: Tensor, texts, **features):  # type: ignore[no-untyped-def]
        one, other = (part.flatten(1) for part in (images, reference_images))
        return torch.cosine_similarity(one - one.mean(1, True), other - other.mean(1, True))


@pytest.mark.parametrize(("scorer", "told"), [(Brightness(), True), (Pattern(), False)])
def test_a_verifier_of_style_is_told_once_with_its_figure(
    scorer: SimilarityScorer, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check, everywhere = VerifierCheck(scorer, "mine", 0.9), torch.get_rng_state()
    for seed in range(ENOUGH // 8):
        assert check.auc is None
        check.see(make_batch(8, seed=seed))
    assert torch.equal(everywhere, torch.get_rng_state())
    assert check.auc is not None and (check.auc < 0.9) == told
    assert (f"AUC of {check.auc:.3f}" in caplog.text and "mine" in caplog.text) == told
    check.see(make_batch(8))
    assert caplog.text.count("AUC") == told


def test_a_picture_of_the_same_text_is_no_other_one() -> None:
    check = VerifierCheck(Pattern(), "mine", 0.9)
    rows = make_batch(2)
    rows.captions = ["the same", "the same"]
    check.see(rows)
    check.judge()
    assert check.auc is None


def test_auc_counts_ties_half() -> None:
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == 0.875
