"""No detour around the contracts of ``[tool.importlinter]`` in pyproject.toml.

`lint-imports` checks them on every import statement. It cannot see through the names that
``unigame`` and ``unigame.backbones`` load on first use, nor a module that is named as text.
"""

from __future__ import annotations

import tomllib

import pytest

import unigame
import unigame.backbones
from tests.imports import PACKAGE, files_of, imports_of, package_of, within

SETTINGS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = [
    contract
    for contract in SETTINGS["tool"]["importlinter"]["contracts"]
    if contract["type"] == "forbidden"
]
# A name that loads on first use -> the module that it comes from.
LAZY = {
    **{f"unigame.{name}": home for name, home in unigame._HOME.items()},
    **{
        f"unigame.backbones.{name}": f"unigame.backbones.{home}"
        for name, home in unigame.backbones._HOME.items()
    },
}


def detours(source: str, package: str, forbidden: tuple[str, ...]) -> list[str]:
    """What a file of ``package`` imports of ``forbidden`` by a lazy name or as text."""
    return [
        item.module
        for item in imports_of(source, package)
        if (item.as_text or item.module in LAZY)
        and within(LAZY.get(item.module, item.module), forbidden)
    ]


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["id"])
def test_no_detour(contract):
    forbidden = tuple(contract["forbidden_modules"])
    for module in contract["source_modules"]:
        for file in files_of(module):
            found = detours(file.read_text(encoding="utf-8"), package_of(file), forbidden)
            assert not found, f"{file.relative_to(PACKAGE)} imports {found}"


@pytest.mark.parametrize(
    "source",
    [
        "from unigame import UniGameTrainer",
        "from .. import UniGameTrainer",
        "import importlib\nimportlib.import_module('unigame.training.trainer')",
        "def f():\n    __import__('unigame.training')",
    ],
)
def test_the_walk_sees_detours(source):
    assert detours(source, "unigame.methods", ("unigame.training",))


def test_the_walk_follows_the_names_of_the_backbones():
    source = "from unigame.backbones import load_backbone"
    assert detours(source, "unigame.methods", ("unigame.backbones.loading",))


def test_the_walk_lets_harmless_imports_pass():
    source = (
        "from typing import TYPE_CHECKING\nimport torch\nfrom unigame import UserError\n"
        "from ..world import Scene\nif TYPE_CHECKING:\n    from unigame import UniGameTrainer\n"
    )
    assert not detours(source, "unigame.synthetic.benchmarks", ("unigame.training",))
