from __future__ import annotations

import ast
import runpy
from pathlib import Path

from tests.tiny import make_tiny_janus

EXAMPLE = Path(__file__).parents[3] / "examples" / "plain_loop.py"


def test_the_example_plays_and_u_and_c_both_move(tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(str(make_tiny_janus(tmp_path / "model")), steps=2)
    lines = capsys.readouterr().out.splitlines()
    figures = [[float(word) for word in line.split() if "." in word] for line in lines]
    assert len(figures) == 2 and figures[0] != figures[1]


def test_the_example_needs_no_trainer_and_stays_short():
    source = EXAMPLE.read_text(encoding="utf-8")
    modules = [
        node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
    ]
    assert modules and not any("training" in str(module) for module in modules)
    body = source.split("for step in range(steps):")[1].split("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
