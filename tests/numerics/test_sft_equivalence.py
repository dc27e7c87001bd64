"""``methods=["sft"]`` is SFT: the same losses, step by step, as the plain Trainer on raw Janus.

The reference knows nothing of this package: ``transformers.Trainer`` on PEFT's model of
``JanusForConditionalGeneration``, inputs and labels straight from ``JanusProcessor``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, JanusForConditionalGeneration, Trainer, TrainingArguments

from tests.training.helpers import Losses, Records, lora_weights, make_trainer
from unigame.backbones.janus.load import load_processor


class PlainCollator:
    """Records -> input_ids, pixel_values and labels, by the processor alone."""

    def __init__(self, folder: Path):
        self.processor = load_processor(folder)
        self.eos = AutoTokenizer.from_pretrained(folder).eos_token

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts, wholes = [], []
        for record in records:
            content = [{"type": "image"}, {"type": "text", "text": record["question"]}]
            asked = [{"role": "user", "content": content}]
            reply = {"role": "assistant", "content": [{"type": "text", "text": record["answer"]}]}
            template = self.processor.apply_chat_template
            prompts.append(template(asked, add_generation_prompt=True))
            wholes.append(template([*asked, reply]) + self.eos)
        images = [record["image"] for record in records]
        batch = self.processor(text=wholes, images=images, padding=True, padding_side="right")
        short = self.processor(text=prompts, images=images, padding=True, padding_side="right")
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        for row, length in enumerate(short["attention_mask"].sum(-1).tolist()):
            labels[row, :length] = -100
        return {**batch, "labels": labels}


def plain_run(
    model_path: Path, adapter: Path, folder: Path, data: Records, **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    base = JanusForConditionalGeneration.from_pretrained(model_path)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
            data_seed=3,
            remove_unused_columns=False,
            report_to="none",
            **settings,
        ),
        train_dataset=data,
        data_collator=PlainCollator(model_path),
    )
    trainer.train()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return Losses(trainer.state.log_history).values, weights


@pytest.mark.parametrize(
    ("long_answers", "reduction", "accumulation"),
    [(False, "sample", 1), (True, "token", 1), (True, "token", 2)],
)
def test_sft_equals_the_plain_trainer(
    tiny_path: Path, tmp_path: Path, long_answers: bool, reduction: str, accumulation: int
) -> None:
    data = Records(12, long_answers=long_answers)
    settings: dict[str, Any] = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
    }
    ours = make_trainer(
        tiny_path, tmp_path, data, methods=["sft"], loss_reduction=reduction, **settings
    )
    ours.backbone.save_pretrained(tmp_path / "start")
    ours.train()
    losses = Losses(ours.state.log_history).values
    reference, weights = plain_run(
        tiny_path, tmp_path / "start", tmp_path / "plain", data, **settings
    )

    assert len(losses) == 5
    assert losses == pytest.approx(reference, abs=1e-5)
    assert max(losses) - min(losses) > 0.05  # it learns, so equality is not that of a standstill
    own = lora_weights(ours)
    assert len(own) == len(weights) > 0
    for name, weight in own.items():
        torch.testing.assert_close(weight, weights[name.removeprefix("model.")], atol=2e-4, rtol=0)


def test_sample_and_token_reduction_differ_when_answers_do(tiny_path: Path, tmp_path: Path) -> None:
    data = Records(4, long_answers=True)
    losses = {}
    for reduction in ("sample", "token"):
        trainer = make_trainer(
            tiny_path, tmp_path, data, methods=["sft"], loss_reduction=reduction, max_steps=1
        )
        trainer.train()
        losses[reduction] = Losses(trainer.state.log_history).values[0]
    assert abs(losses["sample"] - losses["token"]) > 1e-3
