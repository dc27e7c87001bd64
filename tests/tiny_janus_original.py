"""A tiny random Janus as its authors lay it out: their names and their forward passes.

The modules here are written from the published architecture (a timm-style ViT, LlamaGen's image
tokenizer, GELU projectors, a Llama) and know nothing of the converter's table of names, so that
both can be compared by what they compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

SIZE, PATCH, HIDDEN, WIDTH = 16, 4, 32, 24
VOCAB, CODES, CODE_WIDTH = 400, 64, 8
TOWER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": PATCH,
    "mlp_ratio": 2.0,
}
TOKENIZER = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2],
    "num_res_blocks": 1,
    "latent_channels": 64,
}


class Layers(nn.Module):
    """Named children and nothing else."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


# ---- understanding -------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BNC: Tensor) -> Tensor:
        heads = TOWER["num_attention_heads"]
        # Rows of the fused layer: all of q, then all of k, then all of v.
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (WIDTH / heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn = Attention()
        inner = int(WIDTH * TOWER["mlp_ratio"])
        self.mlp = Layers(fc1=nn.Linear(WIDTH, inner), fc2=nn.Linear(inner, WIDTH))

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x_BNC))))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Layers(proj=nn.Conv2d(3, WIDTH, PATCH, PATCH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(TOWER["num_hidden_layers"])))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        # The checkpoints carry SigLIP's pooling head, and the forward pass leaves it out.
        self.attn_pool = Layers(q=nn.Linear(WIDTH, WIDTH), kv=nn.Linear(WIDTH, 2 * WIDTH))
        self.attn_pool.latent = nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        patches_BNC = self.patch_embed.proj(pixels_B3SS).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(patches_BNC + self.pos_embed))


def projector(inputs: int, depth: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(inputs, HIDDEN)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(HIDDEN, HIDDEN)]
    return Layers(layers=nn.Sequential(*layers))


# ---- the image tokenizer -------------------------------------------------------------------------


def norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Res(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in "1234")

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # One head of as many units as channels; positions are the sequence.
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(1, 2) / x.shape[1] ** 0.5).softmax(-1) @ v
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """One resolution: residual blocks, attention at the lowest one, then a change of size."""

    def __init__(self, inputs: int, outputs: int, blocks: int, lowest: bool, resize: str) -> None:
        super().__init__()
        self.res = nn.ModuleList(Res(outputs if i else inputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(Attn(outputs) for _ in range(blocks if lowest else 0))
        if resize == "downsample":
            self.downsample = Layers(conv=nn.Conv2d(outputs, outputs, 3, stride=2))
        if resize == "upsample":
            self.upsample = Layers(conv=nn.Conv2d(outputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            x = self.attn[i](x) if self.attn else x
        if hasattr(self, "downsample"):
            return self.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            return self.upsample.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return x


class Half(nn.Module):
    """Encoder or decoder: levels from high to low resolution, or from low to high."""

    def __init__(self, encoder: bool) -> None:
        super().__init__()
        base, latent = TOKENIZER["base_channels"], TOKENIZER["latent_channels"]
        widths = [base * m for m in TOKENIZER["channel_multiplier"]]
        blocks, last = TOKENIZER["num_res_blocks"], len(widths) - 1
        start = base if encoder else widths[-1]
        end = widths[-1] if encoder else widths[0]
        self.conv_in = nn.Conv2d(3 if encoder else latent, start, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        order = range(last + 1) if encoder else range(last, -1, -1)
        resize = "downsample" if encoder else "upsample"
        inputs = start
        for level in order:
            count = blocks if encoder else blocks + 1
            change = resize if level != order[-1] else ""
            part = Level(inputs, widths[level], count, level == last, change)
            self.conv_blocks.append(part)
            inputs = widths[level]
        lowest = widths[-1]
        self.mid = nn.ModuleList([Res(lowest, lowest), Attn(lowest), Res(lowest, lowest)])
        self.norm_out = norm(end)
        self.conv_out = nn.Conv2d(end, latent if encoder else 3, 3, padding=1)
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        levels, mid = list(self.conv_blocks), list(self.mid)
        x = self.conv_in(x)
        for part in (*levels, *mid) if self.encoder else (*mid, *levels):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ImageTokenizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Half(encoder=True), Half(encoder=False)
        latent = TOKENIZER["latent_channels"]
        self.quantize = Layers(embedding=nn.Embedding(CODES, CODE_WIDTH))
        self.quantize.register_buffer("codebook_used", torch.zeros(100))
        self.quant_conv = nn.Conv2d(latent, CODE_WIDTH, 1)
        self.post_quant_conv = nn.Conv2d(CODE_WIDTH, latent, 1)

    def codes(self, pixels_B3SS: Tensor) -> Tensor:
        """Nearest codes by angle: both sides are brought to length 1."""
        z_BNE = self.quant_conv(self.encoder(pixels_B3SS)).flatten(2).transpose(1, 2)
        return (F.normalize(z_BNE, dim=-1) @ self._codebook().T).argmax(-1)

    def decode(self, codes_BN: Tensor) -> Tensor:
        side = SIZE // PATCH
        vectors = self._codebook()[codes_BN].transpose(1, 2).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(vectors))

    def _codebook(self) -> Tensor:
        return F.normalize(self.quantize.embedding.weight, dim=-1)


# ---- all of it -----------------------------------------------------------------------------------


class OriginalJanus(nn.Module):
    """Module and parameter names as in the authors' state dicts."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.vision_model = Layers(vision_tower=Tower())
        self.aligner = projector(WIDTH, depth)
        self.gen_vision_model = ImageTokenizer()
        self.gen_aligner = projector(CODE_WIDTH)
        self.gen_head = Layers(
            output_mlp_projector=nn.Linear(HIDDEN, HIDDEN), vision_head=nn.Linear(HIDDEN, CODES)
        )
        self.gen_embed = nn.Embedding(CODES, CODE_WIDTH)
        self.language_model = LlamaForCausalLM(LlamaConfig(**language_config()))

    def image_features(self, pixels_B3SS: Tensor) -> Tensor:
        return self.vision_model.vision_tower(pixels_B3SS)

    def image_embeds(self, pixels_B3SS: Tensor) -> Tensor:
        return self.aligner.layers(self.image_features(pixels_B3SS))

    def code_embeds(self, codes_BN: Tensor) -> Tensor:
        return self.gen_aligner.layers(self.gen_embed(codes_BN))

    def code_scores(self, states: Tensor) -> Tensor:
        return self.gen_head.vision_head(F.gelu(self.gen_head.output_mlp_projector(states)))

    def text_logits(self, ids_BL: Tensor, image_id: int, pixels_B3SS: Tensor) -> Tensor:
        embeds_BLH = self.language_model.get_input_embeddings()(ids_BL).clone()
        embeds_BLH[ids_BL == image_id] = self.image_embeds(pixels_B3SS).flatten(0, 1)
        return self.language_model(inputs_embeds=embeds_BLH).logits


def language_config() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }


def make_original(seed: int = 0, depth: int = 2) -> OriginalJanus:
    """Random weights, large enough that outputs depend on every one of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OriginalJanus(depth).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
                elif weight.dim() >= 2:
                    embedding = "embed" in name
                    weight.normal_(0.0, 1.0 if embedding else weight[0].numel() ** -0.5)
                else:
                    weight.normal_(0.0, 0.2)
            book = model.gen_vision_model.quantize.embedding.weight
            book.copy_(F.normalize(book, dim=-1))
    return model
