"""Demos with seeds of their own: how far every arm is from plain fine-tuning, and the spread.

A demo's own intervals cover the choice of questions. They do not cover the training seed, which
moves where C gets to; this table does. Every seed has its own data, training and evaluation.

Usage:
    for seed in 0 1 2; do unigame demo --seed $seed --output runs/seed-$seed; done
    python benchmarks/seeds.py runs/seed-0 runs/seed-1 runs/seed-2 --json FILE

For each figure and arm: the mean over seeds of the difference to SFT, its standard deviation, and
in how many seeds it was above zero. Of percentages they are in points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import record

from unigame.demo.arms import ARMS
from unigame.reports.compare import compare
from unigame.reports.records import read_record


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demos", nargs="+", type=Path, help="folders of finished demos")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    runs = [read(folder) for folder in options.demos]
    seeds = [run["config"]["seed"] for run in runs]
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        parser.error(f"seeds {seeds}: give demos of two different seeds at least, each once")
    if any(alike(run) != alike(runs[0]) for run in runs):
        parser.error("these demos differ in more than the seed: give runs of one version, all full")
    found = record.write({"differences": spread(runs)}, {"seeds": seeds}, options.json)
    print("\n".join(table(found["differences"], len(seeds))))
    return found


def read(folder: Path) -> dict[str, Any]:
    """A finished demo: its settings, and its arms compared with plain fine-tuning."""
    file = folder / "config.json"
    if not file.exists() or (folder / "INCOMPLETE").exists():
        sys.exit(f"{folder} is no finished demo; make it: unigame demo --seed N --output {folder}")
    config = json.loads(file.read_text(encoding="utf-8"))
    arms = [arm for arm in ARMS if (folder / "arms" / arm).exists()]
    records = [read_record(folder / "arms" / arm / "evaluation") for arm in arms]
    return {"config": config, "compared": compare(records, arms, arms.index("sft"))}


def alike(run: dict[str, Any]) -> str:
    """What must be the same in all of them, as text."""
    settings = {name: value for name, value in run["config"].items() if name != "seed"}
    return json.dumps([settings, run["compared"].labels], sort_keys=True)


def spread(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{figure: {"label", "digits", arm: {"mean", "sd", "above_zero", "values"}}}``.

    An arm that has a difference in fewer than two seeds is left out there.
    """
    figures: dict[str, dict[str, Any]] = {}
    for run in runs:
        for grid in run["compared"].tables:
            for arm, cells in zip(grid.rows, grid.cells, strict=True):
                for title, cell in zip(grid.columns, cells, strict=True):
                    points, digits = (", points", 1) if cell.scale == 100 else ("", 3)
                    row = figures.setdefault(title, {"label": title + points, "digits": digits})
                    if cell.gap is not None:
                        row.setdefault(arm, {"values": []})["values"].append(cell.gap["value"])
    return {title: _summed_up(row) for title, row in figures.items()}


def _summed_up(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in ("label", "digits")}
    for arm in (arm for arm in ARMS if len(row.get(arm, {"values": ()})["values"]) > 1):
        values = row[arm]["values"]
        found[arm] = {
            "mean": round(statistics.mean(values), 4),
            "sd": round(statistics.stdev(values), 4),
            "above_zero": sum(value > 0 for value in values),
            "values": [round(value, 4) for value in values],
        }
    return found


def table(figures: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    """Markdown: mean ± standard deviation (in how many seeds above zero)."""
    of_a_row = ("label", "digits")
    arms = list(
        dict.fromkeys(name for row in figures.values() for name in row if name not in of_a_row)
    )
    lines = [
        f"| less SFT, {seeds} seeds | " + " | ".join(arms) + " |",
        "|---|" + "---:|" * len(arms),
    ]
    for row in figures.values():
        digits = row["digits"]
        cells = [
            f"{row[arm]['mean']:+.{digits}f} ± {row[arm]['sd']:.{digits}f} "
            f"({row[arm]['above_zero']} of {len(row[arm]['values'])})"
            if arm in row
            else ""
            for arm in arms
        ]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
