"""Every import of a source file, as data: what the rules of the house are checked on."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import unigame

PACKAGE = Path(unigame.__file__).parent


class Import(NamedTuple):
    module: str
    line: int
    guarded: bool
    as_text: bool = False
    """By ``import_module("...")``."""


def imports_of(source: str, package: str) -> list[Import]:
    """Every import of a module of ``package``, but for those under ``TYPE_CHECKING``.

    One is guarded if a failure to import is caught.
    """
    found: list[Import] = []

    def visit(node: ast.AST, guarded: bool) -> None:
        as_text = isinstance(node, ast.Call)
        for name in _named_by(node, package):
            found.append(Import(name, node.lineno, guarded, as_text))
        safe = node.body if isinstance(node, ast.Try) and _catches_import_error(node) else []
        typing_only = node.body if isinstance(node, ast.If) and _for_types(node) else []
        for child in ast.iter_child_nodes(node):
            if child not in typing_only:
                visit(child, guarded or child in safe)

    visit(ast.parse(source), False)
    return found


def files_of(module: str) -> list[Path]:
    """The source files of ``unigame.part``: of a folder all that it holds, or the one file."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files, f"{module} has no files: the rule would check nothing"
    return files


def package_of(file: Path) -> str:
    return ".".join(file.parent.relative_to(PACKAGE.parent).parts)


def within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def _named_by(node: ast.AST, package: str) -> list[str]:
    """The modules that one node imports, by statement or by ``import_module("...")``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = resolve_name("." * node.level + base, package)
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        if ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def _catches_import_error(node: ast.Try) -> bool:
    caught = " ".join(ast.unparse(h.type) for h in node.handlers if h.type is not None)
    return "ImportError" in caught or "ModuleNotFoundError" in caught


def _for_types(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
