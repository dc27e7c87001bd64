"""``benchmarks/evaluate_speed.py`` runs, and both of its sides give the same answers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

import unigame

SCRIPTS = Path(unigame.__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("evaluate_speed")


def test_a_tiny_shape_is_measured_against_the_loop(script, tmp_path, capsys):
    words = ["--shape", "tiny", "--questions", "6", "--drawings", "2", "--rounds", "1"]
    file = tmp_path / "new" / "speed.json"
    script.main([*words, "--max-new-tokens", "6", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["answers_equal"] == 1 and found["greedy_image_codes_equal"] == 1
    assert found["answers_speedup"] > 0 and found["images_speedup"] > 0
    assert found["answers"]["items"] == 6 and len(found["images"]["loop_seconds"]) == 1
    assert found["settings"]["model"] == "tiny" and found["settings"]["max_new_tokens"] == 6
    assert {"hardware", "versions", "command", "date"} <= set(found)
    assert "times as fast as the loop" in capsys.readouterr().out


def test_the_large_shape_is_that_of_janus_pro_1b(script):
    shape = script.SHAPES["janus_pro_1b"]
    assert (shape["image_size"] // shape["patch"]) ** 2 == 576
    assert shape["text"]["vocab_size"] == 102_400 and shape["vq"]["num_embeddings"] == 16_384
