"""``unigame backbones``: the families as they are, plug-ins as they come, and all of it at once."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from tests.tiny import shared_tiny_janus
from tests.tiny_bagel import shared_tiny_bagel
from tests.tiny_chameleon import shared_tiny_chameleon
from tests.tiny_composed import shared_vlm_unet
from tests.tiny_emu3 import shared_tiny_emu3
from unigame.backbones import load_backbone
from unigame.backbones import registry as families
from unigame.cli import main

ROOT = Path(inspect.getfile(families)).parents[2]
TINY = {
    "bagel": shared_tiny_bagel,
    "chameleon": shared_tiny_chameleon,
    "emu3": shared_tiny_emu3,
    "janus": shared_tiny_janus,
    "unigame_composed": shared_vlm_unet,
}
DESCRIBED = """
from unigame.backbones.registry import FamilyInfo
def load(name_or_path, *, dtype, device): ...
FAMILY_INFO = FamilyInfo("seer", "plug_seer:load", "Seer", "its eyes", "its hands", "latents",
    "exactly", max_images=5, guidance=False, examples=("seer/seer-1b",), needs=("no-such-thing",))
"""


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that install entry points: one that says what it is, one that does not, two broken
    ones, and one that would take a built-in family's place."""
    sources = {
        "plug_seer": DESCRIBED,
        "plug_silent": "def load(*args, **kwargs): ...",
        "plug_broken": "raise RuntimeError('no driver\\nsecond line')",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def entries(group: str) -> list[EntryPoint]:
        named = {
            "seer": "plug_seer:load",
            "silent": "plug_silent:load",
            "broken": "plug_broken:load",
            "absent": "no_such_package:load",
            "unnamed": "plug_silent:nothing",
            "janus": "no_such_package:hijack",
        }
        return [EntryPoint(name, value, group) for name, value in named.items()]

    monkeypatch.setattr(families, "entry_points", entries)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    assert main(["backbones", "--json"]) == 0
    return {family["model_type"]: family for family in json.loads(capsys.readouterr().out)}


def test_it_is_there_at_once_and_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from unigame.cli import main; assert main(['backbones']) == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = shown.stdout.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert lines[-3] == "Next:"
    for info in families.BUILT_IN:
        assert any(line.split()[:2] == [info.model_type, info.drawing] for line in lines)
        for fact in (info.reads, info.draws, *info.examples, info.page, info.note):
            assert fact is not None and fact in shown.stdout


@pytest.mark.parametrize("info", families.BUILT_IN, ids=lambda info: info.model_type)
def test_what_is_said_of_a_family_is_so(info: families.FamilyInfo) -> None:
    backbone = load_backbone(TINY[info.model_type](), device="cpu")
    assert info.max_images == backbone.max_images
    assert (info.drawing == "codes") == (backbone.facts.codebook_size is not None)
    assert info.guidance == ("guidance_scale" in inspect.signature(backbone.generate).parameters)
    family = type(backbone).__module__.removesuffix(".model")
    assert info.loader == f"{family}.load:from_pretrained"


def test_versions_and_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listed(capsys)["unigame_composed"]
    assert found["installed"] == {"diffusers": version("diffusers")} and found["problem"] is None
    monkeypatch.setattr(families, "_version", lambda name: None)
    found = listed(capsys)["unigame_composed"]
    assert found["problem"] == "diffusers is not installed: pip install 'unigame[composed]'"
    main(["backbones"])
    shown = capsys.readouterr().out
    assert "without diffusers" in shown and "pip install 'unigame[composed]'" in shown


def test_plug_ins_are_listed_with_what_is_amiss(
    plug_ins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = listed(capsys)
    assert list(found) == [
        *(info.model_type for info in families.BUILT_IN),
        *("absent", "broken", "seer", "silent", "unnamed"),
    ]
    assert found["janus"]["source"] == "unigame"
    problems = {name: family["problem"] for name, family in found.items()}
    assert problems["silent"] is None and found["silent"]["info"] is None
    assert problems["broken"] == "does not import: RuntimeError: no driver"
    assert "does not import: ModuleNotFoundError: No module named 'no_such_p" in problems["absent"]
    assert "does not import: AttributeError: module 'plug_silent'" in problems["unnamed"]
    assert found["seer"]["info"]["max_images"] == 5
    assert problems["seer"] == "no-such-thing is not installed: pip install no-such-thing"


def test_the_table_takes_plug_ins(plug_ins: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert rows["janus"] == ["janus"]  # the block's own line comes last
    assert "its hands" in shown and "continuous: exactly" in shown
    assert "does not describe itself" in shown and "plug_silent:load" in shown
    assert "does not import: RuntimeError: no driver" in shown
    summary = shown.partition("\njanus\n")[0]
    words = [line.split() for line in summary.splitlines() if line.split()]
    assert ["seer", "latents", "5", "no", "plug_seer", "without"] in [line[:6] for line in words]
    assert ["broken", "-", "-", "-", "plug_broken", "broken"] in words
    assert ["silent", "-", "-", "-", "plug_silent", "ready"] in words


def test_the_pages_it_names_are_there() -> None:
    pages = [info.page for info in families.BUILT_IN if info.page]
    assert len(pages) == len(families.BUILT_IN)
    for page in pages:
        assert (ROOT / page).is_file(), page


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    page = (ROOT / "docs/backbones/index.md").read_text(encoding="utf-8")
    shown = page.split("```\n")[1].splitlines()
    versions = "  needs "
    assert [line for line in shown if not line.startswith(versions)] == [
        line for line in printed if not line.startswith(versions)
    ]
