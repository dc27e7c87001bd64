"""Two ranks: nobody waits for nobody, both players stay replicated, and 2 x 1 = 1 x 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.two_ranks import joint


def test_two_ranks_play_one_game(tiny_path: Path, tmp_path: Path, launched: Path) -> None:
    folder = launched / "mixed"
    one, other = (json.loads((folder / f"rank{i}.json").read_text()) for i in range(2))

    alone = joint(tiny_path, tmp_path / "alone", batch=2)
    assert one["losses"] == pytest.approx(alone, abs=1e-5)

    # rank 0 sees only answers, rank 1 only captions: C learns from rank 0, both keep the same C
    assert one["lora"] == pytest.approx(other["lora"], rel=1e-9)
    assert one["perturber"] == other["perturber"]
    assert one["updates"] == other["updates"] == 3, "where no rank has rows, C stands still"
    assert (one["buffer"], other["buffer"]) == (3, 0)
    *played, last = one["logs"]
    assert all({"clean_ce", "generation_loss", "hard_ce"} <= entry.keys() for entry in played)
    assert "clean_ce" not in last and (last["text_rows"], last["unused_rows"]) == (1, 0)
    names = {path.name for path in (folder / "game" / "checkpoint-2").iterdir()}
    assert {"selfplay_state_0.pt", "selfplay_state_1.pt", "perturber.safetensors"} <= names
