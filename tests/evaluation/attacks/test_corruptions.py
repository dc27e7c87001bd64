import numpy as np
import pytest

from unigame.errors import UserError
from unigame.evaluation.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupt, item_rng


def picture(side, seed=0):
    """Smooth waves and an edge, the same at any size, as uint8 (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(seed)
    waves = np.sin(2 * np.pi * (rng.uniform(1, 4, 3) * x[..., None] + rng.random(3)))
    values = 120 + 60 * waves + 50 * (y[..., None] > rng.uniform(0.3, 0.7))
    return values.clip(0, 255).astype(np.uint8)


def distance(one, two):
    return np.abs(one.astype(float) - two).mean()


@pytest.mark.parametrize("side", [48, 192])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name, side):
    pictures = [picture(side, seed) for seed in range(3)]
    changed = [
        np.mean([distance(corrupt(p, name, s, f"q{i}"), p) for i, p in enumerate(pictures)])
        for s in SEVERITIES
    ]
    assert changed[0] > 0.1
    assert all(a < b for a, b in zip(changed, changed[1:], strict=False)), changed


@pytest.mark.parametrize("name", ["noise", "blur", "contrast", "occlusion"])
def test_a_severity_means_the_same_at_any_size(name):
    small, large = (
        np.mean(
            [distance(corrupt(picture(side), name, 3, f"q{i}"), picture(side)) for i in range(3)]
        )
        for side in (48, 192)
    )
    assert small == pytest.approx(large, rel=0.25)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_item_decides_and_the_input_stays(name):
    original = picture(48)
    kept = original.copy()
    first = corrupt(original, name, 2, "q1")
    assert first.dtype == np.uint8 and first.shape == original.shape
    assert (original == kept).all()
    assert (corrupt(original, name, 2, "q1") == first).all()
    random = name in ("noise", "occlusion")
    assert (corrupt(original, name, 2, "q2") != first).any() == random


def test_severities_of_an_item_share_their_luck():
    white = np.full((40, 60, 3), 255, np.uint8)
    covered = [(corrupt(white, "occlusion", s, "q") == 128).all(-1) for s in SEVERITIES]
    for smaller, larger in zip(covered, covered[1:], strict=False):
        assert not (smaller & ~larger).any()
    shares = [c.mean() for c in covered]
    assert shares == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.4], abs=0.01)
    grey = np.full((40, 60, 3), 128, np.uint8)
    mild, strong = (corrupt(grey, "noise", s, "q").astype(float) - 128 for s in (1, 2))
    assert np.corrcoef(mild.ravel(), strong.ravel())[0, 1] > 0.99
    assert strong.std() / mild.std() == pytest.approx(0.12 / 0.08, rel=0.02)


def test_figures_of_noise_and_contrast():
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert corrupt(grey, "noise", 1, "q").std() == pytest.approx(0.08 * 255, rel=0.03)
    half = np.zeros((10, 10, 3), np.uint8)
    half[:5] = 200
    assert np.unique(corrupt(half, "contrast", 1, "q")).tolist() == [60, 140]


def test_generators_are_told_apart_by_every_key():
    draws = {
        item_rng(*keys).integers(1 << 60) for keys in (("a", "b"), ("a", "c"), ("ab",), ("a",))
    }
    assert len(draws) == 4


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [("fog", 1, "unknown corruption 'fog'; choose from noise"), ("blur", 6, "severity 6 of blur")],
)
def test_what_is_unknown_is_named(name, severity, message):
    with pytest.raises(UserError, match=message):
        corrupt(picture(8), name, severity, "q")
