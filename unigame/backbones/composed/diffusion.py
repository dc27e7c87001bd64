"""The image branch of a composed model: noise levels, denoisers and VAEs of diffusers.

A noise level is a number in [0, 1]: 0 is the image, 1 pure noise. At each level a latent is
``signal * clean + noise * eps``; from that alone follow training targets, the redrawing of the game
and its gradient. Free sampling is left to the pipeline's own scheduler.

Shape suffixes: B samples, S side of the image, C channels, h side of the latent, N conditioning
tokens, W their width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unigame.errors import UserError

_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass
class Level:
    """Coefficients of a noise level for each row, (B, 1, 1, 1), and the denoiser's clock, (B,)."""

    signal: Tensor
    noise: Tensor
    timestep_B: Tensor


class NoiseLevels:
    """What a pipeline's scheduler says about noise: variance preserving, or a straight flow.

    Args:
        config: ``scheduler_config.json``.

    Raises:
        UserError: a scheduler class or prediction type that is not known.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        import diffusers

        self.config = config
        self.kind = getattr(diffusers, str(config.get("_class_name")), None)
        if self.kind is None:
            raise UserError(f"scheduler {config.get('_class_name')!r} is not one of diffusers")
        name = config["_class_name"]
        prediction = str(config.get("prediction_type", "epsilon"))
        flow = name.startswith("FlowMatch") or prediction == "flow_prediction"
        self.prediction = "flow" if flow else prediction
        if self.prediction not in _PREDICTIONS:
            raise UserError(
                f"scheduler {name} has prediction_type={prediction!r}; known: epsilon, "
                "v_prediction, sample, flow_prediction"
            )
        self.steps = int(config.get("num_train_timesteps", 1000))
        self.shift = float(config.get("flow_shift", config.get("shift", 1.0)) or 1.0)
        self.alphas_T: Tensor | None = None
        if not flow:
            self.alphas_T = diffusers.DDPMScheduler.from_config(config).alphas_cumprod.double()

    def scheduler(self, num_steps: int, device: torch.device) -> Any:
        """A fresh scheduler of the pipeline's own class: they carry state from step to step."""
        assert self.kind is not None
        scheduler = self.kind.from_config(self.config)
        scheduler.set_timesteps(num_steps, device=device)
        return scheduler

    def at(self, level_B: Tensor, like: Tensor) -> Level:
        """Coefficients at ``level_B`` in the dtype of ``like``."""
        level_B = level_B.to(like.device, torch.float64)
        if self.alphas_T is None:
            signal, noise, clock = 1 - level_B, level_B, (level_B * self.steps).to(like.dtype)
        else:
            clock = (level_B * self.steps).round().long().sub(1).clamp(0, self.steps - 1)
            alpha_B = self.alphas_T.to(like.device)[clock]
            signal, noise = alpha_B.sqrt(), (1 - alpha_B).sqrt()
        column = (-1, 1, 1, 1)
        return Level(signal.to(like.dtype).view(column), noise.to(like.dtype).view(column), clock)

    def spread(self, uniform_B: Tensor) -> Tensor:
        """Uniform numbers in (0, 1) -> training levels, with a flow's shift toward noise."""
        return self.shift * uniform_B / (1 + (self.shift - 1) * uniform_B)

    def target(self, clean: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the denoiser should predict at a level."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return level.signal * eps - level.noise * clean
        return eps - clean if self.prediction == "flow" else clean

    def clean(self, noisy: Tensor, predicted: Tensor, level: Level) -> Tensor:
        """The clean latent that a prediction stands for: the inverse of ``target``."""
        if self.prediction == "epsilon":
            return (noisy - level.noise * predicted) / level.signal
        if self.prediction == "v_prediction":
            return level.signal * noisy - level.noise * predicted
        return noisy - level.noise * predicted if self.prediction == "flow" else predicted


class ImageBranch(nn.Module):
    """Frozen denoiser and VAE, in float32 or better.

    Args:
        denoiser: UNet2DConditionModel, SanaTransformer2DModel or PixArtTransformer2DModel.
        vae: AutoencoderKL or AutoencoderDC.
        levels: of the pipeline's scheduler.
        image_size: S.
    """

    def __init__(
        self, denoiser: nn.Module, vae: nn.Module, levels: NoiseLevels, image_size: int
    ) -> None:
        super().__init__()
        self.denoiser, self.vae = denoiser, vae
        self.levels, self.image_size = levels, image_size
        self.checkpointing = False
        config: Any = vae.config
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def encode(self, pixels_B3SS: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> scaled latents (B, C, h, h): the mode, not a draw."""
        vae: Any = self.vae
        with torch.autocast(pixels_B3SS.device.type, enabled=False):
            encoded = vae.encode(pixels_B3SS)
        latent = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return (latent - self.shift) * self.scale

    def decode(self, latents_BChh: Tensor) -> Tensor:
        """Scaled latents -> pixels around [-1, 1]. Differentiable."""
        vae: Any = self.vae

        def run(latents: Tensor) -> Tensor:
            with torch.autocast(latents.device.type, enabled=False):
                return vae.decode(latents / self.scale + self.shift).sample

        if self.checkpointing and latents_BChh.requires_grad:
            return checkpoint(run, latents_BChh, use_reentrant=False)  # type: ignore[return-value]
        return run(latents_BChh)

    def predict(self, noisy_BChh: Tensor, clock_B: Tensor, condition_BNW: Tensor) -> Tensor:
        """The denoiser's raw prediction (epsilon, v, clean latent or flow)."""
        denoiser: Any = self.denoiser
        name, extra = type(denoiser).__name__, {}
        if name == "SanaTransformer2DModel":
            clock_B = clock_B * denoiser.config.timestep_scale
        if name == "PixArtTransformer2DModel":
            extra["added_cond_kwargs"] = self._pixart_size(noisy_BChh)
        output = denoiser(
            noisy_BChh,
            timestep=clock_B,
            encoder_hidden_states=condition_BNW,
            return_dict=False,
            **extra,
        )[0]
        return output[:, : noisy_BChh.shape[1]]  # beside it some predict a variance

    def _pixart_size(self, noisy_BChh: Tensor) -> dict[str, Tensor | None]:
        denoiser: Any = self.denoiser
        if not denoiser.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        count = len(noisy_BChh)
        side = noisy_BChh.new_full((count, 2), self.image_size)
        return {"resolution": side, "aspect_ratio": noisy_BChh.new_ones(count, 1)}

    # ---- the game, training, sampling ----------------------------------------------------------
    def redraw(
        self,
        latents_BChh: Tensor,
        condition_BNW: Tensor,
        eps_BChh: Tensor,
        strength: float,
        steps: int,
    ) -> Tensor:
        """Latents noised to ``strength`` and denoised again under a condition, (B, C, h, h).

        Deterministic steps (DDIM with eta 0, or Euler on a flow), evenly spaced; differentiable
        in the condition. Runs outside autocast: bfloat16 would swallow a bounded perturbation.
        """
        with torch.autocast(latents_BChh.device.type, enabled=False):
            now = self._level(strength, latents_BChh)
            noisy = now.signal * latents_BChh + now.noise * eps_BChh
            for step in range(1, steps + 1):
                predicted = self.predict(noisy, now.timestep_B, condition_BNW)
                clean = self.levels.clean(noisy, predicted, now)
                if step < steps:
                    eps_BChh = (noisy - now.signal * clean) / now.noise
                    now = self._level(strength * (1 - step / steps), latents_BChh)
                    noisy = now.signal * clean + now.noise * eps_BChh
            return clean

    def _level(self, level: float, like: Tensor) -> Level:
        return self.levels.at(torch.full((len(like),), level), like)

    def prediction_loss(
        self, latents_BChh: Tensor, condition_BNW: Tensor, eps_BChh: Tensor, level_B: Tensor
    ) -> Tensor:
        """Mean squared error of the prediction at one noise level for each sample, (B,)."""
        level = self.levels.at(level_B, latents_BChh)
        noisy = level.signal * latents_BChh + level.noise * eps_BChh
        predicted = self.predict(noisy, level.timestep_B, condition_BNW)
        target = self.levels.target(latents_BChh, eps_BChh, level)
        return (predicted.to(target.dtype) - target).square().flatten(1).mean(-1)

    @torch.no_grad()
    def sample(
        self,
        condition_BNW: Tensor,
        plain_BNW: Tensor | None,
        *,
        latent_shape: Sequence[int],
        steps: int,
        guidance_scale: float,
        temperature: float,
        seeds: Sequence[int],
    ) -> Tensor:
        """Latents by the pipeline's scheduler from noise; each row has a generator of its own.

        ``plain_BNW`` is the condition of the empty prompt, for classifier-free guidance.
        ``temperature`` scales the noise that sampling starts from.
        """
        scheduler = self.levels.scheduler(steps, condition_BNW.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        eps_BChh = temperature * _noise(generators, latent_shape, condition_BNW)
        takes = inspect.signature(scheduler.step).parameters
        extra = {"generator": generators} if "generator" in takes else {}
        condition = condition_BNW if plain_BNW is None else torch.cat([plain_BNW, condition_BNW])
        latents = eps_BChh * getattr(scheduler, "init_noise_sigma", 1.0)
        for clock in scheduler.timesteps:
            noisy = latents
            if hasattr(scheduler, "scale_model_input"):
                noisy = scheduler.scale_model_input(latents, clock)
            noisy = noisy if plain_BNW is None else torch.cat([noisy, noisy])
            predicted = self.predict(noisy, clock.expand(len(noisy)), condition).to(latents.dtype)
            if plain_BNW is not None:
                plain, wanted = predicted.chunk(2)
                predicted = plain + guidance_scale * (wanted - plain)
            latents = scheduler.step(predicted, clock, latents, return_dict=False, **extra)[0]
        return latents


def _noise(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.stack([torch.randn(*shape, generator=g) for g in generators]).to(like)


def fixed_noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """The one standard normal noise of all deterministic uses, without batch dimension."""
    return _noise([torch.Generator().manual_seed(0)], shape, like)[0]
