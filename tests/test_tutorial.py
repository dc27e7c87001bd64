"""Every command of docs/tutorial.md is run, in its order, with the page's sizes made tiny."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from tests.imports import PACKAGE
from unigame.cli import main
from unigame.doctor import trial

ROOT = PACKAGE.parent
SIZES = {"PICTURES": "33", "HELD_OUT": "12", "STEPS": "2"}
# What only the test adds to the page's runs, so that it takes seconds.
SMALL = ["--per_device_train_batch_size", "4"]
SMALL_GAME = ["--selfplay.keep_examples", "1", *SMALL]


def commands() -> list[list[str]]:
    """The page's commands as words; the line of sizes only says which names are to be set."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, flags=re.S)
        for line in block.strip().splitlines()
    ]
    sizes, *rest = lines
    assert sizes.startswith("export ") and set(re.findall(r"(\w+)=\d+", sizes)) == set(SIZES)
    text = [re.sub(r"\$(\w+)", lambda name: SIZES[name.group(1)], line) for line in rest]
    return [shlex.split(line) for line in text]


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "WARM_UP", 0)  # steps that `unigame doctor` tries
    monkeypatch.setattr(trial, "TIMED", 1)
    done = []
    for program, *words in commands():
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        else:
            assert program == "unigame"
            if words[0] == "train":
                words += SMALL if "sft" in words else SMALL_GAME
            assert main(words) == 0, shlex.join(words)
            done.append(words[0])
    assert {"data", "doctor", "train", "evaluate", "compare", "report"} <= set(done)
    assert {"merge", "answer", "push"} <= set(done)
    record = json.loads((tmp_path / "runs" / "base" / "results.json").read_text())
    assert record["benchmarks"]["vqav2"]["metrics"]["accuracy"]["value"] > 0
    for file in ("contact_sheet.png", "runs/game/report.html", "runs/report.html"):
        assert (tmp_path / file).is_file(), file
    assert (tmp_path / "models" / "mine" / "model.safetensors").is_file()
    card = (tmp_path / "to_push" / "README.md").read_text(encoding="utf-8")
    assert "| this model |" in card and "| janus-nano |" in card
