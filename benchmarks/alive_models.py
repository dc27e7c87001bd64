"""Small models of every family that know the synthetic world well enough to be attacked.

A family registers a function that builds (or loads) its model and, where needed, one that trains
it from scratch for a few minutes on one core: ``MODELS["name"] = Family(build, train, play)``.
Training here moves every weight; it only exists so that the game has something to play with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from alive_tokens import Training, train_tokens
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a clone can be run without installing it

from unigame.backbones import load_backbone  # noqa: E402
from unigame.backbones.base import Backbone  # noqa: E402
from unigame.synthetic.questions import ask, vocabulary  # noqa: E402
from unigame.synthetic.world import Scene, caption, random_scene, render  # noqa: E402


@dataclass
class World:
    """Scenes as tensors, each with one question, its true answer and a caption."""

    images: Tensor
    questions: list[str]
    answers: list[str]
    captions: list[str]

    def batch(self, size: int, rng: np.random.Generator) -> World:
        """``size`` different samples."""
        return self.rows(rng.permutation(len(self.images))[:size].tolist())

    def rows(self, index: list[int]) -> World:
        """These samples."""
        texts = (self.questions, self.answers, self.captions)
        return World(self.images[index], *([text[i] for i in index] for text in texts))


@dataclass(frozen=True)
class Play:
    """How a family is played with in the alive run."""

    kinds: tuple[str, ...] = ("colour", "shape")
    counts: tuple[int, ...] = (1,)
    eps_max: float = 0.6
    eps_init: float = 0.3
    anchor: float = 0.0
    label_weight: float = 0.5
    perturber_learning_rate: float = 5e-3
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Family:
    """One family: its untrained (or bundled) model, its training, and its settings in the game.

    Attributes:
        build: folder to write checkpoints into -> backbone.
        train: trains every weight on the world, printing its progress; None: nothing to do.
        play: settings of the alive run.
    """

    build: Callable[[Path], Backbone]
    train: Callable[[Backbone, World], None] | None = None
    play: Play = field(default_factory=Play)


def make_world(backbone: Backbone, play: Play, size: int, seed: int) -> World:
    """``size`` scenes of the world, one question each, at the model's own image size."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    questions, answers = [], []
    while len(scenes) < size:
        scene = random_scene(rng, counts=play.counts)
        asked = ask(scene, play.kinds[len(scenes) % len(play.kinds)], rng)
        if asked is not None:
            scenes.append(scene)
            questions.append(asked[0])
            answers.append(asked[1])
    pictures = [Image.fromarray((render(s) * 255).round().astype(np.uint8)) for s in scenes]
    images = backbone.preprocess(pictures).to(backbone.device)
    return World(images, questions, answers, [caption(scene) for scene in scenes])


# ---- composed models -----------------------------------------------------------------------------
def _composed(name: str) -> Callable[[Path], Backbone]:
    def build(folder: Path) -> Backbone:
        from tests import tiny_composed

        size = tiny_composed.Size(
            image=24,
            hidden=64,
            vision_layers=2,
            layers=2,
            channels=32,
            queries=8,
            strength=0.5,
            vae_channels=(16, 16, 32),
        )
        make = getattr(tiny_composed, name)
        return load_backbone(make(folder, size=size, words=vocabulary()), device="cpu")

    return build


def train_composed(backbone: Backbone, world: World) -> None:
    """VAE first, and then everything else on answers and captions together.

    Half of the pictures to be read have been through the VAE: what it loses should not be what the
    attack lives on.
    """
    from unigame.backbones.composed.model import ComposedBackbone

    assert isinstance(backbone, ComposedBackbone)
    _train_vae(backbone, world, steps=300)
    with torch.no_grad():
        latents = backbone.encode_images(world.images[:256])
    backbone.branch.scale /= float(latents.std())
    codes = torch.cat([backbone.encode_images(part) for part in world.images.split(64)])
    redrawn = torch.cat([backbone.render(part) for part in codes.split(64)]).detach()
    backbone.requires_grad_(True)
    backbone.branch.vae.requires_grad_(False)
    backbone.train()
    rng, steps = np.random.default_rng(0), 700
    parameters = backbone.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    torch.manual_seed(0)
    for step in range(steps):
        index = rng.permutation(len(world.images))[:24].tolist()
        rows = world.rows(index)
        images = torch.cat([rows.images[:12], redrawn[index[12:]]])
        answer_B = backbone.answer_loss(images, rows.questions, rows.answers)
        drawn_B = backbone.generation_loss(rows.images, rows.captions, codes=codes[index])
        optimizer.zero_grad()
        (answer_B.mean() + drawn_B.mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"  {step:4d}  answer {answer_B.mean():.3f}  denoise {drawn_B.mean():.3f}",
                flush=True,
            )
    backbone.requires_grad_(False)
    backbone.eval()


def _train_vae(backbone: Backbone, world: World, steps: int) -> None:
    from unigame.backbones.composed.model import ComposedBackbone

    assert isinstance(backbone, ComposedBackbone)
    branch, rng = backbone.branch, np.random.default_rng(1)
    branch.vae.requires_grad_(True)
    optimizer = torch.optim.AdamW(branch.vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        pixels = backbone.pixels.normalise(world.batch(24, rng).images)
        latents = branch.encode(pixels)
        error = (branch.decode(latents) - pixels).square().mean()
        optimizer.zero_grad()
        (error + 1e-3 * latents.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(branch.vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  {step:4d}  picture error {error:.4f}", flush=True)


# ---- models that read and draw tokens -----------------------------------------------------------
def _emu3(folder: Path) -> Backbone:
    from tests import tiny_emu3

    size = tiny_emu3.Size(image=48, hidden=64, codes=256, channels=32)
    return load_backbone(
        tiny_emu3.make_tiny_emu3(folder, size=size, words=vocabulary()), device="cpu"
    )


def train_emu3(backbone: Backbone, world: World) -> None:
    """See ``train_tokens``: one code stands for 8 px here, and must keep what lies around it.

    Torch's random state is left alone, so that the game goes the same way with weights from a file.
    """
    with torch.random.fork_rng(devices=[]):
        train_tokens(backbone, world, Training(language_steps=1500, margin=4, shifted=True))


def _chameleon(folder: Path) -> Backbone:
    from tests.tiny_chameleon import make_tiny_chameleon

    make_tiny_chameleon(folder, image_size=24, hidden=64, num_codes=256, vocab_words=vocabulary())
    return load_backbone(folder, device="cpu")


UNET_PLAY = Play(eps_max=1.0, eps_init=0.5, anchor=0.5, label_weight=0.3, learning_rate=3e-4)
# This model redraws closer to the picture, so C gets more room.
DIT_PLAY = Play(eps_max=1.0, eps_init=0.5, anchor=0.25, label_weight=0.1, learning_rate=3e-4)
# The anchor keeps most codes, so that what changes is C's doing; with a label term of 0.2 or more C
# did next to nothing.
EMU3_PLAY = Play(eps_max=1.0, eps_init=0.5, anchor=5.0, label_weight=0.1, learning_rate=5e-4)
# The anchor keeps G near the pictures while U's LoRA, which is G's too, learns only to read.
CHAMELEON_PLAY = Play(
    eps_max=1.0, eps_init=0.5, anchor=3.0, perturber_learning_rate=3e-3, learning_rate=4e-4
)


def _bundled(name: str, **changes: float) -> Family:
    """A model that has learned the world already."""
    play = Play(counts=(1, 2, 3), eps_max=1.0, eps_init=0.5, learning_rate=2e-4)
    return Family(lambda folder: load_backbone(name, device="cpu"), play=replace(play, **changes))


MODELS: dict[str, Family] = {
    "janus": _bundled("janus-nano", anchor=4.0),
    # Without the label term C changed what pictures show, and U took back too little.
    "bagel": _bundled("bagel-nano", anchor=0.5, label_weight=0.3),
    "composed_sd": Family(_composed("make_vlm_unet"), train_composed, UNET_PLAY),
    "composed_llm_dit": Family(_composed("make_llm_dit"), train_composed, DIT_PLAY),
    "emu3": Family(_emu3, train_emu3, EMU3_PLAY),
    "chameleon": Family(_chameleon, train_tokens, CHAMELEON_PLAY),
}
