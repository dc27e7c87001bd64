"""Hooks of MkDocs for ``make docs``: the API reference, and the pages outside of ``docs/``.

Every package of ``unigame`` gets a page that mkdocstrings fills from its docstrings. README.md,
CONTRIBUTING.md, CHANGELOG.md and the page of each folder join the site. Links are written as they
work in a checkout; here each leads to the page of its file, or is plain text where a file has none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _outside() -> dict[str, str]:
    """Pages outside of ``docs/``: path in the repository -> path in the site."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("tools/**/*.md")]
    found += ROOT.glob("unigame/**/README.md")
    paths = sorted(file.relative_to(ROOT).as_posix() for file in found)
    return {path: f"code/{path.replace('README.md', 'index.md')}" for path in paths}


def _packages() -> dict[str, list[str]]:
    """Packages of ``unigame``, each with its public modules."""
    found: dict[str, list[str]] = {}
    for file in sorted(ROOT.glob("unigame/**/*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules = found.setdefault(".".join(parts[:-1]), [])
        if not parts[-1].startswith("_"):
            modules.append(".".join(parts))
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation, and those of docs/ that it does not name."""
    assert config.nav is not None
    pages = sorted(file.relative_to(ROOT / "docs").as_posix() for file in ROOT.glob("docs/**/*.md"))
    if more := [page for page in pages if page not in str(config.nav)]:
        config.nav.append({"Further pages": more})
    config.nav.append({"Code": [{path: uri} for path, uri in _outside().items()]})
    pages = [{package: f"reference/{package}.md"} for package in _packages()]
    config.nav.append({"API reference": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the generated pages."""
    for path, uri in _outside().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    for package, modules in _packages().items():
        blocks = [f"# {package}", f"::: {package}\n    options:\n      members: false"]
        blocks += [f"::: {module}" for module in modules]
        files.append(File.generated(config, f"reference/{package}.md", content="\n\n".join(blocks)))
    for image in sorted(ROOT.glob("docs/images/*.png")):  # where README.md looks for them
        uri = f"code/docs/images/{image.name}"
        files.append(File.generated(config, uri, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages."""
    outside = _outside()
    here = {uri: path for path, uri in outside.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"\w+:", target) or match.string[match.start() - 1 : match.start()] == "!":
            return match[0]
        path = normpath(join(dirname(here), target))
        uri = outside.get(path) or outside.get(f"{path}/README.md")
        if uri is None and path.startswith("docs/"):
            folder = os.path.isdir(ROOT / path)
            uri = f"{path.removeprefix('docs/')}{'/index.md' if folder else ''}"
        elif uri is None and path.startswith("unigame/") and path.endswith(".py"):
            module = path.removesuffix(".py").replace("/", ".")
            uri, anchor = f"reference/{module.rpartition('.')[0]}.md", f"#{module}"
        if uri is None or files.get_file_from_path(uri) is None:
            return text
        return f"[{text}]({relpath(uri, dirname(page.file.src_uri) or '.')}{anchor})"

    return _LINK.sub(moved, markdown)
