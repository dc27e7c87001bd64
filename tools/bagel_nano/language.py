"""Stages 3 and 4: one language model of two experts that answers and draws.

*Together* trains everything, and drawing comes first: captions alone, on both experts, broadly (all
combinations, every style under its word, knowledge prompts). What a caption says of place, colour
and shape is worked out by the understanding expert, and no picture is asked about meanwhile. Then
answers begin, narrowly (clean scenes, held-out combinations left out), and captions go on. It ends
by itself: once answers are good enough the learning rate runs out, so that they keep room to learn.

*Drawing* then trains the generation expert and the flow only. Answers stay as they are, bit for
bit; what the understanding expert makes of captions is fixed, and so is made once (``captions``).

The flow is the backbone's own: x_t = (1 - t) clean + t noise, velocity noise - clean, levels
sigmoid(N(0, 1)) shifted, captions left out at times. Latents near an object weigh more, and some
levels are drawn near pure noise: the first steps of free drawing decide what is where.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.common.knowing import scene_of, triple
from tools.common.pictures import broad_scenes, foreground, pictures
from tools.common.progress import Log, Loop, chance, portion, warm_cosine
from tools.common.reading import Answering, drawn, evaluate, understanding
from unigame.backbones.bagel import flow
from unigame.synthetic.knowledge import facts
from unigame.synthetic.world import Scene, caption, random_scene

from . import decisions
from .captions import Captions
from .nano import FLOW_PARTS, BagelNano

RATE = 1.5e-3
FIRST_CAPTIONS, SCENES, CAPTIONS, ALONE = 48, 6, 32, 64
"""Captions drawn in a step before answers begin; scenes asked about and captions drawn in a step
after that; captions in a step of stage drawing."""
FIRST, TOGETHER, COOLING, DRAWING = 1539, 6900, 150, 4200
"""Steps of captions alone; most steps of the stage, these included; its steps after the aim is
reached; steps of stage drawing."""
AIM, LOOKS, LOOK_SCENES, LOOK_EVERY, EVALUATE_EVERY = 0.76, 2, 120, 50, 500
"""Share of right answers about clean scenes at which cooling begins, which adds a few points; how
many looks in a row must find it, of so many scenes (standard error about .014)."""
OBJECTS = 3.0
"""Weight of latents where an object is."""
KNOWLEDGE = 0.15
"""Share of pictures whose caption is a knowledge prompt."""
NEAR_NOISE, NEAR = 0.15, 0.85
"""Share of levels that are drawn evenly from there up to 1, pure noise."""


class Drawing:
    """Captions, the latents of their pictures, and the flow loss.

    Args:
        nano: whose autoencoder encodes.
        seed: of scenes and captions.
        scale: share of 14,000 pictures.
        folder: keeps the latents for the next time (``latents.safetensors``); None: not kept.
    """

    def __init__(
        self, nano: BagelNano, seed: int, scale: float, folder: Path | None = None
    ) -> None:
        self.nano, count = nano, portion(14_000, scale)
        self.captions: Captions | None = None
        scenes = broad_scenes(count, seed + 21, clean=0.5)
        words = [caption(scene) for scene in scenes]
        rng = np.random.default_rng([seed, 42])
        taught = [fact for fact in facts() if fact.taught]
        for i in rng.permutation(count)[: round(KNOWLEDGE * count)]:
            fact = taught[int(rng.integers(len(taught)))]
            scenes[i], words[i] = scene_of(triple(fact), rng), fact.prompt
        self.prompts = nano.backbone.prompt_tokens(words)
        self.plain = nano.backbone.preprocessor.prompt("")
        self.latents, self.objects = _encoded(nano, scenes, folder)

    def keep_captions(self) -> None:
        """The understanding expert is frozen from here on: what it makes of captions is made now.

        Without this, text and marks share a tensor in every layer, and the frozen expert's
        products over all of it go backward for the marks' sake.
        """
        self.captions = Captions(self.nano, self.prompts)

    def loss(self, batch: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity, objects weighing more."""
        settings = self.nano.model.config
        rows = torch.from_numpy(rng.integers(len(self.latents), size=batch))
        kept = torch.from_numpy(rng.random(batch) >= settings.caption_dropout)
        level_B = levels(batch, settings.timestep_shift, generator)
        clean = self.latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        squares = self.squares(rows, kept, clean, noise, level_B)
        weight = (1 + (OBJECTS - 1) * self.objects[rows]).expand_as(squares)
        return (weight * squares).sum() / weight.sum()

    def squares(
        self, rows: Tensor, kept: Tensor, clean: Tensor, noise: Tensor, level_B: Tensor
    ) -> Tensor:
        """Squared error of the velocity at every latent, (B, C, h, w); captions where ``kept``."""
        noisy = flow.noised(clean, noise, level_B)
        if self.captions is None:
            pairs = zip(rows.tolist(), kept.tolist(), strict=True)
            prompts = [self.prompts[row] if caption else self.plain for row, caption in pairs]
            states = self.nano.backbone.latent_states(prompts, noisy, level_B)
        else:
            states = self.captions.states(rows, kept, noisy, level_B)
        return (self.nano.model.velocity(states, clean.shape[-2]) - (noise - clean)).square()


def levels(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels to train at, (B,).

    Shifted sigmoids of normal numbers have one level in eighty above .95, where free drawing takes
    three of its sixteen steps.
    """
    usual = flow.shifted(torch.randn(batch, generator=generator).sigmoid(), shift)
    near = NEAR + (1 - NEAR) * torch.rand(batch, generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < NEAR_NOISE, near, usual)


def _encoded(
    nano: BagelNano, scenes: Sequence[Scene], folder: Path | None
) -> tuple[Tensor, Tensor]:
    """Latents of scenes (P, C, h, w), and where their objects are (P, 1, h, w).

    Both are kept in ``folder`` with a digest of the autoencoder and the scenes; of others, they are
    made anew.
    """
    digest = hashlib.sha256(repr(scenes).encode())
    for value in nano.model.vae.state_dict().values():
        digest.update(value.numpy().tobytes())
    of = digest.hexdigest()
    file = None if folder is None else folder / "latents.safetensors"
    if file is not None and file.exists():
        with safe_open(file, "pt") as kept:
            if kept.metadata() == {"of": of}:
                return kept.get_tensor("latents"), kept.get_tensor("objects")
    blocks = [scenes[i : i + 960] for i in range(0, len(scenes), 960)]
    latents = torch.cat([nano.encode(pictures(block)) for block in blocks])
    objects = torch.cat([foreground(block) for block in blocks])
    objects = F.max_pool2d(objects, objects.shape[-1] // latents.shape[-1])
    if file is not None:
        tensors = {"latents": latents.contiguous(), "objects": objects.contiguous()}
        partial = file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"of": of})
        partial.replace(file)
    return latents, objects


class Course(nn.Module):
    """The weights of stage together, and how far it has come.

    Attributes:
        reached: how many looks in a row have found the aim.
        cooling: the step at which the learning rate began to run out; -1: not yet.
    """

    def __init__(self, nano: BagelNano, steps: int, scale: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList([p for part in nano.trained() for p in part])
        self.register_buffer("reached", torch.tensor(0))
        self.register_buffer("cooling", torch.tensor(-1))
        self.total = portion(steps, scale)
        # Not by the steps: a stage that goes on with more must not come back to captions alone.
        self.first = min(portion(FIRST, scale), self.total)

    def rate(self, step: int) -> float:
        """Warm-up, and again where answers begin; from the step of cooling on down to nothing."""
        begun = int(self.cooling)
        left = 1.0 if begun < 0 else max(0.02, 1 - (step - begun) / COOLING)
        warm = (step + 1) / 100 if step < self.first else (step - self.first + 1) / 50
        return RATE * min(1.0, warm) * left

    def over(self, step: int) -> bool:
        """Whether it has cooled down."""
        return 0 <= int(self.cooling) <= step - COOLING

    def looks(self, done: int) -> bool:
        """Whether answers are looked at now, to see if they are good enough."""
        return done % LOOK_EVERY == 0 and int(self.cooling) < 0

    def look(self, done: int, found: Mapping[str, float]) -> None:
        """Take in the shares of right answers, their mean and those of each kind.

        A good mean may hide a kind that is still at chance, and no later stage learns it.
        """
        good = found["mean"] >= AIM and not decisions.at_chance(found)
        self.reached.fill_(int(self.reached) + 1 if good else 0)
        if int(self.reached) >= LOOKS:
            self.cooling.fill_(done)

    def ends(self, done: int) -> None:
        """If the aim is not reached in time, the rate runs out all the same."""
        if done >= self.total - COOLING and int(self.cooling) < 0:
            self.cooling.fill_(done)


def together(folder: Path, seed: int, scale: float = 1.0, steps: int = TOGETHER) -> None:
    """Train both experts on drawings, then on answers too; write ``language.safetensors``."""
    torch.manual_seed(seed + 1)
    log, nano = Log(folder, "together"), BagelNano.new(folder)
    _forget_if_other(folder, log, "together", ("vision", "vae"), "language.safetensors")
    answering, drawing = Answering(nano, seed, scale), Drawing(nano, seed, scale, folder)
    course = Course(nano, steps, scale)
    nano.model.get_submodule("language_model").requires_grad_(True)
    for weight in course.weights:
        weight.requires_grad_(True)
    log(parameters=sum(p.numel() for p in nano.model.parameters()), **spread(drawing))
    optimizer = torch.optim.AdamW(course.weights, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    loop = Loop(folder, "together", course, optimizer, course.rate, log)
    scenes = _scenes(seed, max(12, portion(LOOK_SCENES, scale)))
    for step in loop.steps(course.total):
        if course.over(step):
            break
        rng, generator = chance(seed + 30, step)
        losses = {}
        if step >= course.first:
            losses["answering"] = answering.loss(SCENES, rng)
        captions = CAPTIONS if step >= course.first else FIRST_CAPTIONS
        losses["drawing"] = drawing.loss(captions, rng, generator)
        loop.descend(torch.stack(list(losses.values())).sum())
        if step % 25 == 24:
            log(step=step + 1, **{k: v.item() for k, v in losses.items()})
        if step < course.first:
            _watch_captions(nano, log, step + 1, course.first, seed, scale)
        else:
            _watch_answers(nano, log, step + 1, course, scenes)
            if step % EVALUATE_EVERY == EVALUATE_EVERY - 1:
                evaluate(nano, seed, log, step + 1, True, scale)
    loop.save()
    evaluate(nano, seed, log, loop.done, True, scale)
    log(step=loop.done, decision=decisions.of_answers(understanding(nano, scenes, 6)))
    _write(nano, folder)


def _watch_captions(
    nano: BagelNano, log: Log, done: int, first: int, seed: int, scale: float
) -> None:
    """Log drawings after steps of captions alone, and behind the last one whether to go on."""
    if done % EVALUATE_EVERY and done != first:
        return
    found = drawn(nano, max(12, portion(60, scale)), seed, temperature=nano.temperature)
    said = {"decision": decisions.of_flow_first(found)} if done == first else {}
    log(step=done, **found, **said)


def _watch_answers(
    nano: BagelNano, log: Log, done: int, course: Course, scenes: list[Scene]
) -> None:
    """Look at answers now and then; good ones twice in a row begin the end of the stage."""
    if course.looks(done):
        found = understanding(nano, scenes, 6)
        log(step=done, **found)
        course.look(done, found)
    course.ends(done)


def draws(folder: Path, seed: int, scale: float = 1.0, steps: int = DRAWING) -> None:
    """Train the generation expert and the flow on; write ``bagel_nano/``."""
    torch.manual_seed(seed + 2)
    log, nano = Log(folder, "drawing"), BagelNano.new(folder)
    read_language(nano, folder)
    drawing = Drawing(nano, seed, scale, folder)
    drawing.keep_captions()
    _, weights = nano.trained()
    for weight in weights:
        weight.requires_grad_(True)
    total = portion(steps, scale)
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    rate = lambda step: RATE * warm_cosine(step, total, 100)  # noqa: E731
    _forget_if_other(folder, log, "drawing", ("language",), "bagel_nano")
    loop = Loop(folder, "drawing", nn.ParameterList(weights), optimizer, rate, log)
    for step in loop.steps(total):
        rng, generator = chance(seed + 31, step)
        loop.descend(drawing.loss(ALONE, rng, generator))
        if step % 25 == 24:
            log(step=step + 1, drawing=loop.loss)
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1:
            found = drawn(nano, portion(60, scale), seed, temperature=nano.temperature)
            log(step=step + 1, **found, **decisions.of_drawing(step + 1, found))
            nano.save(folder / "bagel_nano")
    log(step=total, **drawn(nano, portion(60, scale), seed, temperature=nano.temperature))
    nano.save(folder / "bagel_nano")


def _forget_if_other(folder: Path, log: Log, stage: str, weights: Sequence[str], made: str) -> None:
    """Set aside what a stage made of other weights: its progress, and what it wrote at its end."""
    of = hashlib.sha256()
    for name in weights:
        of.update((folder / f"{name}.safetensors").read_bytes())
    file = folder / f"{stage}.of"
    if not (file.exists() and file.read_text() == of.hexdigest()):
        for name in (f"{stage}.progress", made):
            if (folder / name).exists():
                aside = folder / f"{name}.of_other_weights"
                shutil.rmtree(aside, ignore_errors=True)
                (folder / name).replace(aside)
                log(set_aside=str(aside))
    file.write_text(of.hexdigest())


def read_language(nano: BagelNano, folder: Path) -> None:
    """Take in what stage together has trained: all of it, or a renamed weight would stay random.

    Raises:
        ValueError: the file lacks weights of the language model, or has others.
    """
    file = folder / "language.safetensors"
    left = nano.model.load_state_dict(load_file(file), strict=False)
    own = ("language_model", *FLOW_PARTS)
    missing = [name for name in left.missing_keys if name.startswith(own)]
    if missing or left.unexpected_keys:
        raise ValueError(
            f"{str(file)!r} lacks {missing[:3]} and has the unknown {left.unexpected_keys[:3]}: "
            "train stage together again"
        )


def _scenes(seed: int, count: int) -> list[Scene]:
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
