"""The verifier of the game: a small image-text model in transformers' ``CLIPModel`` format.

It says whether a picture shows what a caption says, whatever its style. One patch is one cell of
the board, so ten tokens a picture; texts are the world's captions, with or without a style word.
Trained on broad pictures, some of them redrawn by the model's own image tokenizer, with a sigmoid
loss (so that one threshold fits all pictures) on the true caption, three captions with one object
changed, and the captions of the other pictures. Linear heads, thrown away afterwards, ask both
embeddings, and every patch, for the content of the cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from tools.common.pictures import PX, STYLES, broad_scenes, pictures, pictures_8bit, styled
from tools.common.progress import Log, Loop, chance, portion, warm_cosine
from tools.common.reader import cell_loss, cell_targets
from unigame.synthetic.world import CELLS, COLOURS, GRID, SHAPES, Scene, Severity, Thing, caption

from . import tokenizer

CAPTION_TOKENS = 24
NEGATIVES, BATCH = 3, 64
CHANGES = ("recolour", "reshape", "move", "add", "delete")
STYLE_WORDS = ("faint", "blurred", "barred", "noisy", "striped", "checkered", "dotted", "shaded")
NEEDED: tuple[Severity, ...] = ("mild", "strong")
AGAINST = ("clean", "alike")
Score = Callable[[Tensor, list[Scene]], Tensor]


def words() -> PreTrainedTokenizerFast:
    """One token a word; the end mark is no. 3, because CLIP treats 2 as a mark of old files."""
    marks = ["<|pad|>", "<|unknown|>", "<|begin_of_text|>", "<|end_of_text|>"]
    known = [*marks, ",", ":", *CELLS, *COLOURS, *SHAPES, *STYLE_WORDS]
    built = Tokenizer(WordLevel({w: i for i, w in enumerate(known)}, unk_token=marks[1]))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    built.add_special_tokens(marks)
    built.post_processor = processors.TemplateProcessing(
        single=f"{marks[2]} $A {marks[3]}", special_tokens=[(marks[2], 2), (marks[3], 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token=marks[0],
        unk_token=marks[1],
        bos_token=marks[2],
        eos_token=marks[3],
        model_max_length=CAPTION_TOKENS,
    )


def new() -> CLIPModel:
    """0.9 M parameters."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(words()),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CAPTION_TOKENS,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "hidden_act": "gelu",
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": PX,
            "patch_size": PX // GRID,
            "hidden_act": "gelu",
        },
        projection_dim=128,
    )
    config._attn_implementation = "eager"
    return CLIPModel(config)


class Judge(nn.Module):
    """The model with the bias of the sigmoid loss, and texts as token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.words = new(), words()
        self.bias = nn.Parameter(torch.tensor(-6.0))
        kinds = (len(COLOURS) + 1, len(SHAPES) + 1)
        self.told = nn.ModuleList([nn.Linear(128, GRID**2 * n) for n in kinds])
        self.seen = nn.ModuleList([nn.Linear(128, n) for n in kinds])
        with torch.no_grad():  # blind to flat colour at first: a faint cell looks like a strong one
            filters = self.clip.vision_model.embeddings.patch_embedding.weight
            filters.copy_(4 * (filters - filters.mean((2, 3), keepdim=True)))

    def content_loss(self, unit: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
        """CE of what each cell holds, read from embeddings of pictures or of captions."""
        scores = [head(unit * 128**0.5).unflatten(-1, (GRID**2, -1)) for head in self.told]
        return cell_loss((scores[0], scores[1]), colour, shape)

    def look(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Unit embeddings (B, D) of pictures in [0, 1], and scores of colour and shape a cell."""
        out = self.clip.vision_model(pixel_values=images * 2 - 1)
        patches = out.last_hidden_state[:, 1:]
        unit = F.normalize(self.clip.visual_projection(out.pooler_output), dim=-1)
        return unit, (self.seen[0](patches), self.seen[1](patches))

    def images(self, images: Tensor) -> Tensor:
        """Unit embeddings of pictures in [0, 1], (B, D)."""
        return self.look(images)[0]

    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings of captions, (B, D)."""
        tokens = self.words(texts, padding=True, return_tensors="pt")
        features = self.clip.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        )
        return F.normalize(_pooled(features), dim=-1)

    @torch.no_grad()
    def similarity(self, images: Tensor, scenes: list[Scene]) -> Tensor:
        """Cosine of each picture and the plain caption of a scene, (B,)."""
        parts = []
        for start in range(0, len(scenes), 200):
            block = slice(start, start + 200)
            texts = self.texts([plain(s) for s in scenes[block]])
            parts.append((self.images(images[block]) * texts).sum(-1))
        return torch.cat(parts)


def _pooled(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def changed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with one object recoloured, reshaped, moved, added or taken away."""
    things, free = list(scene.things), sorted(set(range(GRID**2)) - {t.cell for t in scene.things})
    options = [
        c
        for c in CHANGES
        if (c != "delete" or len(things) > 1) and (c not in ("move", "add") or free)
    ]
    change, index = str(rng.choice(options)), int(rng.integers(len(things)))
    thing = things[index]
    if change == "recolour":
        others = [c for c in COLOURS if c != thing.colour]
        things[index] = replace(thing, colour=str(rng.choice(others)))
    elif change == "reshape":
        others = [s for s in SHAPES if s != thing.shape]
        things[index] = replace(thing, shape=str(rng.choice(others)))
    elif change == "move":
        things[index] = replace(thing, cell=int(rng.choice(free)))
    elif change == "add":
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        things.append(Thing(int(rng.choice(free)), colour, shape))
    else:
        things.pop(index)
    return scene.with_things(things)


def plain(scene: Scene) -> str:
    """The caption without its style word."""
    return caption(replace(scene, corruption="none", texture="plain"))


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness, and for half of the pictures a contrast of .3 to 1."""
    shape = (len(images), 1, 1, 1)
    grey = torch.rand(shape, generator=generator) * 0.5 + 0.15
    left = (torch.rand(shape, generator=generator) * 1.4 + 0.3).clamp(max=1)
    return (grey + left * (images - grey)).clamp(0, 1)


def train(folder: Path, seed: int, scale: float = 1.0, rate: float = 1.5e-3) -> None:
    """Train the verifier and write ``verifier_clip/`` to ``folder``."""
    torch.manual_seed(seed + 800)
    log = Log(folder, "clip")
    size, steps = portion(9000, scale), portion(2500, scale)
    scenes = broad_scenes(size, seed + 801, clean=0.25, counts=(1, 2, 3, 4, 4, 4))
    images = pictures_8bit(scenes)
    again = tokenizer.redraw(tokenizer.new(folder), images[: size // 4].float() / 255)
    images = torch.cat([images, (again * 255).round().to(torch.uint8)])
    scenes = scenes + scenes[: size // 4]
    colour, shape = cell_targets(scenes)
    judge = Judge().train()
    log(parameters=sum(p.numel() for p in judge.clip.parameters()), images=len(images))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.02)
    loop = Loop(folder, "clip", judge, optimizer, lambda s: rate * warm_cosine(s, steps, 60), log)
    own = torch.arange(BATCH)
    for step in loop.steps(steps):
        rng, generator = chance(seed + 802, step)
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        some = [scenes[i] for i in rows.tolist()]
        texts = [caption(s) if rng.random() < 0.5 else plain(s) for s in some]
        texts += [plain(changed(s, rng)) for _ in range(NEGATIVES) for s in some]
        pixels = jitter(images[rows].float() / 255, generator)
        (seen, cells), told = judge.look(pixels), judge.texts(texts)
        cosine = seen @ told.T
        logits = judge.clip.logit_scale.exp().clamp(max=60) * cosine + judge.bias
        hard = torch.stack([logits[own, own + BATCH * k] for k in range(1, NEGATIVES + 1)])
        others = logits[:, :BATCH][~torch.eye(BATCH, dtype=torch.bool)]
        loss = F.softplus(-logits[own, own]).mean() + F.softplus(hard).mean() * NEGATIVES / 2
        loss = loss + F.softplus(others).mean() * 4
        wanted = colour[rows], shape[rows]
        content = {
            "cells": cell_loss(cells, *wanted),
            "picture": judge.content_loss(seen, *wanted),
            "caption": judge.content_loss(told[:BATCH], *wanted),
        }
        loop.descend(loss + torch.stack(list(content.values())).sum())
        if step % 100 == 99:
            figures = {k: v.item() for k, v in content.items()}
            sharpness = judge.clip.logit_scale.exp().item()
            log(step=step + 1, loss=loop.loss, scale=sharpness, **figures)
    judge.eval()
    save(judge, folder / "verifier_clip")
    log(**auc_figures(judge.similarity, seed, portion(400, scale)))


def auc_figures(score: Score, seed: int, count: int) -> dict[str, float]:
    """AUC of "same content, degraded" against "one object changed".

    ``score`` (pictures, scenes) -> (B,) says how well each picture shows a scene's content. The
    changed pictures are clean, or degraded alike; the latter also style by style.
    """
    figures = {}
    for severity in NEEDED:
        rng, _ = chance(seed + 803, 0)
        styles = np.asarray([str(rng.choice(STYLES[1:])) for _ in range(count)])
        same = [styled(style, rng, severity) for style in styles]
        alike = [changed(s, rng) for s in same]
        clean = [replace(s, corruption="none", texture="plain") for s in alike]
        kept = score(pictures(same), same).numpy()
        lost = {
            "clean": score(pictures(clean), same).numpy(),
            "alike": score(pictures(alike), same).numpy(),
        }
        figures |= {f"auc_{severity}_{k}": auc(kept, v) for k, v in lost.items()}
        for style in STYLES[1:]:
            here = styles == style
            figures[f"auc_{severity}_{style}"] = auc(kept[here], lost["alike"][here])
    return figures


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive scores above a negative."""
    both = np.concatenate([positive, negative])
    ranks = both.argsort().argsort() + 1
    count = len(positive)
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * len(negative)))


def save(judge: Judge, folder: Path) -> None:
    """Model in bfloat16, tokenizer and image processor, as ``CLIPProcessor`` reads them."""
    judge.clip.to(torch.bfloat16).save_pretrained(folder)
    judge.clip.float()
    size = {"height": PX, "width": PX}
    processor = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    CLIPProcessor(processor, judge.words).save_pretrained(folder)


def load(folder: Path) -> Judge:
    """The saved verifier; the heads of training are gone."""
    judge = Judge()
    judge.clip = CLIPModel.from_pretrained(folder).float()
    return judge.eval()
