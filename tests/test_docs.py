"""Pages that cannot rot: links lead somewhere, names are where the table says, code compiles."""

import re
from pathlib import Path

import pytest

import unigame

ROOT = Path(unigame.__file__).parents[1]
FOLDERS = sorted(file for file in ROOT.glob("unigame/**/README.md") if "recipes" not in file.parts)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("unigame/**/README.md"),
    ]
)


def test_the_pages_are_found():
    assert {"README.md", "method.md", "index.md"} <= {page.name for page in PAGES}
    assert len(FOLDERS) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors_of(page):
    """What the headings of a page can be linked by, by GitHub's rule."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_pages_lead_to_headings(page):
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target, anchor in links:
        file = page.parent / target if target else page
        if file.suffix == ".md" and not target.startswith(("http:", "https:")):
            assert anchor in anchors_of(file), f"{page.name} links to {target}#{anchor}"


def test_pages_of_the_sites_navigation_exist():
    nav = re.findall(r"- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    assert len(nav) > 15
    assert [page for page in nav if not (ROOT / "docs" / page).exists()] == []


@pytest.mark.parametrize("page", FOLDERS, ids=lambda page: page.parent.name)
def test_a_folders_page_has_a_line_for_each_file(page):
    named = set(re.findall(r"^\| `([\w./]+)` \|", page.read_text(encoding="utf-8"), flags=re.M))
    files = {file.name for file in page.parent.glob("*.py")} - {"__init__.py"}
    folders = {f"{file.parent.name}/" for file in page.parent.glob("*/__init__.py")}
    assert named == files | folders


def rows_of_the_symbol_table():
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| .* \| (.*) \| `(unigame/.*\.py)` \|$", text, flags=re.M)
    return [(name, file) for names, file in rows for name in re.findall(r"`(\w+)`", names)]


def test_the_symbol_table_is_read():
    assert len(rows_of_the_symbol_table()) > 20


@pytest.mark.parametrize(("name", "file"), rows_of_the_symbol_table())
def test_each_name_of_the_method_is_in_its_file(name, file):
    assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8"))


def test_each_setting_named_by_the_method_exists():
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    table = text.split("| ablation | setting |")[1]
    names = set(re.findall(r"`([a-z]\w+)(?=[:`])", table)) - {"decoder", "cosine", "none"}
    assert len(names) > 10
    assert names - {"methods"} <= settings_of_a_run()


def settings_of_a_run() -> set[str]:
    from unigame import SelfPlaySettings, UniGameConfig

    return {*UniGameConfig.__dataclass_fields__, *SelfPlaySettings.__dataclass_fields__}


def python_examples():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def test_the_readme_example_uses_what_exists():
    (example,) = python_examples()
    compile(example, "README.md", "exec")
    (names,) = re.findall(r"from unigame import (.*)", example)
    for name in names.split(", "):
        assert getattr(unigame, name)
    settings = re.findall(r"^    (\w+)=", example, flags=re.M)
    assert len(settings) > 5
    assert set(settings) <= settings_of_a_run()


def test_every_public_name_resolves():
    for name in unigame.__all__:
        assert getattr(unigame, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Unigame'"):
        _ = unigame.Unigame


def test_the_walk_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/walk.md shows each station of a sample; at most twelve files."""
    page = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
    stations = re.findall(r"^\| \d+ \|.*`(unigame/[\w/]+\.py)`", page, flags=re.M)
    assert 0 < len(stations) <= 12 and all((ROOT / path).is_file() for path in stations)
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", page, flags=re.S)[0], {})  # noqa: S102
