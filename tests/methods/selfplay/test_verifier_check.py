"""Whether the similarity knows content from style is measured, and told with its figure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.methods.selfplay.helpers import make_batch
from unigame.methods.selfplay.verifier_check import ENOUGH, OTHERS, VerifierCheck, auc, half_another
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
    assert (f"is {check.auc:.3f}" in caplog.text and "mine" in caplog.text) == told
    check.see(make_batch(8))
    assert caplog.text.count("AUC") == told


@pytest.mark.parametrize("size", [1, 2])
def test_what_was_never_measured_is_said_once_at_the_end(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of one has no other picture, and a picture of the same text is no other one."""
    check = VerifierCheck(Pattern(), "mine", 0.9)
    check.judge()
    assert not caplog.text, "a run that saw no picture has nothing to say"
    rows = make_batch(size)
    rows.captions = ["the same"] * size
    for _ in range(ENOUGH):
        check.see(rows)
    assert not caplog.text, "a later batch may still have two"
    check.judge()
    check.judge()
    assert check.auc is None
    assert caplog.text.count("(mine)") == 1 and "not measured (verifier_check=0.9)" in caplog.text


def test_half_another_is_the_same_in_one_pass_and_in_several() -> None:
    rows = make_batch(7)
    rows.captions[3] = rows.captions[4]
    whole_E, made_of_E = half_another(Pattern(), rows.pictures, rows.texts)
    parts_E, made_of_parts_E = half_another(Pattern(), rows.pictures, rows.texts, at_once=2)
    assert len(whole_E) == 7 * OTHERS * 2 - 2
    assert torch.allclose(whole_E.sort().values, parts_E.sort().values)
    assert torch.equal(made_of_E.bincount(), made_of_parts_E.bincount())
    assert made_of_E.bincount().tolist() == [6, 6, 6, 4, 6, 6, 6]


def test_auc_counts_ties_half() -> None:
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == 0.875
