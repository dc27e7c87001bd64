"""Licence notes: what is known, what a card says, and a clear "unknown" otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from unigame.publish.licences import UNKNOWN, base_licence, data_licence


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("janus-nano", "apache-2.0"),
        ("deepseek-community/Janus-Pro-7B", "other"),
        ("BAAI/Emu3-Chat-hf", "apache-2.0"),
        ("ByteDance-Seed/BAGEL-7B-MoT", "apache-2.0"),
        ("leloy/Anole-7b-v0.1-hf", "other"),
    ],
)
def test_a_known_base(name: str, id: str) -> None:
    licence = base_licence(name)
    assert licence.id == id and not licence.text.startswith(UNKNOWN)
    assert bool(licence.name) == bool(licence.link) == (id == "other")


def test_any_other_base_is_asked_for_its_card(tmp_path: Path) -> None:
    assert base_licence("someone/model").text.startswith(UNKNOWN)
    assert base_licence("my-deepseek-community/Janus").id == ""  # another owner
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert base_licence("someone/model", str(tmp_path)).id == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [odd\n---\n")
    assert base_licence("someone/model", str(tmp_path)).text.startswith(UNKNOWN)


def test_data() -> None:
    assert "Apache" in data_licence([{"type": "synthetic"}], None)
    assert data_licence([{"type": "synthetic"}, {"type": "vqa"}], None).startswith(UNKNOWN)
    assert data_licence([], None).startswith(UNKNOWN)
    assert data_licence([{"type": "vqa"}], "CC BY 4.0") == "CC BY 4.0"
