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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demos", nargs="+", type=Path, help="folders of finished demos")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    runs = [read(folder) for folder in options.demos]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        parser.error(f"seeds {seeds}: give demos of two different seeds at least, each once")
    if any(alike(run) != alike(runs[0]) for run in runs):
        parser.error("these demos differ in more than the seed: give runs of one version, all full")
    found = record.write({"differences": spread(runs)}, {"seeds": seeds}, options.json)
    print("\n".join(table(found["differences"], len(seeds))))
    return found


def read(folder: Path) -> dict[str, Any]:
    """A finished demo's results."""
    file = folder / "results.json"
    if not file.exists() or (folder / "INCOMPLETE").exists():
        sys.exit(f"{folder} is no finished demo; make it: unigame demo --seed N --output {folder}")
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return results


def alike(run: dict[str, Any]) -> str:
    """What must be the same in all of them, as text."""
    settings = {name: value for name, value in run["config"].items() if name != "seed"}
    return json.dumps([settings, sorted(run["differences"])], sort_keys=True)


def spread(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{figure: {"label", "digits", arm: {"mean", "sd", "above_zero", "values"}}}``.

    An arm that has a figure in fewer than two seeds is left out there.
    """
    first = runs[0]
    figures: dict[str, dict[str, Any]] = {}
    for name, info in first["metric_info"].items():
        label = info["label"] + (", points" if info["unit"] == "%" else "")
        figures[name] = {"label": label, "digits": info["digits"]}
        for arm in first["differences"]:
            gaps = [run["differences"][arm].get(name) for run in runs]
            values = [gap["value"] for gap in gaps if gap is not None]
            if len(values) < 2:  # no picture of an attack may have kept its content
                continue
            figures[name][arm] = {
                "mean": round(statistics.mean(values), 4),
                "sd": round(statistics.stdev(values), 4),
                "above_zero": sum(value > 0 for value in values),
                "values": [round(value, 4) for value in values],
            }
    return figures


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
