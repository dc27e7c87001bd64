import numpy as np
import pytest

from unigame.errors import UserError
from unigame.reports.bootstrap import bootstrap_difference, bootstrap_mean


def naive_interval(values, clusters, resamples, seed):
    """The textbook loop: draw whole clusters with replacement and average their questions."""
    rng = np.random.default_rng(seed)
    groups = [values[clusters == c] for c in np.unique(clusters)]
    means = []
    for _ in range(resamples):
        drawn = rng.integers(len(groups), size=len(groups))
        means.append(np.concatenate([groups[i] for i in drawn]).mean())
    return np.quantile(means, [0.025, 0.975])


def test_agrees_with_the_textbook_loop_on_unequal_clusters():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), rng.integers(1, 9, size=40))
    values = (rng.random(40)[clusters] + rng.random(len(clusters)) > 1).astype(float)
    metric = bootstrap_mean(values, list(clusters), resamples=4000)
    low, high = naive_interval(values, clusters, 4000, seed=1)
    assert metric["value"] == pytest.approx(values.mean())
    assert metric["n"] == len(values)
    assert [metric["low"], metric["high"]] == pytest.approx([low, high], abs=0.01)


def test_clusters_of_equal_questions_widen_the_interval():
    answers = np.random.default_rng(0).integers(0, 2, size=50)
    values = np.repeat(answers, 20)
    alone = bootstrap_mean(values)
    clustered = bootstrap_mean(values, np.repeat(np.arange(50), 20).tolist())
    ratio = (clustered["high"] - clustered["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(np.sqrt(20), rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        metric = bootstrap_mean(rng.random(60) < 0.7, resamples=300, seed=seed)
        hits += metric["low"] <= 0.7 <= metric["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_cancels_the_difficulty_of_the_pictures():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    baseline = difficulty + 0.01 * rng.random(400)
    better = difficulty + 0.02 + 0.01 * rng.random(400)
    gap = bootstrap_difference(better, baseline)
    assert gap["value"] == pytest.approx(0.02, abs=0.002)
    assert gap["low"] > 0
    wide = bootstrap_mean(better)
    assert wide["high"] - wide["low"] > 5 * (gap["high"] - gap["low"])


def test_equal_arms_differ_by_exactly_nothing():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_difference(values, values) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_seed_decides_and_cluster_names_do_not():
    values = np.random.default_rng(0).random(30)
    ids = [i // 3 for i in range(30)]
    first = bootstrap_mean(values, ids, seed=3)
    assert bootstrap_mean(values, [f"scene-{i}" for i in ids], seed=3) == first
    assert bootstrap_mean(values, ids, seed=4) != first


def test_blocks_of_resamples_change_nothing(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_mean(values, resamples=100)
    monkeypatch.setattr("unigame.reports.bootstrap._BLOCK_CELLS", 70)
    assert bootstrap_mean(values, resamples=100) == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "values is empty"),
        (lambda: bootstrap_mean([1.0, float("nan")]), r"values\[1\] is nan"),
        (lambda: bootstrap_mean([1.0, 0.0], ["a"]), "1 clusters for 2 questions"),
        (lambda: bootstrap_mean([1.0], level=1.5), "level is 1.5"),
        (lambda: bootstrap_mean([1.0], resamples=0), "resamples is 0"),
        (lambda: bootstrap_difference([1.0, 0.0], [1.0]), "got 2 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
