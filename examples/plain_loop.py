"""The game in a plain loop, without any Trainer: Algorithm 1 of the paper, line by line.

python examples/plain_loop.py                     # the bundled model
python examples/plain_loop.py path/to/checkpoint  # any backbone that unigame can load
"""

import sys

import torch

from unigame import HardSampleBuffer, Perturber, Rows, load_backbone
from unigame.methods.selfplay import (
    FeatureSimilarity,
    SelfPlaySettings,
    challenge,
    mine,
    perturber_step,
    stack_compact,
    understanding_loss,
)
from unigame.synthetic import SyntheticDataset


def main(model: str = "janus-nano", steps: int = 20) -> None:
    """Play ``steps`` rounds of the game, U (LoRA weights) against C (the perturber)."""
    backbone = load_backbone(model).add_lora().train()
    size, device = backbone.facts.hidden_size, backbone.device
    perturber = Perturber(size, eps_max=0.6, eps_init=0.3, eps_mode="relative").to(device)
    player_c = torch.optim.AdamW(perturber.parameters(), lr=5e-3)
    player_u = torch.optim.AdamW(backbone.trainable_parameters(), lr=2e-4)
    buffer, config = HardSampleBuffer(capacity=50), SelfPlaySettings(anchor=6.0, label_weight=0.5)
    similarity = FeatureSimilarity(backbone.image_features)
    data = SyntheticDataset("train", size=8 * steps, questions_per_scene=1)

    for step in range(steps):
        # 1. Clean images with questions and true answers.
        rows = [data[i] for i in range(8 * step, 8 * step + 8)]
        images = backbone.preprocess([row["image"] for row in rows]).to(device)
        questions, answers = [row["question"] for row in rows], [row["answer"] for row in rows]
        batch = Rows(images, questions, answers, [row["caption"] for row in rows])
        # 2. C nudges what the model is about to draw, so that the drawing misleads the model.
        result = challenge(backbone, perturber, batch, config, similarity)
        perturber_step(result, perturber, player_c)
        # 3. The drawings that worked, and still show the same thing, go into the buffer.
        mine(result, batch, buffer, config, step)
        # 4. U learns from the clean images and from hard ones, redrawn from their codes.
        hard = buffer.sample(4)
        if hard:
            images = torch.cat([images, backbone.render(stack_compact(hard, device))])
        asked = questions + [sample.question for sample in hard]
        truth = answers + [sample.answer for sample in hard]
        loss_B = backbone.answer_loss(images, asked, truth)
        loss = understanding_loss(loss_B, torch.arange(len(loss_B), device=device) >= 8, beta=0.5)
        player_u.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.trainable_parameters(), 1.0)
        player_u.step()
        print(f"{step:3d}  clean {loss_B[:8].mean():.3f}  adversarial {result.ce_BK.mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "janus-nano")
