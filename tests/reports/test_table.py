import csv
import io
import json

import pytest
from rich.console import Console

from unigame.errors import UserError
from unigame.reports.results import load_results, parse_results
from unigame.reports.table import print_table, to_csv, to_markdown, verdict

ARMS = ("base", "sft", "sft_equal_samples", "round_trip", "unigame")


def figure(value, spread=0.01):
    return {"value": value, "low": value - spread, "high": value + spread, "n": 500}


def gap(value, spread=0.01):
    return {"value": value, "low": value - spread, "high": value + spread}


def raw_results(gaps, info=None):
    """Every arm at 0.8 on each metric; ``gaps``: {arm: {metric: difference to SFT}}."""
    metrics = dict.fromkeys(m for entry in gaps.values() for m in entry)
    return {
        "arms": {
            arm: {"metrics": {m: figure(0.8) for m in metrics}, "steps": 100, "seconds": 12.3}
            for arm in ARMS
        },
        "differences": {
            arm: {metric: gap(value) for metric, value in entry.items()}
            for arm, entry in gaps.items()
        },
        "metric_info": info or {m: {"unit": "share"} for m in metrics},
        "seed": 7,
        "config": {},
    }


def printed(results, **console):
    out = io.StringIO()
    options = {"width": 110, "color_system": None, **console}
    print_table(results, Console(file=out, **options))
    return out.getvalue()


def test_a_difference_is_marked_only_where_its_interval_excludes_zero():
    text = printed(
        parse_results(raw_results({"unigame": {"ood": 0.05, "id": 0.004, "pairs": -0.03}}))
    )
    row_after = {
        name: text.splitlines()[i + 1]
        for i, line in enumerate(text.splitlines())
        for name in ("ood", "id", "pairs")
        if line.split(",")[0].strip() == name
    }
    assert "+5.0 ▲" in row_after["ood"]
    assert "+0.4" in row_after["id"]
    assert "▲" not in row_after["id"] and "▼" not in row_after["id"]
    assert "-3.0 ▼" in row_after["pairs"]


def test_an_interval_that_touches_zero_is_not_a_difference():
    raw = raw_results({"unigame": {"ood": 0.05}})
    raw["differences"]["unigame"]["ood"] = {"value": 0.05, "low": 0.0, "high": 0.1}
    assert "▲" not in to_markdown(parse_results(raw)).split("\n\n")[0]


def test_lower_is_better_turns_the_mark_around():
    info = {"loss": {"label": "loss", "higher_is_better": False}}
    down = parse_results(raw_results({"unigame": {"loss": -0.05}}, info))
    up = parse_results(raw_results({"unigame": {"loss": 0.05}}, info))
    assert verdict(down) == "UniGame beat SFT on: loss."
    assert verdict(up) == "UniGame did not beat SFT on any figure; worse than SFT on: loss."


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        (
            {"a": 0.05, "b": 0.0, "c": -0.05},
            "UniGame beat SFT on: a; no measurable difference on: b; worse than SFT on: c.",
        ),
        (
            {"a": 0.0, "b": 0.0, "c": 0.0},
            "UniGame did not beat SFT on any figure; no measurable difference on: a, b and c.",
        ),
        ({"a": 0.05, "b": 0.06}, "UniGame beat SFT on: a and b."),
    ],
)
def test_the_verdict_says_whatever_came_out(gaps, sentence):
    assert verdict(parse_results(raw_results({"unigame": gaps}))) == sentence


def test_without_intervals_of_differences_nothing_is_claimed():
    raw = raw_results({"unigame": {"ood": 0.05}})
    del raw["differences"]
    results = parse_results(raw)
    assert verdict(results).startswith("No verdict")
    assert "▲" not in to_markdown(results)
    del raw["arms"]["sft"]
    assert verdict(parse_results(raw)).startswith("No verdict")


def test_a_gain_that_a_control_shares_is_not_credited_to_the_attack():
    both = {"unigame": {"ood": 0.05}, "round_trip": {"ood": 0.05}}
    only = {"unigame": {"ood": 0.05}, "round_trip": {"ood": 0.0}}
    assert "control without any attack beat SFT" in printed(parse_results(raw_results(both)))
    assert "control without any attack" not in printed(parse_results(raw_results(only)))


def test_output_for_ascii_terminals_has_no_other_characters_in_its_marks():
    class AsciiConsole(Console):
        encoding = "ascii"

    out = io.StringIO()
    results = parse_results(raw_results({"unigame": {"ood": 0.05}}))
    print_table(results, AsciiConsole(file=out, width=110, color_system=None))
    out.getvalue().encode("ascii")
    assert "+5.0 (+)" in out.getvalue()


def test_markdown_writes_intervals_out_and_names_what_the_spread_covers():
    text = to_markdown(parse_results(raw_results({"unigame": {"ood": 0.05}})))
    assert text.splitlines()[0] == "| | base | SFT | SFT, equal samples | round trip | UniGame |"
    assert "80.0 [79.0, 81.0]<br>+5.0 [+4.0, +6.0] ▲ |" in text
    assert "(seed 7)" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_csv_keeps_unrounded_figures():
    raw = raw_results({"unigame": {"ood": 0.05}})
    raw["arms"]["unigame"]["metrics"]["ood"]["value"] = 0.8123456789
    rows = list(csv.DictReader(io.StringIO(to_csv(parse_results(raw)))))
    assert [row["arm"] for row in rows] == list(ARMS)
    assert float(rows[-1]["value"]) == 0.8123456789
    assert float(rows[-1]["minus_sft_low"]) == pytest.approx(0.04)
    assert rows[0]["minus_sft"] == ""


def test_an_arm_without_a_figure_gets_a_dash():
    raw = raw_results({"unigame": {"ood": 0.05}})
    del raw["arms"]["base"]["metrics"]["ood"]
    assert "| ood, % | - |" in to_markdown(parse_results(raw))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw.pop("arms"), 'has no "arms"'),
        (lambda raw: raw["arms"]["sft"].pop("metrics"), "arm 'sft' has no \"metrics\""),
        (
            lambda raw: raw["arms"]["sft"]["metrics"].update(ood={"value": None}),
            "sft.ood has value = None",
        ),
        (lambda raw: raw["arms"]["sft"]["metrics"].update(ood=3), "sft.ood is 3"),
    ],
)
def test_damaged_results_are_one_clear_error(damage, message, tmp_path):
    raw = raw_results({"unigame": {"ood": 0.05}})
    damage(raw)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        load_results(path)


def test_missing_and_malformed_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_results(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_results(tmp_path / "bad.json")
