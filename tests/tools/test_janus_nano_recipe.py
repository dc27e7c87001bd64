"""The recipe of the bundled model, at a hundredth of its size: every stage runs into the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import JanusForConditionalGeneration, JanusProcessor

from tools.common import reader, vision
from tools.common.pictures import TOKENS, broad_scenes, pictures
from tools.common.progress import portion
from tools.janus_nano import clip, language
from tools.janus_nano.gates import MEASURES
from tools.janus_nano.main import main
from unigame.synthetic.knowledge import knowledge_words
from unigame.synthetic.questions import KINDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretrain")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(language, "evaluate", lambda *_: None)  # the gates measure the same
        for module in (vision, reader, clip):
            changed.setattr(module, "BATCH", 8)
        status = main(["--output", str(output), "--scale", "0.002"])
    assert status == 1  # two steps pass no gate, and the command says so
    return output


def test_it_writes_a_checkpoint_that_transformers_reads(folder: Path) -> None:
    model = JanusForConditionalGeneration.from_pretrained(folder / "janus_nano")
    processor = JanusProcessor.from_pretrained(folder / "janus_nano")
    assert model.dtype == torch.bfloat16
    assert set(knowledge_words()) <= set(processor.tokenizer.get_vocab())
    assert model.get_input_embeddings().weight.shape[0] == len(processor.tokenizer)
    assert processor.num_image_tokens == model.config.vision_config.num_image_tokens == TOKENS
    size = sum(f.stat().st_size for f in (folder / "janus_nano").iterdir())
    assert size <= 16 * 1024**2


def test_the_log_holds_every_stage_and_every_gate(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} >= {
        *("vision", "tokenizer", "verifier", "clip", "language", "knowledge", "gates")
    }
    gates = {key: value for row in rows if row["stage"] == "gates" for key, value in row.items()}
    measured = json.loads((folder / "gates.json").read_text())
    assert set(measured["gates"]) == set(MEASURES)
    assert {"tokenizer", "drawing", "anchor", "understanding", "knowledge", *KINDS} <= gates.keys()
    assert {"drawable", "room", "teachable", "auc_mild", "auc_strong"} <= gates.keys()


def test_packed_questions_see_what_a_single_question_sees(folder: Path) -> None:
    """The 4-D mask must hide a scene's other questions, and positions must restart."""
    nano = language.JanusNano(folder)
    features = nano.see(pictures(broad_scenes(2, 5, clean=1.0)))
    asked = [[("how many shapes are there?", "2"), ("is there a disc?", "no")]] * 2
    with torch.no_grad():
        together, targets, rows = nano.answer_logits(features, asked)
        for row in range(4):
            alone, target, _ = nano.answer_logits(
                features[row // 2 : row // 2 + 1], [[asked[0][row % 2]]]
            )
            assert torch.equal(targets[rows == row], target)
            torch.testing.assert_close(together[rows == row], alone, atol=1e-4, rtol=1e-4)


def test_portions() -> None:
    assert portion(1500, 1.0) == 1500
    assert portion(1500, 1e-6) == 2
