import csv
import io
import json
import re

import pytest
from rich.console import Console

from tests.reports.record_files import answers, benchmark, four, mean_metric, record, write
from unigame import cli
from unigame.errors import UserError
from unigame.reports.compare import Cell, compare, verdict
from unigame.reports.metrics import Metric, Unit, difference
from unigame.reports.record_text import print_record
from unigame.reports.records import read_record
from unigame.reports.tables import print_comparison, to_csv, to_latex, to_markdown


@pytest.fixture
def compared(tmp_path):
    """Write records, read them back and compare: {label: record or its benchmarks}."""

    def run(baseline=0, **raw):
        records = [
            read_record(write(tmp_path, name, r if "format" in r else record(r, sha=name)))
            for name, r in raw.items()
        ]
        return compare(records, list(raw), baseline), records

    return run


def pope(right=0.5, seed=0, **fields):
    return {"pope": benchmark("pope", mean_metric(answers(right, seed)), **fields)}


def only_cells(comparison):
    return [row[0] for row in comparison.tables[0].cells]


def test_a_difference_is_paired_and_marked_where_its_interval_excludes_zero(compared):
    comparison, _ = compared(base=pope(0.4), better=pope(0.7), same=pope(0.42))
    base, better, same = only_cells(comparison)
    assert base.gap is None
    metrics = [mean_metric(answers(right)) for right in (0.7, 0.4)]
    expected = difference(*metrics)
    assert (better.gap["value"], better.gap["low"]) == (expected["value"], expected["low"])
    assert better.gap["low"] > 0
    assert same.gap["low"] <= 0 <= same.gap["high"] and same.mark == 0
    text = to_markdown(comparison)
    row = {name: next(x for x in text.splitlines() if x.startswith(f"| {name}")) for name in
           ("base", "better", "same")}  # fmt: skip
    assert "▲" in row["better"] and "▲" not in row["same"] and "<br>" not in row["base"]


def test_the_baseline_can_be_any_of_them(compared):
    comparison, _ = compared(baseline=1, one=pope(0.4), two=pope(0.7))
    one, two = only_cells(comparison)
    assert two.gap is None
    assert one.gap["high"] < 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"dataset": {"id": "org/pope", "fingerprint": "beef"}, "counts": {"items": 10}},
            "the data differ (10 and 60 items)",
        ),
        (
            {"variant": {"prompt": "bare", "parser": "official"}},
            "variant prompt: bare and lmms_eval",
        ),
        (
            {"variant": {"prompt": "lmms_eval", "parser": "strict"}},
            "variant parser: strict and official",
        ),
        ({"scorer": {"judge": {"name": "hf:x"}}}, "scorer judge: {'name': 'hf:x'} and None"),
    ],
)
def test_unlike_records_get_no_difference_but_a_reason(compared, fields, reason):
    comparison, records = compared(base=pope(0.3), other=pope(0.9, **fields))
    cell = only_cells(comparison)[1]
    assert cell.figure is not None and cell.gap is None
    assert f"No difference for POPE, other: {reason}." in comparison.notes
    assert "<br>" not in to_markdown(comparison)
    assert next(csv_rows(comparison, records, "other"))["no_difference"] == reason


def test_different_judges_are_named(compared):
    judged = [pope(0.5, scorer={"judge": "hf:a"}), pope(0.5, scorer={"judge": "openai:b"})]
    comparison, _ = compared(base=judged[0], other=judged[1])
    assert comparison.notes[0] == "No difference for POPE, other: scorer judge: openai:b and hf:a."


@pytest.mark.parametrize("moved", [{}, {"temperature": 1}])
def test_a_judge_at_another_address_is_the_same_judge_if_asked_alike(compared, moved):
    here, there = (
        {"judge": "openai:m", "judge_settings": {"base_url": f"http://localhost:{port}", **other}}
        for port, other in ((8000, {}), (8001, moved))
    )
    comparison, _ = compared(base=pope(0.4, scorer=here), other=pope(0.7, scorer=there))
    assert (only_cells(comparison)[1].gap is None) == bool(moved)
    named = [note for note in comparison.notes if "judge_settings.temperature" in note]
    assert len(named) == len(moved)


def test_local_and_hub_data_with_the_same_content_are_the_same_data(compared):
    local = {"id": "pope", "split": "test", "fingerprint": "f00d"}
    comparison, _ = compared(base=pope(0.4), other=pope(0.7, dataset=local))
    assert only_cells(comparison)[1].gap is not None


def test_the_same_questions_about_other_pictures_get_no_difference(compared):
    comparison, _ = compared(base=pope(0.4, pictures="aa"), other=pope(0.7, pictures="bb"))
    assert only_cells(comparison)[1].gap is None and "pictures differ" in comparison.notes[0]
    comparison, _ = compared(old=pope(0.4), new=pope(0.7, pictures="bb"))
    assert only_cells(comparison)[1].gap is not None, "an earlier version noted none"


def test_unparsed_replies_of_an_older_record_are_noted(compared):
    counts = {"items": 60, "scored": 60, "unparsed": 36, "skipped": {}, "unscored": {}}
    comparison, _ = compared(base=pope(0.4), other=pope(0.4, counts=counts))
    assert any("POPE, other: 36 of 60 replies are unparsed" in note for note in comparison.notes)


def test_a_handful_of_pictures_shows_no_difference(compared):
    few = [{"pope": benchmark("pope", mean_metric([v] * 18))} for v in (0, 1)]
    comparison, _ = compared(base=few[0], other=few[1])
    assert only_cells(comparison)[1].gap is None
    assert "only 9 pictures or groups in common, at least 10 needed" in comparison.notes[0]


def test_a_difference_over_some_of_the_items_says_so(compared):
    fewer = {"pope": benchmark("pope", mean_metric(answers(0.5)[:40]))}
    comparison, _ = compared(base=fewer, other=pope(0.5))
    assert only_cells(comparison)[1].gap["n"] == 40
    assert any("the difference is over 40 of 60" in note for note in comparison.notes)


def test_a_benchmark_of_one_record_is_shown_without_a_difference(compared):
    mmmu = {"mmmu": benchmark("mmmu", mean_metric(answers(0.5)))}
    comparison, _ = compared(base=pope(), other=mmmu)
    assert comparison.tables[0].columns == ("MMMU", "POPE")
    (mmmu_base, pope_base), (mmmu_other, pope_other) = comparison.tables[0].cells
    assert mmmu_base.figure is pope_other.figure is None
    assert mmmu_other.figure and mmmu_other.gap is None and pope_base.figure
    assert "| other | " in to_markdown(comparison)


def test_the_paper_s_tables_have_its_columns_in_its_order(compared):
    understanding, summary = four(0.5)
    others = {
        name: benchmark(name, mean_metric(answers(0.5), scale=scale))
        for name, scale in
        [("advqa", 100), ("naturalbench", 100), ("wise", 1), ("unifiedbench", 100), ("dpg", 100),
         ("geneval", 1)]
    }  # fmt: skip
    raw = record({**others, **understanding}, summary=summary)
    comparison, _ = compared(base=raw, other={**raw, "model": {"id": "x"}})
    assert [grid.columns for grid in comparison.tables] == [
        ("VQAv2", "MMMU", "MMBench", "POPE", "overall"),
        ("GenEval", "DPG", "UnifiedBench", "WISE"),
        ("NaturalBench", "AdVQA"),
    ]
    generation = comparison.tables[1].cells[0]
    scales = (1, 100, 100, 1)
    shown = [cell.show(0.5 * scale) for cell, scale in zip(generation, scales, strict=True)]
    assert shown == ["0.500", "50.0", "50.00", "0.500"]
    assert list(comparison.details) == [*others, *understanding]


def test_a_benchmark_that_the_paper_does_not_have_gets_a_table_too(compared):
    chess = {"chess": benchmark("chess", mean_metric(answers(0.5)))}
    comparison, _ = compared(base=chess, other=chess)
    assert [(grid.title, grid.columns) for grid in comparison.tables] == [
        ("Further benchmarks", ("chess",))
    ]


def test_the_overall_is_compared_part_by_part(compared):
    (base, base_score), (better, better_score) = four(0.4), four(0.6)
    comparison, records = compared(
        base=record(base, summary=base_score), better=record(better, "b", summary=better_score)
    )
    cells = [row[-1] for row in comparison.tables[0].cells]
    gaps = [cell.gap["value"] for cell in comparison.tables[0].cells[1][:4]]
    assert cells[1].gap["value"] == pytest.approx(sum(gaps) / 4)
    assert cells[1].gap["value"] == pytest.approx(
        cells[1].figure["value"] - cells[0].figure["value"]
    )
    assert cells[1].gap["low"] > 0
    rows = [row for row in csv_rows(comparison, records, "better") if row["benchmark"] == "summary"]
    assert float(rows[0]["difference"]) == cells[1].gap["value"]


def test_an_overall_with_an_unlike_part_is_not_compared(compared):
    (base, base_score), (other, other_score) = four(0.4), four(0.6)
    other["pope"]["variant"] = {"prompt": "bare", "parser": "official"}
    comparison, _ = compared(
        base=record(base, summary=base_score), other=record(other, "b", summary=other_score)
    )
    assert comparison.tables[0].cells[1][-1].gap is None
    note = "No difference for understanding, other: its part POPE differs."
    assert note in comparison.notes


def test_a_refused_score_gives_its_reason(compared):
    summary = {"consistency": {"value": None, "reason": "needs wise as well"}}
    comparison, _ = compared(base=record(pope(), summary=summary), other=pope())
    assert "No consistency score, base: needs wise as well." in comparison.notes


def test_damaged_parts_of_a_score_are_named(compared):
    (base, score) = four(0.4)
    score["understanding"]["parts"] = [{"benchmark": "chess"}]
    raw = record(base, summary=score)
    with pytest.raises(UserError, match="parts of the understanding score are damaged"):
        compared(base=raw, other=raw)


def test_what_was_left_out_is_noted(compared):
    counts = {"items": 60, "skipped": {"corrupt image": 2}, "unscored": {"judge: 500": 1}}
    comparison, _ = compared(
        base=pope(generation={"max_new_tokens": 16}),
        other=pope(counts=counts, generation={"max_new_tokens": 8}, warnings=["slow"]),
    )
    assert set(comparison.notes) == {
        "POPE, other: skipped: 2 corrupt image.",
        "POPE, other: unscored: 1 judge: 500.",
        "POPE, other: slow",
        "POPE: max_new_tokens is 8 for other and 16 for base.",
    }
    assert only_cells(comparison)[1].gap is not None


def test_what_is_true_of_all_models_is_noted_once(compared):
    noted = {name: pope(warnings=["slow"]) for name in ("base", "one", "two")}
    assert compared(**noted)[0].notes == ("POPE, every model: slow",)
    noted = {"zero": pope(warnings=["fast"]), **{f"new {n}": pope(warnings=["slow"]) for n in "ab"}}
    assert compared(**noted)[0].notes == ("POPE, zero: fast", "POPE, every model but zero: slow")


def test_what_training_cost_is_noted(compared):
    trained = record(pope(), sha="b") | {"training": {"steps": 46, "seconds": 31.4}}
    comparison, _ = compared(base=pope(), sft=trained)
    assert comparison.notes == ("Training: sft 46 understanding steps in 31 s.",)


@pytest.mark.parametrize(
    ("rights", "sentence"),
    [
        (
            (0.9, 0.5, 0.1),
            "new beat old on: VQAv2; no measurable difference on: MMMU; worse than old on: POPE.",
        ),
        (
            (0.5, 0.5, 0.5),
            "new did not beat old on any figure; "
            "no measurable difference on: VQAv2, MMMU and POPE.",
        ),
        ((0.9, 0.9, 0.5), "new beat old on: VQAv2 and MMMU; no measurable difference on: POPE."),
    ],
)
def test_the_verdict_says_whatever_came_out(compared, rights, sentence):
    old, new = (
        {
            name: benchmark(name, mean_metric(answers(right)))
            for name, right in zip(names, r, strict=True)
        }
        for names, r in ((("vqav2", "mmmu", "pope"), shares) for shares in ((0.5,) * 3, rights))
    )
    assert verdict(compared(old=old, new=new)[0], 1) == sentence


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (0.5, "new did not beat old on any figure; no measurable difference on 3 figures."),
        (0.9, "new beat old on: VQAv2; no measurable difference on 2 others."),
    ],
)
def test_a_verdict_counts_what_is_too_much_to_name(compared, monkeypatch, first, sentence):
    monkeypatch.setattr("unigame.reports.compare.FEW", 1)
    old, new = (
        {
            name: benchmark(name, mean_metric(answers(right)))
            for name, right in zip(("vqav2", "mmmu", "pope"), rights, strict=True)
        }
        for rights in ((0.5, 0.5, 0.5), (first, 0.5, 0.5))
    )
    assert verdict(compared(old=old, new=new)[0], 1) == sentence


def test_without_differences_nothing_is_claimed(compared):
    unlike = pope(0.9, variant={"prompt": "bare", "parser": "official"})
    assert verdict(compared(base=pope(), other=unlike)[0], 1).startswith("No verdict")


def test_an_interval_that_touches_zero_is_no_mark():
    for low, high, mark in ((0.0, 0.1, 0), (-0.1, 0.0, 0), (0.01, 0.1, 1), (-0.1, -0.01, -1)):
        gap = {"value": (low + high) / 2, "low": low, "high": high, "n": 9, "clusters": 9}
        assert Cell("acc", "Acc", gap=gap).mark == mark
        assert Cell("yes_ratio", "yes", judged=False, gap=gap).mark == 0


def test_records_of_the_same_weights_are_noticed(compared):
    one = record(pope(), sha="aa", adapter="sft")
    comparison, _ = compared(base=record(pope(), sha="aa"), one=one, two=one)
    assert comparison.notes == ("one and two are the same weights.",)


def test_a_yes_ratio_is_neither_better_nor_worse(compared):
    def entry(counts):
        units = tuple(Unit(f"q{i}", counts) for i in range(30))
        metrics = [Metric(s, s, units, statistic=s) for s in ("accuracy", "yes_ratio")]
        return {"pope": benchmark("pope", *metrics)}

    comparison, _ = compared(base=entry((1, 0, 0, 0)), other=entry((0, 0, 1, 0)))
    lines = to_markdown(comparison).splitlines()
    details = {line.split(",")[0]: line for line in lines[lines.index("## Details") :]}
    assert "-100.0 [-100.0, -100.0] ▼" in details["| accuracy"]
    assert details["| yes_ratio"].rstrip(" |").endswith("-100.0 [-100.0, -100.0]")


def csv_rows(comparison, records, model):
    rows = csv.DictReader(io.StringIO(to_csv(comparison, records)))
    return (row for row in rows if row["model"] == model)


def test_csv_has_every_metric_unrounded(compared):
    metrics = [mean_metric([1 / 3] * 30), mean_metric([1] * 30, "other")]
    entry = {"pope": benchmark("pope", *metrics)}
    comparison, records = compared(base=entry, new=entry)
    rows = list(csv_rows(comparison, records, "new"))
    assert [(r["metric"], r["headline"]) for r in rows] == [("accuracy", "1"), ("other", "0")]
    assert float(rows[0]["value"]) == pytest.approx(100 / 3, abs=1e-12)
    assert (rows[0]["baseline"], float(rows[0]["difference"])) == ("base", 0)


def test_latex_is_balanced_and_escaped(compared):
    comparison, _ = compared(base=pope(0.4), **{"50%_{x}": pope(0.7)})
    text = to_latex(comparison)
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert r"50\%\_\{x\}" in text
    assert r"\uparrow" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert all(line.endswith(r" \\") and line.count("&") == 1 for line in body)
    assert len(body) == 3  # baseline, the other model, its difference
    assert "▲" not in text


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "▲"), ("ascii", "(+)")])
def test_the_terminal_shows_tables_and_notes(compared, encoding, sign):
    comparison, _ = compared(base=pope(0.4), other=pope(0.7, warnings=["slow"]))
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_comparison(comparison, Console(file=out, width=80))
    out.seek(0)
    text = out.read()
    assert "Understanding" in text and "POPE, %" in text and "POPE, other: slow" in text
    assert sign in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is not JSON"),
        ("[]", "is no record of an evaluation; pass what"),
        ('{"arms": {}}', "earlier version's demo; .*run/arms/\\*/evaluation"),
        ('{"format": "unigame-evaluation/9"}', "has the format 'unigame-evaluation/9'"),
        ('{"format": 3}', "is no record"),
        (record({}), "holds no benchmark"),
        (record({"pope": {"metrics": {}}}), "pope has no metrics"),
        (record({"pope": 3}), "pope has no metrics"),
        (record(pope(dataset=3)), "pope: dataset is 3, not an object"),
        ({**record(pope()), "model": "x"}, "model is 'x', not an object"),
        (record({"pope": {"metrics": {"f1": {"label": "F1"}}}}), "metric 'f1' is damaged"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, content, message):
    path = write(tmp_path, "run", content)
    with pytest.raises(UserError, match=message) as error:
        read_record(path)
    assert str(path) in str(error.value)


def test_a_figure_that_is_no_number_is_named(tmp_path):
    raw = record(pope())
    raw["benchmarks"]["pope"]["metrics"]["accuracy"]["low"] = None
    with pytest.raises(UserError, match=r"pope.accuracy has low = None"):
        read_record(write(tmp_path, "run", raw))


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*nowhere.*No such file"):
        read_record(tmp_path / "nowhere")


def test_the_folder_of_a_run_names_the_evaluations_inside(tmp_path):
    (tmp_path / "run1").mkdir()
    for name in ("evaluation", "base"):
        write(tmp_path / "run1", name, record(pope()))
    run = re.escape(str(tmp_path / "run1"))
    with pytest.raises(UserError, match=f"^{run} is the folder of a run.*: {run}/base, {run}/eval"):
        read_record(tmp_path / "run1")


def test_the_headline_comes_first_whatever_the_order_in_the_file(tmp_path):
    raw = record(pope())
    metrics = raw["benchmarks"]["pope"]["metrics"]
    raw["benchmarks"]["pope"]["metrics"] = {
        "other": metrics["accuracy"] | {"headline": False}, "acc": metrics["accuracy"]
    }  # fmt: skip
    found = read_record(write(tmp_path, "run", raw)).benchmarks["pope"]
    assert found.headline == "acc"


def test_answers_for_a_server_are_left_out(tmp_path):
    entry = {"metrics": {}, "variant": {"parser": "submission"}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(record({"vqav2": entry})))
    assert read_record(path).benchmarks == {}


# ---- records that cannot be believed -------------------------------------------------------------


def changed(path, value, metric="accuracy"):
    """A record of one benchmark with one value replaced; ``path`` is within the metric or entry."""
    raw = record(pope(0.5))
    entry = raw["benchmarks"]["pope"]
    place = entry["metrics"][metric] if path[0] != "entry" else entry
    *inner, last = path if path[0] != "entry" else path[1:]
    for key in inner:
        place = place[key]
    place[last] = value
    return raw


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "path",
    [
        ("value",),
        ("low",),
        ("n",),
        ("scale",),
        ("units", "counts", 0, 3),
        ("entry", "counts", "scored"),
        ("entry", "generation", "max_new_tokens"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path, path, number):
    file = write(tmp_path, "run", changed(path, number))
    with pytest.raises(UserError, match="NaN" if number != number else "Infinity") as caught:
        read_record(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_beyond_all_floats_is_refused(tmp_path):
    text = json.dumps(changed(("value",), 12345.5))
    for huge in ("1e400", "1" * 400):
        file = write(tmp_path, huge[:6], text.replace("12345.5", huge))
        with pytest.raises(UserError, match=huge[:3]):
            read_record(file)


@pytest.mark.parametrize("ids", [["q0"] * 60, [*[f"q{i}" for i in range(59)], "q0"]])
def test_a_question_that_occurs_twice_is_refused(tmp_path, ids):
    with pytest.raises(UserError, match="pope.accuracy: unit 'q0' occurs twice"):
        read_record(write(tmp_path, "run", changed(("units", "id"), ids)))


def test_a_benchmark_or_metric_that_occurs_twice_is_refused(tmp_path):
    entry = json.dumps(pope(0.5)["pope"])
    text = json.dumps(record({"pope": 0})).replace('"pope": 0', f'"pope": {entry}, "pope": {entry}')
    with pytest.raises(UserError, match="'pope' occurs twice"):
        read_record(write(tmp_path, "run", text))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("value",), 99.0, "value = 99"),
        (("low",), 97.0, "from 97 to"),
        (("high",), 0.0, "to 0"),
        (("low",), -5.0, "beyond its scale"),
        (("high",), 1000.0, "beyond its scale"),
        (("n",), 61, "n = 61 and 60 scores"),
        (("n",), -1, "n = -1"),
        (("n",), True, "n = True"),
        (("value",), True, "value = True"),
        (("scale",), 1.0, "value = "),
        (("scale",), 0, "scale = 0"),
        (("weights",), {"": -1.0}, "weights = {'': -1.0}"),
        (("weights",), 3, "weights = 3"),
        (("statistic",), "median", "unknown statistic 'median'"),
        (("statistic",), "f1", "counts"),
        (("units", "counts"), [[1] * 60], "value = "),
        (("entry", "counts", "scored"), 61, "counts.scored is 61 of 60 items"),
        (("entry", "counts", "scored"), -1, "counts.scored is -1"),
        (("entry", "counts", "unparsed"), 1.5, "counts.unparsed is 1.5"),
        (("entry", "counts", "skipped"), {"x": "many"}, "counts.skipped.x is 'many'"),
        (("entry", "counts", "unscored"), [1], r"counts.unscored is \[1\]"),
        (("entry", "warnings"), "slow", "warnings is 'slow'"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path, path, value, says):
    file = write(tmp_path, "run", changed(path, value))
    with pytest.raises(UserError, match=says) as caught:
        read_record(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_that_is_right_and_wrong_is_refused(tmp_path):
    units = tuple(Unit(f"q{i}", (1, 0, 0, 0)) for i in range(30))
    raw = record({"pope": benchmark("pope", Metric("f1", "F1", units, statistic="f1"))})
    read_record(write(tmp_path, "good", raw))
    raw["benchmarks"]["pope"]["metrics"]["f1"]["units"]["counts"][1][7] = 1
    with pytest.raises(UserError, match="unit 'q7' has the counts"):
        read_record(write(tmp_path, "bad", raw))


def test_two_headlines_are_refused(tmp_path):
    raw = record({"pope": benchmark("pope", mean_metric([1.0] * 9), mean_metric([1.0] * 9, "b"))})
    raw["benchmarks"]["pope"]["metrics"]["b"]["headline"] = True
    with pytest.raises(UserError, match="pope has two headlines"):
        read_record(write(tmp_path, "run", raw))


def test_a_score_that_is_not_the_sum_of_its_parts_is_refused(compared):
    understanding, summary = four(0.5)
    summary["understanding"]["value"] += 3
    with pytest.raises(UserError, match="the understanding score is .* contradicts"):
        compared(one=pope(), other=record(understanding, summary=summary))


def test_records_of_the_same_items_that_count_them_differently_are_refused(compared):
    counts = {"items": 61, "scored": 60, "unparsed": 0, "skipped": {}, "unscored": {}}
    with pytest.raises(UserError, match="60 items of pope .* 61, .* contradict each other"):
        compared(base=pope(), other=pope(counts=counts))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": ' * 100_000, "\udcff"])
def test_deep_json_and_no_text_are_one_line(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match="results.json is not JSON") as caught:
        read_record(file)
    assert "\n" not in str(caught.value)


def test_half_a_character_in_a_record_is_one_line(tmp_path, capsys):
    broken = pope(0.4, title="PO\ud800PE", warnings=["half \udfff"])
    files = [write(tmp_path, n, record(broken, sha=n, model=n)) for n in ("one", "two")]
    assert cli.main(["compare", *map(str, files), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "results.json" in said and "ud800" in said and said.count("\n") == 1


def test_a_figure_about_one_picture_is_shown_without_an_interval(compared):
    """Every resample of one picture is the same: the interval had no width, and looked exact."""
    units = tuple(Unit(str(n), (n % 2,), "a.png") for n in range(4))
    one = benchmark("pope", Metric("accuracy", "accuracy", units))
    comparison, records = compared(a={"pope": one}, b={"pope": one})
    assert "50.0 [one picture or group]" in to_markdown(comparison)
    assert "[one picture or group]" in to_latex(comparison)
    assert "50.0, 50.0" not in to_markdown(comparison) + to_latex(comparison)
    (row, _) = csv.DictReader(io.StringIO(to_csv(comparison, records)))
    assert (row["value"], row["low"], row["high"]) == ("50.0", "", "")
    console = Console(file=io.StringIO(), width=120)
    print_record(record({"pope": {**one, "details": {}}}), ["pope"], console)
    assert "- (one picture or group)" in console.file.getvalue()
