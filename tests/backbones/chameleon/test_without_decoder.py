"""A Chameleon without image decoder: all that draws nothing works, and the rest says so at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers.utils import logging as hf_logging

from tests.data.files import png
from tests.evaluation.fakes import Copy, Easel, Quiz, prompts, questions
from tests.tiny import random_images
from tests.tiny_chameleon import make_tiny_chameleon, shared_tiny_chameleon
from tests.training.helpers import Records, logs, make_trainer
from unigame import cli
from unigame.backbones import load_backbone
from unigame.backbones.chameleon.model import ChameleonBackbone
from unigame.errors import UserError
from unigame.evaluation.attacks.robustness import RobustnessConfig, measure_robustness
from unigame.evaluation.examples import Example
from unigame.evaluation.run import evaluate
from unigame.evaluation.source import picture

QUESTIONS, PROMPTS = ["what colour is the circle"], ["a red circle"]
NO_DECODER = "no image decoder.*vqgan.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chameleon(tmp_path_factory.mktemp("blind"), with_decoder=False)


@pytest.fixture
def backbone(folder: Path) -> ChameleonBackbone:
    loaded = load_backbone(folder, device="cpu")
    assert isinstance(loaded, ChameleonBackbone)
    return loaded


@pytest.fixture
def passes(backbone: ChameleonBackbone) -> list[int]:
    """Grows with every pass of the language model."""
    counted: list[int] = []
    layer = backbone.chameleon.model.layers[0]
    layer.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


def whole() -> ChameleonBackbone:
    loaded = load_backbone(shared_tiny_chameleon(), device="cpu")
    assert isinstance(loaded, ChameleonBackbone)
    return loaded


# ---- the verbs ---------------------------------------------------------------------------------
def test_it_understands_as_the_whole_model_does(backbone: ChameleonBackbone) -> None:
    images = random_images(1)
    assert not backbone.can_draw and whole().can_draw
    assert backbone.facts.num_parameters < whole().facts.num_parameters
    assert backbone.answer(images, QUESTIONS) == whole().answer(images, QUESTIONS)
    for loss in ("answer", "generation"):
        inputs: dict[str, Any] = {"images": images, "captions": PROMPTS}
        if loss == "answer":
            inputs = {"images": images, "questions": QUESTIONS, "answers": ["red"]}
        assert torch.equal(backbone(loss, **inputs), whole()(loss, **inputs))


def test_every_verb_that_draws_says_why_it_cannot(
    backbone: ChameleonBackbone, passes: list[int]
) -> None:
    visual = backbone.visual_states(random_images(1), PROMPTS)
    passes.clear()
    for verb in (
        backbone.require_drawing,
        lambda: backbone.draw(visual.states_BNH, visual.codes),
        lambda: backbone.render(visual.codes),
        lambda: backbone.generate(PROMPTS),
    ):
        with pytest.raises(UserError, match=NO_DECODER) as caught:
            verb()
        assert "\n" not in str(caught.value)
    assert not passes  # generate says so before a thousand tokens are drawn
    backbone.load_decoder(shared_tiny_chameleon() / "vqgan.ckpt")
    backbone.require_drawing()
    assert torch.equal(backbone.render(visual.codes), whole().render(visual.codes))
    assert backbone.facts == whole().facts


def test_it_is_loaded_in_silence_and_saved_as_it_is(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hf_logging.enable_propagation()
    try:
        backbone = load_backbone(folder, device="cpu")
    finally:
        hf_logging.disable_propagation()
    assert "MISSING" not in caplog.text
    backbone.save_pretrained(tmp_path)
    saved = load_backbone(tmp_path, device="cpu")
    assert isinstance(saved, ChameleonBackbone) and not saved.can_draw
    images = random_images(1)
    assert torch.equal(saved.image_features(images), backbone.image_features(images))


# ---- training ----------------------------------------------------------------------------------
def test_the_game_is_refused_before_its_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ChameleonBackbone, "answer_loss", lambda *_, **__: pytest.fail("a step was begun")
    )
    with pytest.raises(UserError, match=NO_DECODER):
        make_trainer(folder, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"methods": ["sft"], "generation_weight": 1.0}, {"perturb_space": "tokens"}],
    ids=["sft", "token-space"],
)
def test_training_that_draws_nothing_runs(
    folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    data = Records(captions=True)
    trainer = make_trainer(folder, tmp_path, data, similarity="cosine", **settings)
    trainer.train()
    assert len(logs(trainer)) == 2


# ---- evaluation --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [Easel, Copy])
def test_a_benchmark_that_draws_is_refused_before_any_is_asked(
    backbone: ChameleonBackbone, passes: list[int], tmp_path: Path, kind: type[Easel]
) -> None:
    items = prompts(1) if kind is Easel else questions(1)
    with pytest.raises(UserError, match=NO_DECODER):
        evaluate(backbone, [Quiz(questions(2)), kind(items)], sources={}, output=tmp_path)
    assert not passes and not list(tmp_path.rglob("predictions.jsonl"))
    record = evaluate(backbone, [Quiz(questions(2))], sources={}, output=tmp_path)
    assert record["benchmarks"]["quiz"]["counts"]["scored"] == 2


def test_only_the_attack_that_draws_is_refused(
    backbone: ChameleonBackbone, passes: list[int]
) -> None:
    examples = [Example("1", picture(png((200, 0, 0))), QUESTIONS[0], "red")]
    with pytest.raises(UserError, match=NO_DECODER):
        measure_robustness(backbone, examples, RobustnessConfig())
    assert not passes
    config = RobustnessConfig(adversary=None, pgd=(), corruptions=("noise",))
    assert "noise" in measure_robustness(backbone, examples, config).metrics


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """One question in each subset, each about a picture of its own."""
    rows = [
        {
            "id": str(number),
            "question_id": "1",
            "question": "Is there a red circle in the image?",
            "answer": "yes",
            "image_source": f"COCO_val2014_00000000000{number}",
            "image": {"bytes": png((200, number, 0)), "path": None},
            "category": subset,
        }
        for number, subset in enumerate(("adversarial", "popular", "random"))
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "data/pope").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "data/pope/test-00000-of-00001.parquet"))
    return tmp_path / "data"


def command(name: str) -> Callable[[Path, Path, Path], list[str]]:
    def evaluation(folder: Path, data: Path, output: Path) -> list[str]:
        words = ["--benchmarks", "pope", "--data-root", str(data), "--output", str(output)]
        return ["evaluate", "--model", str(folder), *words, "--robustness", "adversary"]

    def generation(folder: Path, data: Path, output: Path) -> list[str]:
        return ["generate", PROMPTS[0], "--model", str(folder), "--output", f"{output}/a.png"]

    return {"evaluate": evaluation, "generate": generation}[name]


@pytest.mark.parametrize("words", [command("evaluate"), command("generate")])
def test_the_command_line_ends_in_one_line(
    folder: Path,
    pope: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path, Path, Path], list[str]],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert cli.main(words(folder, pope, tmp_path / "out")) != 0
    shown = capsys.readouterr()
    assert "has no image decoder" in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.rglob("predictions.jsonl"))
