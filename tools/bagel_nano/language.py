"""Stages 3 and 4: one language model of two experts that answers and draws.

*Together* trains everything on both: answers narrowly (clean scenes, held-out combinations left
out), drawing broadly (all combinations, every style under its word, knowledge prompts). It ends by
itself: once answers are good enough the learning rate runs out, so that they keep room to learn.

*Drawing* then trains the generation expert and the flow only. Answers stay as they are, bit for
bit; what the understanding expert makes of captions is fixed, and costs no backward pass.

The flow is the backbone's own: x_t = (1 - t) clean + t noise, velocity noise - clean, levels
sigmoid(N(0, 1)) shifted, captions left out at times. Latents near an object weigh more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.common.knowing import scene_of, triple
from tools.common.pictures import broad_scenes, foreground, pictures
from tools.common.progress import Log, Loop, chance, portion, warm_cosine
from tools.common.reading import Answering, drawn, evaluate, understanding
from unigame.backbones.bagel import flow
from unigame.backbones.base import PromptTokens
from unigame.synthetic.knowledge import facts
from unigame.synthetic.world import caption, random_scene

from .nano import BagelNano

RATE = 1.5e-3
SCENES, CAPTIONS, ALONE = 6, 32, 64
"""Scenes asked about and captions drawn in a step; captions where drawing is alone."""
TOGETHER, COOLING, DRAWING = 1500, 150, 6500
"""Most steps of the first stage, its steps after the aim is reached, steps of the second."""
AIM, LOOK_EVERY, EVALUATE_EVERY = 0.80, 50, 500
"""Share of right answers about clean scenes at which cooling begins: it adds a few points."""
OBJECTS = 3.0
"""Weight of latents where an object is."""
KNOWLEDGE = 0.08
"""Share of pictures whose caption is a knowledge prompt."""


class Drawing:
    """Captions, the latents of their pictures, and the flow loss."""

    def __init__(self, nano: BagelNano, seed: int, scale: float) -> None:
        self.nano, count = nano, portion(14_000, scale)
        scenes = broad_scenes(count, seed + 21, clean=0.5)
        words = [caption(scene) for scene in scenes]
        rng = np.random.default_rng([seed, 42])
        taught = [fact for fact in facts() if fact.taught]
        for i in rng.permutation(count)[: round(KNOWLEDGE * count)]:
            fact = taught[int(rng.integers(len(taught)))]
            scenes[i], words[i] = scene_of(triple(fact), rng), fact.prompt
        self.prompts = nano.backbone.prompt_tokens(words)
        self.plain = nano.backbone.preprocessor.prompt("")
        blocks = [scenes[i : i + 960] for i in range(0, count, 960)]
        self.latents = torch.cat([nano.encode(pictures(block)) for block in blocks])
        objects = torch.cat([foreground(block) for block in blocks])
        self.objects = F.max_pool2d(objects, objects.shape[-1] // self.latents.shape[-1])

    def loss(self, batch: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity, objects weighing more."""
        settings = self.nano.model.config
        rows = torch.from_numpy(rng.integers(len(self.latents), size=batch))
        kept = rng.random(batch) >= settings.caption_dropout
        prompts = [self.prompts[i] if k else self.plain for i, k in zip(rows, kept, strict=True)]
        level_B = torch.randn(batch, generator=generator).sigmoid()
        level_B = flow.shifted(level_B, settings.timestep_shift)
        clean = self.latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        squares = self.squares(prompts, clean, noise, level_B)
        weight = (1 + (OBJECTS - 1) * self.objects[rows]).expand_as(squares)
        return (weight * squares).sum() / weight.sum()

    def squares(
        self, prompts: list[PromptTokens], clean: Tensor, noise: Tensor, level_B: Tensor
    ) -> Tensor:
        """Squared error of the velocity at every latent, (B, C, h, w)."""
        noisy = flow.noised(clean, noise, level_B)
        states = self.nano.backbone.latent_states(prompts, noisy, level_B)
        return (self.nano.model.velocity(states, clean.shape[-2]) - (noise - clean)).square()


class Course(nn.Module):
    """The weights of a stage, and the step at which it began to cool (-1: not yet)."""

    def __init__(self, nano: BagelNano) -> None:
        super().__init__()
        self.weights = nn.ParameterList([p for part in nano.trained() for p in part])
        self.register_buffer("cooling", torch.tensor(-1))


def together(folder: Path, seed: int, scale: float = 1.0, steps: int = TOGETHER) -> None:
    """Train both experts on answers and drawings; write ``language.safetensors``."""
    torch.manual_seed(seed + 1)
    log, nano = Log(folder, "together"), BagelNano.new(folder)
    answering, drawing = Answering(nano, seed, scale), Drawing(nano, seed, scale)
    course = Course(nano)
    nano.model.get_submodule("language_model").requires_grad_(True)
    for weight in course.weights:
        weight.requires_grad_(True)
    log(parameters=sum(p.numel() for p in nano.model.parameters()), **spread(drawing))
    optimizer = torch.optim.AdamW(course.weights, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)

    def rate(step: int) -> float:
        """Warm-up, constant, and from the step of cooling on down to almost nothing."""
        begun = int(course.cooling)
        left = 1.0 if begun < 0 else max(0.02, 1 - (step - begun) / COOLING)
        return RATE * min(1.0, (step + 1) / 100) * left

    loop = Loop(folder, "together", course, optimizer, rate, log)
    look = _scenes(seed, max(12, portion(60, scale)))
    total = portion(steps, scale)
    for step in loop.steps(total):
        if 0 <= int(course.cooling) <= step - COOLING:
            break
        rng, generator = chance(seed + 30, step)
        losses = {
            "answering": answering.loss(SCENES, rng),
            "drawing": drawing.loss(CAPTIONS, rng, generator),
        }
        loop.descend(torch.stack(list(losses.values())).sum())
        if step % 25 == 24:
            log(step=step + 1, **{k: v.item() for k, v in losses.items()})
        if step % LOOK_EVERY == LOOK_EVERY - 1 and int(course.cooling) < 0:
            found = understanding(nano, look, 6)
            log(step=step + 1, **found)
            if found["mean"] >= AIM:
                course.cooling.fill_(step + 1)
        if step + 1 >= total - COOLING and int(course.cooling) < 0:
            course.cooling.fill_(step + 1)  # it was not reached; the rate runs out all the same
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1:
            evaluate(nano, seed, log, step + 1, True, scale)
    loop.save()
    evaluate(nano, seed, log, loop.done, True, scale)
    _write(nano, folder)


def draws(folder: Path, seed: int, scale: float = 1.0, steps: int = DRAWING) -> None:
    """Train the generation expert and the flow on; write ``bagel_nano/``."""
    torch.manual_seed(seed + 2)
    log, nano = Log(folder, "drawing"), BagelNano.new(folder)
    nano.model.load_state_dict(load_file(folder / "language.safetensors"), strict=False)
    drawing = Drawing(nano, seed, scale)
    _, weights = nano.trained()
    for weight in weights:
        weight.requires_grad_(True)
    total = portion(steps, scale)
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    rate = lambda step: RATE * warm_cosine(step, total, 100)  # noqa: E731
    loop = Loop(folder, "drawing", nn.ParameterList(weights), optimizer, rate, log)
    for step in loop.steps(total):
        rng, generator = chance(seed + 31, step)
        loop.descend(drawing.loss(ALONE, rng, generator))
        if step % 25 == 24:
            log(step=step + 1, drawing=loop.loss)
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1:
            log(step=step + 1, **drawn(nano, portion(60, scale), seed))
            nano.save(folder / "bagel_nano")
    log(step=total, **drawn(nano, portion(60, scale), seed))
    nano.save(folder / "bagel_nano")


def _scenes(seed: int, count: int) -> list:  # type: ignore[type-arg]
    rng = np.random.default_rng([seed, 76])
    return [random_scene(rng) for _ in range(count)]


def spread(drawing: Drawing) -> dict[str, float]:
    """Mean and deviation of the latents: 0 and 1, or levels of noise mean something else."""
    return {
        "latent_mean": drawing.latents.mean().item(),
        "latent_spread": drawing.latents.std().item(),
    }


def _write(nano: BagelNano, folder: Path) -> None:
    kept = {id(p) for part in nano.trained() for p in part}
    named = nano.model.named_parameters()
    state = {name: p.detach().contiguous() for name, p in named if id(p) in kept}
    save_file(state, folder / "language.safetensors")
