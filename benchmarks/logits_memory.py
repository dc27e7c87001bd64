"""Peak memory of a fine-tuning step with logits at answer positions, and at every position.

A plain Trainer scores the whole vocabulary at every token of the prompt, the image's 576 included,
although the loss looks at the few tokens of the answer. Ours scores those alone. Both versions run
the same backbone on the same batch: forward, loss, backward to LoRA.

Usage:
    python benchmarks/logits_memory.py --json FILE [--model janus_pro_small | PATH]

``ratio`` is peak over peak above the loaded model, with gradient checkpointing, as the recipes for
real weights have it; ``ratio_without_checkpointing`` and the megabytes stand beside it. The
losses of both are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from models import build
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from unigame.backbones.janus.model import JanusBackbone
from unigame.doctor.peak import peak_bytes, tensor_bytes

QUESTION, ANSWER = "what colour is the circle", "red"
IGNORED = -100


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    options = parse_arguments(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backbone = build(options.model, device, dtype)
    backbone.add_lora()
    figures = measure(backbone, options.batch_size)
    settings = {
        "model": options.model,
        "image_tokens": backbone.facts.num_image_tokens,
        "vocabulary": backbone.base.lm_head.weight.shape[0],
        "batch_size": options.batch_size,
        "dtype": str(backbone.facts.dtype).removeprefix("torch."),
    }
    found = record.write(figures, settings, options.json)
    print(f"{found['ratio']:.2f} times the peak of full-vocabulary logits")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--model", default="janus_pro_small", help="a checkpoint, or a shape")
    parser.add_argument("--batch-size", type=int, default=4)
    return parser.parse_args(argv)


def measure(backbone: JanusBackbone, batch_size: int) -> dict[str, Any]:
    """Peaks of both versions, with and without checkpointing, and how far their losses differ."""
    side = backbone.facts.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, side, side, generator=generator).to(backbone.device)
    asked = [QUESTION] * batch_size, [ANSWER] * batch_size
    with torch.no_grad():
        embeds_BNH = backbone.embed_images(images)

    def at_answers() -> Tensor:
        return backbone.answer_loss(None, *asked, embeds=embeds_BNH).mean()

    def everywhere() -> Tensor:
        return full_vocabulary_loss(backbone, embeds_BNH, *asked)

    figures: dict[str, Any] = {}
    losses = [float(at_answers().detach()), float(everywhere().detach())]
    peaks: dict[str, dict[str, int]] = {}
    for name in ("without_checkpointing", "with_checkpointing"):
        if name == "with_checkpointing":
            backbone.gradient_checkpointing_enable()
            backbone.train()
        versions = {"answers": at_answers, "full_vocabulary": everywhere}
        peaks[name] = {key: step_peak(backbone, loss) for key, loss in versions.items()}
    ratios = {name: peak["answers"] / peak["full_vocabulary"] for name, peak in peaks.items()}
    figures["ratio"] = round(ratios["with_checkpointing"], 3)
    figures["ratio_without_checkpointing"] = round(ratios["without_checkpointing"], 3)
    figures["megabytes"] = {
        "model": round(tensor_bytes(backbone) / 1e6, 1),
        **{
            name: {key: round(value / 1e6, 1) for key, value in peak.items()}
            for name, peak in peaks.items()
        },
    }
    figures["losses"] = dict(zip(("answers", "full_vocabulary"), losses, strict=True))
    return figures


def step_peak(backbone: JanusBackbone, loss: Callable[[], Tensor]) -> int:
    """Peak bytes of forward and backward, above the model; gradients are dropped again."""

    def step() -> None:
        loss().backward()
        backbone.zero_grad(set_to_none=True)

    step()
    return peak_bytes(step, backbone.device)


def full_vocabulary_loss(
    backbone: JanusBackbone, embeds_BNH: Tensor, questions: list[str], answers: list[str]
) -> Tensor:
    """The loss of a plain Trainer: transformers' own, over logits of every position."""
    layout = backbone.layout
    prompts = [layout.question_ids(question) for question in questions]
    targets = [layout.answer_ids(*pair) for pair in zip(questions, answers, strict=True)]
    rows = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    tokens = layout.pad(rows, "right", backbone.device)
    labels_BL = torch.full_like(tokens.ids_BL, IGNORED)
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        end = len(prompt) + len(target)
        labels_BL[row, len(prompt) : end] = torch.tensor(target)
    states_BLH = backbone.language_states(backbone.embed_rows(tokens, embeds_BNH), tokens)
    logits_BLV = backbone.text_logits(states_BLH)
    return ForCausalLMLoss(logits_BLV, labels_BL, logits_BLV.shape[-1])


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
