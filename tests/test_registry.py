"""Parts by name: ours and those of other packages."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest

from unigame import registry
from unigame.errors import UserError
from unigame.registry import Registry


@pytest.fixture
def toys(monkeypatch):
    def entries(group):
        plug_ins = {
            "dump": "json:dumps",
            "load": "fractions:Fraction",  # the name of one of ours
            "gone": "no_such_module:X",
            "bad": "json:JSONDecoder.missing",
        }
        return [EntryPoint(n, v, group) for n, v in plug_ins.items() if group == "unigame.toys"]

    monkeypatch.setattr(registry, "entry_points", entries)
    return Registry("unigame.toys", {"load": "json:loads", "deep": "json:JSONDecoder.decode"})


def test_ours_come_first_and_cannot_be_replaced(toys):
    assert toys.names() == ["load", "deep", "bad", "dump", "gone"]
    assert toys.get("load") is json.loads and toys.get("dump") is json.dumps
    assert toys.get("deep") is json.JSONDecoder.decode


def test_an_unknown_name_names_the_nearest(toys):
    with pytest.raises(UserError, match="unknown toy 'dumb'; did you mean dump"):
        toys.get("dumb")


@pytest.mark.parametrize(("name", "value"), [("gone", "no_such_module:X"), ("bad", "missing")])
def test_a_broken_plug_in_is_named(toys, name, value):
    with pytest.raises(UserError, match=f"toy '{name}' is registered as .*{value}"):
        toys.get(name)
