"""Imports run downward only; the rules are those of CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

import unigame

PACKAGE = Path(unigame.__file__).parent

LOW = ("backbones", "data", "synthetic")
HIGH = ("training", "evaluation", "reports", "cli", "demo")
# part of the package -> what no file in it may import, at any depth of its code
FORBIDDEN = {
    "methods": [f"unigame.{part}" for part in (*LOW, *HIGH)],
    **{part: [f"unigame.{high}" for high in HIGH] for part in LOW},
    "training": ["unigame.cli", "unigame.cli", "unigame.demo.run", "unigame.reports"],
    "evaluation": ["unigame.cli", "unigame.cli", "unigame.demo.run"],
    "reports": ["torch", "transformers", *(f"unigame.{p}" for p in ("methods", *LOW, "training"))],
}


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of what a file of ``package`` imports, without what ``TYPE_CHECKING`` guards."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -(node.level - 1) or None] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_run_downward(part):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files, f"unigame/{part} has no files: the rule would check nothing"
    for file in files:
        package = ".".join(["unigame", *file.relative_to(PACKAGE).parent.parts])
        for name in imported_modules(file.read_text(), package):
            for banned in FORBIDDEN[part]:
                assert name != banned and not name.startswith(f"{banned}."), (
                    f"{file.relative_to(PACKAGE)} imports {name}"
                )


def test_the_walk_sees_lazy_imports_and_skips_typing_ones():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from unigame.training import trainer\n    from ..cli import main\n"
    )
    names = imported_modules(source, "unigame.synthetic.pretrain")
    assert {"unigame.training", "unigame.training.trainer"} <= names
    assert "unigame.synthetic.cli.main" in names
    assert "torch" not in names
