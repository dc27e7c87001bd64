import json
from dataclasses import replace

import numpy as np
import pytest

from unigame.errors import UserError
from unigame.reports import metrics
from unigame.reports.metrics import (
    Metric,
    Unit,
    difference,
    estimate,
    from_json,
    resampled_figures,
    to_json,
    value_of,
)


def mean_metric(values, clusters=None, groups=None, **fields):
    units = tuple(
        Unit(
            f"q{i}",
            (float(v),),
            "" if clusters is None else str(clusters[i]),
            "" if groups is None else groups[i],
        )
        for i, v in enumerate(values)
    )
    return Metric("acc", "Acc", units, **fields)


def yes_no(statistic, *counts, **fields):
    units = tuple(Unit(f"q{i}", c) for i, c in enumerate(counts))
    return Metric(statistic, statistic, units, statistic=statistic, **fields)


TP, FP, FN, TN, NEITHER = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)
REPLIES = (TP, TP, TP, FP, FN, FN, TN, NEITHER)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("accuracy", 4 / 8),
        ("precision", 3 / 4),
        ("recall", 3 / 5),
        ("f1", 2 / (4 / 3 + 5 / 3)),
        ("yes_ratio", 4 / 8),
    ],
)
def test_statistics_of_yes_no_questions(statistic, expected):
    assert value_of(yes_no(statistic, *REPLIES)) == pytest.approx(100 * expected)


@pytest.mark.parametrize("statistic", ["precision", "recall", "f1"])
def test_nothing_to_divide_by_is_zero(statistic):
    assert estimate(yes_no(statistic, TN, TN)) == {"value": 0, "low": 0, "high": 0, "n": 2}


def test_groups_are_averaged_not_units():
    metric = mean_metric([1, 1, 1, 0], groups=["a", "a", "a", "b"], per_group=True, scale=1)
    assert value_of(metric) == 0.5
    assert value_of(replace(metric, per_group=False)) == 0.75


def test_weights_are_renormalised_over_the_groups_present():
    weights = {"a": 0.4, "b": 0.1, "absent": 0.5}
    metric = mean_metric([1, 0], groups=["a", "b"], per_group=True, weights=weights, scale=1)
    assert value_of(metric) == pytest.approx(0.8)


def test_a_resample_without_a_group_averages_the_others():
    """One unit each: a resample of (a, a) is 1, of (b, b) is 0, of both is the weighted mean."""
    weights = {"a": 0.75, "b": 0.25}
    metric = mean_metric([1, 0], groups=["a", "b"], per_group=True, weights=weights, scale=1)
    figures, times = np.unique(resampled_figures(metric, 4000), return_counts=True)
    assert figures.tolist() == [0, 0.75, 1]
    assert (times / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def textbook(metric, statistic, resamples=3000, seed=1):
    """Draw clusters with replacement, one resample after the other, and compute from the units."""
    rng = np.random.default_rng(seed)
    clusters = {}
    for unit in metric.units:
        clusters.setdefault(unit.cluster or unit.id, []).append(unit)
    names = list(clusters)
    drawn = [
        statistic(
            [u for c in rng.integers(len(names), size=len(names)) for u in clusters[names[c]]]
        )
        for _ in range(resamples)
    ]
    return np.quantile(drawn, [0.025, 0.975])


def macro_f1(units):
    figures = []
    for group in {u.group for u in units}:
        tp, fp, fn, _ = np.sum([u.counts for u in units if u.group == group], axis=0)
        figures.append(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0)
    return 100 * np.mean(figures)


def test_the_interval_of_a_macro_f1_agrees_with_the_textbook_loop():
    """POPE's overall: three subsets over the same pictures."""
    rng = np.random.default_rng(0)
    units = tuple(
        Unit(f"{subset}/{i}", replies[rng.integers(len(replies))], f"picture {i // 2}", subset)
        for subset, replies in (("random", (TP, TP, TN)), ("popular", REPLIES), ("hard", (TP, FP)))
        for i in range(40)
    )
    metric = Metric("f1", "F1", units, statistic="f1", per_group=True)
    figure = estimate(metric, resamples=6000)
    assert figure["value"] == pytest.approx(macro_f1(units))
    assert [figure["low"], figure["high"]] == pytest.approx(textbook(metric, macro_f1), abs=0.8)


def test_a_plain_mean_agrees_with_the_textbook_loop_on_unequal_clusters():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), rng.integers(1, 9, size=40))
    values = (rng.random(40)[clusters] + rng.random(len(clusters)) > 1).astype(float)
    metric = mean_metric(values, clusters, scale=1)
    figure = estimate(metric, resamples=4000)
    assert figure["value"] == pytest.approx(values.mean()) and figure["n"] == len(values)
    expected = textbook(metric, lambda units: np.mean([u.counts[0] for u in units]), 4000)
    assert [figure["low"], figure["high"]] == pytest.approx(expected, abs=0.01)


def width(figure):
    return figure["high"] - figure["low"]


def test_clusters_of_equal_questions_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, size=50), 20)
    alone, clustered = (
        estimate(mean_metric(values, clusters)) for clusters in (None, np.repeat(np.arange(50), 20))
    )
    assert width(clustered) / width(alone) == pytest.approx(np.sqrt(20), rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        figure = estimate(mean_metric(rng.random(60) < 0.7, scale=1), resamples=300, seed=seed)
        hits += figure["low"] <= 0.7 <= figure["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_the_seed_decides_and_cluster_names_do_not():
    values, ids = np.random.default_rng(0).random(30), [i // 3 for i in range(30)]
    first = estimate(mean_metric(values, ids), seed=3)
    assert estimate(mean_metric(values, [f"scene-{i}" for i in ids]), seed=3) == first
    assert estimate(mean_metric(values, ids), seed=4) != first


def test_equal_clusters_are_drawn_as_one_kind(monkeypatch):
    """A thousand right and wrong answers are two kinds: blocks hold two cells a resample."""
    seen, draw = [], metrics._resampled_sums

    def spy(sums_CK, *rest):
        seen.append(len(sums_CK))
        return draw(sums_CK, *rest)

    monkeypatch.setattr(metrics, "_resampled_sums", spy)
    figure = estimate(mean_metric([1.0] * 700 + [0.0] * 300))
    assert seen == [2]
    sigma = 100 * np.sqrt(0.7 * 0.3 / 1000)
    assert width(figure) == pytest.approx(2 * 1.96 * sigma, rel=0.08)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    metric = mean_metric(np.random.default_rng(0).random(30))
    whole = estimate(metric, resamples=100)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 70)
    assert estimate(metric, resamples=100) == whole


def test_a_difference_is_paired_on_shared_ids_whatever_their_order():
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    base = mean_metric(difficulty, scale=1)
    better = mean_metric(difficulty + 0.02 + 0.01 * rng.random(400), scale=1)
    shuffled = replace(better, units=tuple(rng.permutation(np.array(better.units, dtype=object))))
    extra = replace(shuffled, units=(*shuffled.units, Unit("only here", (100.0,))))
    gap = difference(extra, base)
    assert gap["n"] == gap["clusters"] == 400
    assert gap["value"] == pytest.approx(0.025, abs=0.002)
    assert 0 < gap["low"] < gap["value"] < gap["high"] < 0.03
    gaps = [u.counts[0] - b.counts[0] for u, b in zip(better.units, base.units, strict=True)]
    direct = estimate(mean_metric(gaps, scale=1))
    assert [gap["low"], gap["high"]] == pytest.approx([direct["low"], direct["high"]], abs=2e-4)
    assert width(estimate(better)) > 5 * width(gap), "pairing cancels how hard the pictures are"


def test_the_groups_of_a_unit_are_part_of_its_name():
    """UnifiedBench: one picture, several encoders; the picture is one cluster."""
    units = tuple(Unit(str(i), (e + i,), group=f"enc{e}") for i in range(4) for e in range(2))
    metric = Metric("overall", "Overall", units, per_group=True, scale=1)
    gap = difference(metric, metric)
    assert gap == {"value": 0, "low": 0, "high": 0, "n": 8, "clusters": 4}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (mean_metric([]), "acc has no figure: no item was scored"),
        (mean_metric([1.0], statistic="median"), "unknown statistic 'median'; choose from mean"),
        (mean_metric([1.0], statistic="f1"), "unit 'q0' has 1 counts; f1 takes 4"),
        (mean_metric([1.0, float("nan")]), "the counts of 'q1' are"),
        (
            mean_metric([1.0], groups=["x"], per_group=True, weights={"a": 1.0}),
            "no weight for group 'x'",
        ),
    ],
)
def test_bad_metrics_are_named(metric, message):
    with pytest.raises(UserError, match=message):
        estimate(metric)


@pytest.mark.parametrize("setting", [{"level": 1.5}, {"resamples": 0}])
def test_impossible_settings_of_the_bootstrap_are_named(setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"{name} is {value}"):
        estimate(mean_metric([1.0]), **setting)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (mean_metric([1.0], scale=1), "scale is 100.0 in one record"),
        (Metric("acc", "Acc", (Unit("z", (1.0,)),)), "no question in common"),
        (Metric("acc", "Acc", (Unit("q0", (1.0,)),) * 2), "'q0' occurs twice"),
    ],
)
def test_metrics_that_cannot_be_paired_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        difference(mean_metric([1.0]), other)


@pytest.mark.parametrize(
    "metric",
    [
        mean_metric([1, 0.3, 0], clusters=["a", "a", "b"]),
        mean_metric([1, 0], groups=["a", "b"], per_group=True, weights={"a": 0.4, "b": 0.6}),
        yes_no("f1", *REPLIES, scale=1.0),
    ],
)
def test_the_record_form_holds_everything(metric):
    figure = estimate(metric)
    entry = json.loads(json.dumps(to_json(metric)))
    assert from_json(metric.name, entry) == metric
    assert {key: entry[key] for key in figure} == figure


def test_the_record_form_is_compact():
    entry = to_json(mean_metric([1.0] * 1000))
    assert entry["units"]["cluster"] is entry["units"]["group"] is None
    assert entry["units"]["counts"] == [[1] * 1000]
    assert len(json.dumps(entry["units"])) < 12 * 1000


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda e: e.pop("statistic"), "no 'statistic'"),
        (lambda e: e["units"]["counts"].append([1]), "argument 2 is shorter"),
        (lambda e: e["units"]["id"].append("q9"), "shorter"),
        (lambda e: e["units"].update(counts=[["x", "y"]]), "could not convert"),
        (lambda e: e.update(units=None), "not subscriptable"),
    ],
)
def test_a_damaged_metric_is_named(damage, reason):
    entry = to_json(mean_metric([1, 0]))
    damage(entry)
    with pytest.raises(UserError, match=rf"sft.json: metric 'acc' is damaged \(.*{reason}"):
        from_json("acc", entry, "sft.json")


def test_the_record_form_says_how_many_clusters_there_are():
    """One cluster has no interval, whatever its width."""
    assert to_json(mean_metric([0, 1, 1], clusters=[7, 7, 7]))["clusters"] == 1
    assert to_json(mean_metric([0, 1, 1]))["clusters"] == 3
