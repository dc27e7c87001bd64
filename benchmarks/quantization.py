"""The game on a base in 4 or 8 bits against bfloat16: memory, gradients, losses, seconds.

For the bundled model and, in a clone, a tiny random model of every family: so many steps of the
game (challenge, buffer, mixed batch, both players' optimizers) on random pictures, once for each
way to keep the frozen language model.

Usage:
    pip install "unigame[quantization]"
    python benchmarks/quantization.py --json FILE [--models janus-nano emu3 ...] [--steps 20]

For each model and each of ``none`` (bfloat16), ``nf4`` and ``int8``: ``weights_mb`` of the whole
model with its scales, ``language_mb`` of its language model's linear layers, ``peak_mb`` of a step
(what lives, optimizers included, and what is made), ``seconds`` a step (median), ``loss`` of the
first and the last step. ``cosine`` compares, in float32 and at the same visual states, the
challenge's gradient (answers' loss to the states that a picture is drawn from) with the unquantised
model's; ``layers`` compares the gradient at the input of each layer of the language model, first
layer first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import record
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

from unigame.backbones import load_backbone  # noqa: E402
from unigame.backbones.base import Backbone  # noqa: E402
from unigame.backbones.common.packing import language_linears  # noqa: E402
from unigame.backbones.common.quantization import QUANTIZATIONS  # noqa: E402
from unigame.doctor.peak import peak_bytes, tensor_bytes  # noqa: E402
from unigame.doctor.trial import _step as take_step  # noqa: E402
from unigame.methods.selfplay import SelfPlay  # noqa: E402
from unigame.synthetic.dataset import SyntheticDataset  # noqa: E402
from unigame.training.config import UniGameConfig  # noqa: E402
from unigame.training.trainer import UniGameTrainer  # noqa: E402

QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]
BUNDLED = "janus-nano"
FAMILIES = ("bagel", "chameleon", "composed_llm_dit", "composed_sd", "emu3", "janus")
MB = 1e6


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--models", nargs="+", default=[BUNDLED, *FAMILIES])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {}
    for name in options.models:
        model = checkpoint(name)
        figures[name] = {
            kind: played(model, kind, device, options.steps, options.batch_size)
            for kind in QUANTIZATIONS
        }
        for kind, found in compared(model, device).items():
            figures[name][kind] |= found
        print(name, figures[name], file=sys.stderr, flush=True)
    settings = {"steps": options.steps, "batch_size": options.batch_size, "dtype": "bfloat16"}
    return record.write(figures, settings, options.json)


def checkpoint(name: str) -> str | Path:
    """The bundled model, a family's tiny random one, or a checkpoint as it is named."""
    if name not in FAMILIES:
        return name
    from tests.backbones.conftest import FAMILIES as made  # of a clone

    return made[name]()


# ---- steps ---------------------------------------------------------------------------------------
def played(
    model: str | Path, kind: str, device: torch.device, steps: int, batch_size: int
) -> dict[str, Any]:
    """What so many steps of the game take."""
    backbone = load_backbone(model, dtype="bfloat16", device=device, quantization=kind)
    base: Any = backbone.model
    inside = [part for _, part in linear_layers(base, backbone.language_name)]  # type: ignore[arg-type]
    language = sum(tensor_bytes(part) for part in inside)
    weights = tensor_bytes(backbone)
    torch.manual_seed(0)  # of LoRA's initial weights
    game = SelfPlay(
        eps_mode="relative", eps_max=0.6, eps_init=0.3, buffer_min_size=1, similarity="none"
    )
    with tempfile.TemporaryDirectory() as folder:
        args = UniGameConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            use_cpu=device.type == "cpu",
            learning_rate=1e-4,
            coverage_points=0,
            disable_tqdm=True,
        )
        trainer = UniGameTrainer(
            backbone, args, peft_config=peft.LoraConfig(r=16, lora_alpha=32), methods=[game]
        )
        trainer.create_optimizer_and_scheduler(num_training_steps=steps)
        rows = SyntheticDataset("train", size=batch_size, seed=0)
        batch = trainer.data_collator([rows[i] for i in range(batch_size)])
        losses, seconds = [], []
        for step in range(steps):
            trainer.state.global_step = step
            losses.append(answer_loss(trainer, batch))
            begun = time.perf_counter()
            take_step(trainer, batch)
            seconds.append(time.perf_counter() - begun)
        losses.append(answer_loss(trainer, batch))
        peak = peak_bytes(lambda: take_step(trainer, batch), device)
        optimizers = [one for one in (trainer.optimizer, game.optimizer) if one is not None]
        alive = tensor_bytes(trainer.backbone, *optimizers)
    return {
        "weights_mb": round(weights / MB, 3),
        "language_mb": round(language / MB, 3),
        "peak_mb": round((peak + alive) / MB, 3),
        "seconds": round(statistics.median(seconds), 3),
        "loss": [round(losses[0], 3), round(losses[-1], 3)],
    }


def linear_layers(model: Any, prefix: str) -> list[tuple[str, Any]]:
    """The language model's linear layers, packed or not."""
    packed = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear4bit", "Int8Linear")
    ]
    return packed or list(language_linears(model, prefix))


@torch.no_grad()
def answer_loss(trainer: UniGameTrainer, batch: Any) -> float:
    """Mean loss of the clean answers."""
    backbone, rows = trainer.backbone, batch.records
    with backbone.without_dropout():
        pixels = rows.pictures.to(backbone.device)
        return float(backbone.answer_loss(pixels, rows.questions, rows.answers).mean())


# ---- gradients -----------------------------------------------------------------------------------
def compared(model: str | Path, device: torch.device) -> dict[str, dict[str, Any]]:
    """Cosines of gradients to the unquantised model's, in float32 at the same states."""
    whole = load_backbone(model, device=device)
    size = whole.facts.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    torch.manual_seed(0)  # of a noised latent
    visual = whole.visual_states(images, ANSWERS)
    true = gradients(whole, visual)
    found: dict[str, dict[str, Any]] = {}
    for kind in ("nf4", "int8"):
        packed = load_backbone(model, device=device, quantization=kind)
        cosines = [
            round(float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)), 4)
            for a, b in zip(gradients(packed, visual), true, strict=True)
        ]
        found[kind] = {"cosine": cosines[0], "layers": cosines[1:]}
    return found


def gradients(backbone: Backbone, visual: Any) -> list[Tensor]:
    """At the states, and at the input of each layer of the language model."""
    states = visual.states_BNH.detach().clone().requires_grad_()
    at: dict[int, Tensor] = {}
    language: Any = backbone.language_model
    handles = []
    for place, layer in enumerate(language.layers):

        def watch(module: Any, given: Any, named: Any, place: int = place) -> None:
            hidden = given[0] if given else named["hidden_states"]
            hidden.register_hook(lambda grad: at.__setitem__(place, grad.detach().clone()))

        handles.append(layer.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        drawn = backbone.draw(states, visual.codes).images
        backbone.answer_loss(drawn, QUESTIONS, ANSWERS).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert states.grad is not None
    return [states.grad, *(at[place] for place in sorted(at))]


if __name__ == "__main__":
    main()
