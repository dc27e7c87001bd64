import numpy as np
import pytest

from unigame.errors import UserError
from unigame.evaluation.base import Scored
from unigame.evaluation.summary import summarise
from unigame.reports.combined import Part, combine, combined_difference
from unigame.reports.metrics import Metric, Unit, estimate


def scored(values, name="accuracy", scale=100.0, **fields):
    units = tuple(Unit(f"q{i}", (float(v),)) for i, v in enumerate(values))
    return Scored([Metric(name, name, units, scale=scale)], **fields)


def cosines(seed, size=100, **fields):
    return scored(np.random.default_rng(seed).uniform(0.7, 1, size), "overall", **fields)


def wise(seed, **fields):
    return scored(np.random.default_rng(seed).uniform(0, 1, 200), "overall", scale=1.0, **fields)


def understanding(**values):
    return {name: scored(v) for name, v in values.items()}


def test_consistency_is_the_formula_of_its_columns():
    parts = {"unifiedbench": cosines(0), "wise": wise(1)}
    score = summarise(parts)["consistency"]
    first, second = (estimate(parts[name].metrics[0]) for name in ("unifiedbench", "wise"))
    assert second["value"] < 1 < first["value"]  # two scales, as the benchmarks print them
    assert score["value"] == pytest.approx(0.6 * first["value"] + 0.4 * 100 * second["value"])
    assert [part["value"] for part in score["parts"]] == pytest.approx(
        [first["value"], 100 * second["value"]]
    )


def test_the_interval_adds_independent_luck():
    parts = {"unifiedbench": cosines(0), "wise": wise(1)}
    score = summarise(parts)["consistency"]
    spread = [
        weight * (e["high"] - e["low"])
        for weight, e in zip(
            (0.6, 40), (estimate(p.metrics[0]) for p in parts.values()), strict=True
        )
    ]
    assert score["high"] - score["low"] == pytest.approx(np.hypot(*spread), rel=0.06)
    assert score["low"] < score["value"] < score["high"]


def test_understanding_is_the_mean_of_four_headlines():
    parts = understanding(vqav2=[1, 1], mmmu=[1, 0], mmbench=[0, 0], pope=[1, 0])
    parts["pope"].metrics.append(scored([1, 1], "f1").metrics[0])
    score = summarise(parts)["understanding"]
    assert score["value"] == pytest.approx(50)
    assert score["parts"][3]["metric"] == "accuracy"
    assert summarise(parts)["consistency"] is None


@pytest.mark.parametrize(
    ("parts", "key", "reason"),
    [
        ({"wise": wise(0)}, "consistency", "needs unifiedbench as well"),
        (
            {"wise": wise(0), "unifiedbench": scored([0.8], "proxy_3_encoders")},
            "consistency",
            "fewer than four encoders",
        ),
        (
            {"wise": scored([]), "unifiedbench": cosines(0)},
            "consistency",
            "has nothing scored in wise",
        ),
        (
            {"wise": Scored([]), "unifiedbench": cosines(0)},
            "consistency",
            "has nothing scored in wise",
        ),
        (understanding(vqav2=[1], pope=[1]), "understanding", "needs mmmu, mmbench as well"),
    ],
)
def test_an_incomplete_score_is_refused(parts, key, reason):
    score = summarise(parts)[key]
    assert score["value"] is None
    assert reason in score["reason"]


def test_the_difference_of_two_scores_is_paired_part_by_part():
    base = [Part(cosines(0).metrics[0], 0.6), Part(wise(1).metrics[0], 0.4)]

    def moved(part, by):
        units = tuple(Unit(u.id, (u.counts[0] + by,)) for u in part.metric.units)
        return Part(Metric("overall", "overall", units, scale=part.metric.scale), part.weight)

    gap = combined_difference([moved(base[0], 0.02), moved(base[1], 0.01)], base)
    expected = 0.6 * 2 + 0.4 * 1
    assert [gap["value"], gap["low"], gap["high"]] == pytest.approx([expected] * 3)
    assert (gap["n"], gap["clusters"]) == (300, 100)
    with pytest.raises(UserError, match="cannot be compared with one made of"):
        combined_difference(base, base[:1])


def test_equal_parts_have_luck_of_their_own():
    """The same figures twice: drawn together they would be as uncertain as one of them."""
    metric = cosines(0).metrics[0]
    parts = [Part(metric, 0.5), Part(metric, 0.5)]
    alone, both = estimate(metric), combine(parts)
    spreads = [figure["high"] - figure["low"] for figure in (both, alone)]
    assert spreads[0] / spreads[1] == pytest.approx(2**-0.5, rel=0.08)
    zero = Metric("overall", "overall", tuple(Unit(u.id, (0.0,)) for u in metric.units))
    gap = combined_difference(parts, [Part(zero, 0.5), Part(zero, 0.5)])
    assert (gap["high"] - gap["low"]) / spreads[1] == pytest.approx(2**-0.5, rel=0.08)
