"""BAGEL in plain torch, one row at a time, from the names in its files and the facts alone.

Nothing here is imported from the package: if the package misreads the published layout, the two
disagree. Attention follows the splits of a row as the authors' data pipeline describes them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

SCALE, SHIFT = 0.3611, 0.1159
Split = tuple[str, int]
"""How a stretch of a row attends ("causal", "full" or "noise"), and its length."""


def seen_by_splits(splits: list[Split]) -> Tensor:
    """Who sees whom, (L, L), by the three rules, pair by pair."""
    modes = [(number, mode) for number, (mode, length) in enumerate(splits) for _ in range(length)]
    seen = torch.zeros(len(modes), len(modes), dtype=torch.bool)
    for q, (split_q, mode_q) in enumerate(modes):
        for k, (split_k, mode_k) in enumerate(modes):
            if split_q == split_k:
                seen[q, k] = k <= q or mode_q != "causal"
            else:
                seen[q, k] = split_k < split_q and mode_k != "noise"
    return seen


def wave(value: float, width: int) -> Tensor:
    """Sines, then cosines, of one number."""
    half = width // 2
    speeds = [10000 ** (-index / half) for index in range(half)]
    return torch.tensor(
        [math.sin(value * s) for s in speeds] + [math.cos(value * s) for s in speeds]
    ).double()


class Oracle:
    def __init__(self, folder: Path) -> None:
        self.w = {name: t.double() for name, t in load_file(folder / "ema.safetensors").items()}
        self.v = {name: t.double() for name, t in load_file(folder / "ae.safetensors").items()}
        self.llm = json.loads((folder / "llm_config.json").read_text())
        self.vit = json.loads((folder / "vit_config.json").read_text())
        self.grid = 8  # of both tables of places

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    # ---- language model ------------------------------------------------------------------------
    def rms(self, x: Tensor, name: str) -> Tensor:
        eps = self.llm["rms_norm_eps"]
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.w[f"{name}.weight"]

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """One token's heads (A, E), in pairs (i, i + E / 2)."""
        half = x.shape[-1] // 2
        theta = self.llm["rope_theta"]
        out = x.clone()
        for i in range(half):
            angle = position * theta ** (-i / half)
            a, b = x[:, i], x[:, i + half]
            out[:, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def states(self, row: Tensor, positions: list[int], experts: list[str], seen: Tensor) -> Tensor:
        """Hidden states (L, H); ``experts`` are "" or "_moe_gen" for each token."""
        heads, groups = self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        for layer in range(self.llm["num_hidden_layers"]):
            name = f"language_model.model.layers.{layer}"
            queries, keys, values = [], [], []
            for x, position, e in zip(row, positions, experts, strict=True):
                x = self.rms(x, f"{name}.input_layernorm{e}")
                q, k, v = (
                    self.linear(x, f"{name}.self_attn.{p}_proj{e}").view(count, -1)
                    for p, count in (("q", heads), ("k", groups), ("v", groups))
                )
                queries.append(self.rotate(self.rms(q, f"{name}.self_attn.q_norm{e}"), position))
                keys.append(self.rotate(self.rms(k, f"{name}.self_attn.k_norm{e}"), position))
                values.append(v)
            q, k, v = torch.stack(queries), torch.stack(keys), torch.stack(values)
            attended = []
            for head in range(heads):
                group = head // (heads // groups)
                scores = q[:, head] @ k[:, group].T / math.sqrt(q.shape[-1])
                attended.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, group])
            mixed = torch.stack(attended, dim=1).flatten(1)
            rows = []
            for x, attention, e in zip(row, mixed, experts, strict=True):
                x = x + self.linear(attention, f"{name}.self_attn.o_proj{e}")
                y = self.rms(x, f"{name}.post_attention_layernorm{e}")
                gate = F.silu(self.linear(y, f"{name}.mlp{e}.gate_proj"))
                y = gate * self.linear(y, f"{name}.mlp{e}.up_proj")
                rows.append(x + self.linear(y, f"{name}.mlp{e}.down_proj"))
            row = torch.stack(rows)
        finished = [
            self.rms(x, f"language_model.model.norm{e}") for x, e in zip(row, experts, strict=True)
        ]
        return torch.stack(finished)

    def words(self, ids: list[int]) -> Tensor:
        return self.w["language_model.model.embed_tokens.weight"][ids]

    def logits(self, states: Tensor) -> Tensor:
        return states @ self.w["language_model.lm_head.weight"].T

    # ---- eyes ----------------------------------------------------------------------------------
    def read(self, pixels: Tensor) -> Tensor:
        """Pixels (3, h, w) in [-1, 1] -> tokens (N, H)."""
        size, name = self.vit["patch_size"], "vit_model.vision_model"
        tokens, places = [], []
        for row in range(pixels.shape[1] // size):
            for column in range(pixels.shape[2] // size):
                top, left = row * size, column * size
                square = pixels[:, top : top + size, left : left + size]
                tokens.append(square.permute(1, 2, 0).flatten())
                places.append(row * self.grid + column)
        x = self.linear(torch.stack(tokens), f"{name}.embeddings.patch_embedding")
        x = x + self.w[f"{name}.embeddings.position_embedding.weight"][places]
        eps = self.vit["layer_norm_eps"]

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(
                x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps
            )

        heads = self.vit["num_attention_heads"]
        for layer in range(self.vit["num_hidden_layers"] - 1):
            own = f"{name}.encoder.layers.{layer}"
            y = norm(x, f"{own}.layer_norm1")
            q, k, v = (
                self.linear(y, f"{own}.self_attn.{p}_proj").unflatten(1, (heads, -1)) for p in "qkv"
            )
            mixed = [
                (q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1])).softmax(-1) @ v[:, h]
                for h in range(heads)
            ]
            x = x + self.linear(torch.cat(mixed, dim=1), f"{own}.self_attn.out_proj")
            y = self.linear(norm(x, f"{own}.layer_norm2"), f"{own}.mlp.fc1")
            x = x + self.linear(F.gelu(y, approximate="tanh"), f"{own}.mlp.fc2")
        x = norm(x, f"{name}.post_layernorm")
        x = F.gelu(self.linear(x, "connector.fc1"), approximate="tanh")
        return self.linear(x, "connector.fc2") + self.w["vit_pos_embed.pos_embed"][places]

    # ---- latents -------------------------------------------------------------------------------
    def latent_tokens(self, latent: Tensor, level: float) -> Tensor:
        """A latent (C, h, w) at a noise level -> tokens (N, H)."""
        turn = wave(level, 256)
        time = torch.cat([turn[128:], turn[:128]])  # cosines first
        time = self.linear(F.silu(self.linear(time, "time_embedder.mlp.0")), "time_embedder.mlp.2")
        tokens = []
        for row in range(latent.shape[1] // 2):
            for column in range(latent.shape[2] // 2):
                square = latent[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                x = self.linear(square.permute(1, 2, 0).flatten(), "vae2llm")
                place = row * self.grid + column
                tokens.append(x + time + self.w["latent_pos_embed.pos_embed"][place])
        return torch.stack(tokens)

    def velocity(self, states: Tensor, height: int, width: int) -> Tensor:
        """States (N, H) -> (C, h, w)."""
        flat = self.linear(states, "llm2vae")
        out = torch.zeros(flat.shape[1] // 4, height, width, dtype=flat.dtype)
        for number, values in enumerate(flat):
            row, column = divmod(number, width // 2)
            square = values.view(2, 2, -1).permute(2, 0, 1)
            out[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = square
        return out

    def drawn_states(self, prompt: list[int], marks: list[int], latent: Tensor, t: float) -> Tensor:
        """States at the latents behind a prompt's tokens (none: unconditional)."""
        latents = self.latent_tokens(latent, t)
        count = len(latents)
        row = torch.cat([self.words(prompt), self.words(marks[:1]), latents, self.words(marks[1:])])
        positions = [*range(len(prompt)), *[len(prompt)] * (count + 2)]
        experts = [*[""] * (len(prompt) + 1), *["_moe_gen"] * count, ""]
        splits = [("causal", len(prompt)), ("noise", count + 2)]
        return self.states(row, positions, experts, seen_by_splits(splits))[-count - 1 : -1]

    # ---- image autoencoder ---------------------------------------------------------------------
    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        weight = self.v[f"{name}.weight"]
        how = {"padding": weight.shape[-1] // 2, **how}
        return F.conv2d(x, weight, self.v[f"{name}.bias"], **how)

    def group(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.v[f"{name}.weight"], self.v[f"{name}.bias"], 1e-6)

    def block(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(F.silu(self.group(x, f"{name}.norm1")), f"{name}.conv1")
        y = self.conv(F.silu(self.group(y, f"{name}.norm2")), f"{name}.conv2")
        known = f"{name}.nin_shortcut.weight" in self.v
        return y + (self.conv(x, f"{name}.nin_shortcut") if known else x)

    def middle(self, x: Tensor, name: str) -> Tensor:
        x = self.block(x, f"{name}.block_1")
        y = self.group(x, f"{name}.attn_1.norm")
        q, k, v = (self.conv(y, f"{name}.attn_1.{p}").flatten(2).mT for p in "qkv")
        y = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        y = y.mT.unflatten(2, tuple(x.shape[2:]))
        return self.block(x + self.conv(y, f"{name}.attn_1.proj_out"), f"{name}.block_2")

    def count(self, pattern: str) -> int:
        number = 0
        while any(name.startswith(pattern.format(number)) for name in self.v):
            number += 1
        return number

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [-1, 1] -> scaled latents, the mode."""
        x = self.conv(pixels, "encoder.conv_in")
        for level in range(self.count("encoder.down.{}.")):
            for number in range(self.count(f"encoder.down.{level}.block.{{}}.")):
                x = self.block(x, f"encoder.down.{level}.block.{number}")
            if f"encoder.down.{level}.downsample.conv.weight" in self.v:
                x = self.conv(
                    F.pad(x, (0, 1, 0, 1)),
                    f"encoder.down.{level}.downsample.conv",
                    stride=2,
                    padding=0,
                )
        x = F.silu(self.group(self.middle(x, "encoder.mid"), "encoder.norm_out"))
        mode, _ = self.conv(x, "encoder.conv_out").chunk(2, dim=1)
        return SCALE * (mode - SHIFT)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pixels around [-1, 1]."""
        x = self.middle(self.conv(latents / SCALE + SHIFT, "decoder.conv_in"), "decoder.mid")
        for level in reversed(range(self.count("decoder.up.{}."))):
            for number in range(self.count(f"decoder.up.{level}.block.{{}}.")):
                x = self.block(x, f"decoder.up.{level}.block.{number}")
            if f"decoder.up.{level}.upsample.conv.weight" in self.v:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
        return self.conv(F.silu(self.group(x, "decoder.norm_out")), "decoder.conv_out")
