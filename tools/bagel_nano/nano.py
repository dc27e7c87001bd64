"""The whole model in the making: the published class, its processor, and its forward passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from tools.common import vision
from tools.common.nano import Nano, Packed
from unigame.backbones.bagel.files import read_model
from unigame.backbones.bagel.language import GEN
from unigame.backbones.bagel.layout import IMAGE
from unigame.backbones.bagel.load import load_tokenizer
from unigame.backbones.bagel.model import UNDERSTANDING, BagelBackbone
from unigame.backbones.bagel.modeling import BagelModel, TimeEmbedder
from unigame.backbones.common.lora import language_model_lora

from . import vae
from .config import build_tokenizer, nano_config
from .vision import Tower

FLOW_PARTS = ("vae2llm", "llm2vae", "time_embedder")


class BagelNano(Nano):
    """A BAGEL whose eyes and autoencoder are done and frozen.

    Attributes:
        backbone: the same model as users have it.
    """

    prefix_sees_itself = True
    temperature = 1.0  # of the noise that it starts from: less of it is no noise that it knows

    def __init__(self, model: BagelModel, tokenizer: object) -> None:
        self.model = model
        self.backbone = BagelBackbone(model, tokenizer)
        self.layout = self.backbone.layout
        super().__init__()

    @classmethod
    def new(cls, folder: Path) -> BagelNano:
        """With the eyes and the autoencoder in ``folder``, and a fresh language model."""
        tokenizer = build_tokenizer()
        model, tower = BagelModel(nano_config(len(tokenizer))), Tower()
        vision.load(tower, folder)
        model.eyes.load_state_dict(tower.eyes.state_dict())
        model.connector.load_state_dict(tower.connector.state_dict())
        model.vae.load_state_dict(vae.new(folder).state_dict())
        with torch.no_grad():  # what comes in as large as the tables of places; nothing goes out
            nn.init.normal_(model.vae2llm.weight, std=model.vae2llm.in_features**-0.5)
            nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
            nn.init.zeros_(model.llm2vae.weight)
            _spread_times(model.time_embedder)
        return cls(model, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> BagelNano:
        """A finished checkpoint, weights as saved (bfloat16), computed in float32."""
        model = read_model(folder, "float32", torch.device("cpu"))
        return cls(model, load_tokenizer(folder))

    def trained(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Weights of the understanding expert, and those of the generation expert and the flow."""
        understanding, generation = [], []
        for name, weight in self.model.named_parameters():
            if GEN in name or name.startswith(FLOW_PARTS):
                generation.append(weight)
            elif name.startswith("language_model"):
                understanding.append(weight)
        return understanding, generation

    # ---- what the stages ask -------------------------------------------------------------------
    def _prefix_length(self, row: Sequence[int]) -> int:
        return list(row).index(self.layout.end_id) + 1

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat([self.backbone.read_images(chunk)[1] for chunk in images.split(128)])

    def logits_at(self, packed: Packed, features: Tensor) -> Tensor:
        """See the base class."""
        decoder = self.model.decoder
        states = decoder.embed_tokens(packed.ids_BT.clamp(min=0))
        states = states.masked_scatter((packed.ids_BT == IMAGE)[..., None], features)
        turns = decoder.rotary_emb(states, packed.positions_BT)
        for layer in decoder.layers:
            states = layer(states, packed.seen_BTT[:, None], turns)
        said = decoder.norm(states.flatten(0, 1)[packed.where])
        return self.model.get_output_embeddings()(said)

    def draw(self, captions: list[str], temperature: float, seed: int) -> Tensor:
        """See the base class."""
        return self.backbone.generate(
            captions,
            seed=seed,
            guidance_scale=1.0,
            temperature=temperature or 1.0,
            do_sample=temperature > 0,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (B, C, 18, 18) of pictures in [0, 1]."""
        return torch.cat([self.backbone.encode_images(chunk) for chunk in images.split(96)])

    @torch.no_grad()
    def redraw(self, images: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat([self.backbone.render(self.encode(c)) for c in images.split(96)])

    def lora(self) -> LoraConfig:
        """See the base class."""
        return language_model_lora(None, UNDERSTANDING)

    def save(self, folder: Path) -> None:
        """See the base class."""
        model = copy.deepcopy(self.model)
        autoencoder, model.vae = model.vae, nn.Identity()  # it is float32 wherever it is loaded
        model.to(torch.bfloat16)
        model.vae = autoencoder
        model.save_pretrained(folder)
        self.layout.tokenizer.save_pretrained(folder)


def _spread_times(embedder: TimeEmbedder, variation: float = 0.4) -> None:
    """Start with levels told apart, as far as places are: deviation ``variation`` over t, mean 0.

    At transformers' initial values what a level adds varies by .003, beside .5 of the places.
    """
    first, last = embedder.mlp[0], embedder.mlp[2]
    nn.init.normal_(first.weight, std=0.1)
    nn.init.normal_(last.weight, std=0.1)
    nn.init.zeros_(last.bias)
    level_T = torch.linspace(0, 1, 65)
    times_TH = embedder(level_T)
    last.weight.mul_(variation / (times_TH - times_TH.mean(0)).std())
    last.bias.copy_(-embedder(level_T).mean(0))
