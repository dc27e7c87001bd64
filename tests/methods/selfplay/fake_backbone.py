"""A backbone of a few hundred weights that has every verb the game uses, and counts their calls.

Patches of 4 x 4 px, four tokens a picture, smooth everywhere but in the discrete step (which
``hard=False`` relaxes), so finite differences can check gradients through it in float64.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unigame.backbones.base import Backbone, BackboneFacts, Drawing, VisualStates

PATCH, SIDE, TOKENS, WIDTH, CODES, ANSWERS = 4, 8, 4, 8, 11, ("red", "blue", "one", "two", "yes")


def word_vector(text: str) -> Tensor:
    """A fixed vector for a text, the same in every process."""
    seed = sum((i + 1) * ord(c) for i, c in enumerate(text))
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class FakeBackbone(Backbone):
    """See the module docstring. ``lora`` stands for U's trainable weights."""

    def __init__(self, seed: int = 0, hard: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokenizer = nn.Linear(PATCH * PATCH * 3, WIDTH, bias=False)
            self.codebook = nn.Parameter(torch.randn(CODES, WIDTH))
            self.body = nn.Linear(2 * WIDTH, WIDTH)
            self.image_head = nn.Linear(WIDTH, CODES)
            self.decoder = nn.Linear(WIDTH, PATCH * PATCH * 3)
            self.vision = nn.Linear(PATCH * PATCH * 3, 6)
            self.aligner = nn.Linear(6, WIDTH)
            self.lora = nn.Linear(2 * WIDTH, WIDTH)
            self.text_head = nn.Linear(WIDTH, len(ANSWERS))
        self.dropout = nn.Dropout(dropout)
        self.requires_grad_(False)
        self.lora.requires_grad_(True)
        self.hard = hard
        self.calls: Counter[str] = Counter()
        self.last: dict[str, object] = {}
        self.facts = BackboneFacts(
            family="fake",
            image_size=SIDE,
            num_image_tokens=TOKENS,
            hidden_size=WIDTH,
            codebook_size=CODES,
            lora_targets=("lora",),
            frozen_parts=("vision",),
            dtype=torch.float32,
            num_parameters=sum(p.numel() for p in self.parameters()),
        )

    @staticmethod
    def patches(images: Tensor) -> Tensor:
        return F.unfold(images, PATCH, stride=PATCH).mT

    def image_features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.vision(self.patches(images)))

    def embed_images(self, images: Tensor) -> Tensor:
        self.calls["embed_images"] += 1
        return self.aligner(self.image_features(images))

    def answer_loss(self, images, questions, answers, *, embeds=None):
        self.calls["answer_loss"] += 1
        tokens = self.aligner(self.image_features(images)) if embeds is None else embeds
        repeat = tokens.shape[0] // len(questions)
        asked = torch.stack([word_vector(q) for q in questions]).to(tokens)
        asked = asked.repeat_interleave(repeat, dim=0)
        pooled = torch.cat([torch.tanh(2 * tokens).mean(dim=1), asked], dim=-1)
        logits = self.text_head(torch.tanh(self.dropout(self.lora(pooled))))
        target = torch.tensor([ANSWERS.index(a) for a in answers]).repeat_interleave(repeat)
        return F.cross_entropy(3 * logits, target, reduction="none")

    def encode_images(self, images: Tensor) -> Tensor:
        self.calls["encode_images"] += 1
        return torch.cdist(self.tokenizer(self.patches(images)), self.codebook).argmin(dim=-1)

    @torch.no_grad()
    def visual_states(self, images, prompts, *, codes=None):
        self.calls["visual_states"] += 1
        self.last = {"images": images, "prompts": list(prompts)}
        codes = self.encode_images(images) if codes is None else codes
        before = F.pad(self.codebook[codes][:, :-1], (0, 0, 1, 0))
        prompt = torch.stack([word_vector(p) for p in prompts]).to(before)
        prompt = prompt[:, None].expand_as(before)
        states = torch.tanh(self.dropout(self.body(torch.cat([before, prompt], dim=-1))))
        return VisualStates(states, codes)

    def draw(
        self,
        states_BNH,
        codes,
        *,
        num_candidates=1,
        anchor=0.0,
        temperature=1.0,
        sample=False,
        generator=None,
    ):
        self.calls["draw"] += 1
        logits = self.image_head(states_BNH) + anchor * F.one_hot(codes, CODES)
        logits = logits.repeat_interleave(num_candidates, dim=0)
        if sample or num_candidates > 1:
            uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-9)
            logits = logits - (-uniform.log()).log().to(logits)
        soft = (logits / temperature).softmax(dim=-1)
        drawn = logits.argmax(dim=-1)
        weight = F.one_hot(drawn, CODES).to(soft) + soft - soft.detach() if self.hard else soft
        return Drawing(self.decode(weight @ self.codebook), drawn)

    def decode(self, vectors: Tensor) -> Tensor:
        pixels = torch.sigmoid(2 * self.decoder(vectors)).mT
        return F.fold(pixels, (SIDE, SIDE), PATCH, stride=PATCH)

    def render(self, compact: Tensor) -> Tensor:
        return self.decode(self.codebook[compact])

    def generate(self, *args, **kwargs):
        raise AssertionError("the game must never generate freely: candidates are redrawings")

    def _unused(self, *args, **kwargs):
        raise AssertionError("the game has no use for this verb")

    answer = generation_loss = preprocess = add_lora = lora_disabled = _unused
    save_pretrained = load_adapter = gradient_checkpointing_enable = _unused
