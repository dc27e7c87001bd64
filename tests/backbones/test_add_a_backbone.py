"""The worked example of docs/add-a-backbone.md: installed, found by its entry point, trained."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from unigame.backbones import available_backbones, load_backbone
from unigame.backbones.base import Backbone

ROOT = Path(__file__).parents[2]
QUESTIONS, ANSWERS = ["what colour", "is it red"], ["blue", "no"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """Loaded from a folder of its ``model_type``, by the metadata of an installed package."""
    site, model = tmp_path / "site", tmp_path / "model"
    (site / "toy_backbone-1.dist-info").mkdir(parents=True)
    source = (ROOT / "examples" / "toy_backbone.py").read_text()
    (site / "toy_backbone.py").write_text(source)
    files = site / "toy_backbone-1.dist-info"
    files.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: toy-backbone\nVersion: 1\n")
    files.joinpath("entry_points.txt").write_text("[unigame.backbones]\ntoy = toy_backbone:load\n")
    monkeypatch.syspath_prepend(site)
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "toy"}))
    assert available_backbones()["toy"] == "toy_backbone:load"
    return load_backbone(model, device="cpu")


def test_the_toy_keeps_the_contract(toy: Backbone) -> None:
    images = toy.preprocess([Image.new("RGB", (20, 9), colour) for colour in ("red", "blue")])
    kept = pickle.loads(pickle.dumps(toy.preprocessor))
    tokens = [kept.answer(*texts) for texts in zip(QUESTIONS, ANSWERS, strict=True)]
    loss_B = toy.answer_loss(images, QUESTIONS, ANSWERS)
    assert torch.equal(loss_B, toy.answer_loss(images, tokens))
    torch.testing.assert_close(loss_B[1:], toy.answer_loss(images[1:], QUESTIONS[1:], ANSWERS[1:]))
    found = toy.visual_states(images, QUESTIONS)
    states = found.states_BNH.requires_grad_()
    drawing = toy.draw(states, found.codes, num_candidates=3)
    assert torch.equal(toy.render(drawing.compact), drawing.images)
    (gradient,) = torch.autograd.grad(
        toy.answer_loss(drawing.images, QUESTIONS, ANSWERS).sum(), states
    )
    assert gradient.abs().sum() > 0
    bound = toy.draw(states, found.codes, anchor=1e4)
    assert torch.equal(bound.compact, found.codes)
    together = toy.generate(QUESTIONS, seeds=[3, 4])
    assert torch.equal(together[1:], toy.generate(QUESTIONS[1:], seeds=[4]))
    assert len(toy.answer(images, QUESTIONS)) == 2


def test_its_adapter_learns_and_survives(toy: Backbone, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8)
    before = toy.answer_loss(images, QUESTIONS, ANSWERS).mean()
    optimizer = torch.optim.Adam(toy.add_lora().trainable_parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        toy("answer", images=images, questions=QUESTIONS, answers=ANSWERS).mean().backward()
        optimizer.step()
    after = toy.answer_loss(images, QUESTIONS, ANSWERS)
    assert after.mean() < before
    with toy.lora_disabled():
        torch.testing.assert_close(toy.answer_loss(images, QUESTIONS, ANSWERS).mean(), before)
    toy.save_pretrained(tmp_path)
    fresh = type(toy)()
    fresh.load_state_dict(
        {k: v for k, v in toy.state_dict().items() if "lora_" not in k}, strict=False
    )
    fresh.load_adapter(tmp_path)
    torch.testing.assert_close(fresh.answer_loss(images, QUESTIONS, ANSWERS), after)
