import pytest

from tests.reports.record_files import answers, benchmark, mean_metric, record, write
from unigame import cli


@pytest.fixture
def files(tmp_path):
    """Three records: of a model, and of two adapters of it."""
    raw = [("base", 0.4, None), ("sft", 0.45, "sft"), ("game", 0.7, "unigame")]
    return [
        write(
            tmp_path,
            name,
            record({"pope": benchmark("pope", mean_metric(answers(right)))}, adapter=adapter),
        )
        for name, right, adapter in raw
    ]


def run(*args):
    return cli.main(["compare", *map(str, args)])


def test_it_prints_and_writes_three_forms(files, tmp_path, capsys):
    assert run(*files, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "janus + unigame" in printed and "compare.tex" in printed
    texts = {s: (tmp_path / "out" / f"compare.{s}").read_text() for s in ("md", "csv", "tex")}
    assert "▲" in texts["md"] and texts["csv"].count("\n") == 4 and r"\toprule" in texts["tex"]


def test_folders_labels_and_a_baseline(files, tmp_path, capsys):
    folders = [file.parent for file in files]
    options = ("--labels", "base, SFT,UniGame", "--baseline", 2, "--output", tmp_path / "out")
    assert run(*folders, *options) == 0
    printed = capsys.readouterr().out
    assert "worse than SFT" in printed and "UniGame" in printed


def test_names_that_do_not_tell_models_apart_become_folders(files, tmp_path, capsys):
    write(tmp_path, "again", files[0].read_text())
    assert run(files[0], tmp_path / "again", "--output", tmp_path / "out") == 0
    assert "base and again are the same weights." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{0}"], "at least two results.json, got 1"),
        (["{0}", "{0}"], "is named twice"),
        (["{0}", "base"], "is named twice"),
        (["{0}", "{1}", "--baseline", "3"], "--baseline is 3; give a number from 1 to 2"),
        (["{0}", "{1}", "--baseline", "0"], "0 is not in the range"),
        (["{0}", "{1}", "--labels", "a"], "--labels has 1 names for 2 files"),
        (["{0}", "{1}", "--labels", "a,a"], "every name must be different"),
        (["{0}", "{1}", "--labels", "a,"], "every name must be different and not empty"),
        (["{0}", "nowhere.json"], "cannot read nowhere.json"),
        (["{0}", "{1}", "--output", "{0}"], "is a file; name a folder"),
        ([], "RESULTS"),
    ],
)
def test_what_cannot_be_compared_is_one_line(files, args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*(arg.format(*files) for arg in args)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
