"""C, the perturber: a small per-token network whose output is bounded by construction.

    B  samples in the batch    N  image tokens of one picture    H  width of the language model

The paper's appendix B.3: a three-layer MLP gives a *direction* for each token, L2-normalised, and
one learnable scalar gate gives its length, eps = eps_max * sigmoid(g). So the attack is bounded at
every step without projection, and the gate alone decides how hard C plays.

Everything here runs in float32 whatever the precision around it: at H = 4096 a perturbation of
norm 0.01 is 1.6e-4 per coordinate, below what bfloat16 resolves next to values of size 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unigame.errors import UserError

PerturberKind = Literal["learned", "random", "none"]
EpsMode = Literal["absolute", "relative"]


def token_rms(states_BNH: Tensor) -> Tensor:
    """RMS over tokens of each sample's token norms, (B, 1, 1), in the units of the states."""
    square_norm_BN1 = states_BNH.detach().square().sum(dim=-1, keepdim=True)
    return square_norm_BN1.mean(dim=1, keepdim=True).sqrt()


class PerturberBase(nn.Module):
    """What every perturber shares: the bound, its two units, and float32.

    Subclasses give a direction for each token by ``direction``; ``forward`` scales it.

    Attributes:
        kind: ``"learned"``, ``"random"`` or ``"none"``.
        eps_max: the bound on each token's L2 norm: in the units of the states (``absolute``, the
            paper's) or as a multiple of the sample's RMS token norm (``relative``).
        eps_mode: which of the two.
    """

    kind: PerturberKind

    def __init__(self, eps_max: float, eps_mode: EpsMode) -> None:
        super().__init__()
        if not (math.isfinite(eps_max) and eps_max > 0):
            raise UserError(
                f"eps_max={eps_max!r}: the bound of the perturbation must be a positive number; "
                "for no perturbation at all use the perturber kind 'none'"
            )
        if eps_mode not in ("absolute", "relative"):
            raise UserError(f"eps_mode={eps_mode!r} is unknown; use 'absolute' or 'relative'")
        self.eps_max = float(eps_max)
        self.eps_mode: EpsMode = eps_mode

    @property
    def eps(self) -> Tensor:
        """Length of the perturbation now, a scalar in [0, eps_max], in units of ``eps_mode``."""
        raise NotImplementedError

    def direction(self, states_BNH: Tensor) -> Tensor:
        """A vector of L2 norm 1 (0 where undefined) for each token, (B, N, H)."""
        raise NotImplementedError

    def scale(self, states_BNH: Tensor) -> Tensor:
        """Length that eps = 1 stands for, (B, 1, 1) or (1, 1, 1): 1, or the RMS token norm."""
        if self.eps_mode == "relative":
            return token_rms(states_BNH)
        return states_BNH.new_ones(1, 1, 1)

    def forward(self, states_BNH: Tensor) -> Tensor:
        """Give delta = C(z_hat), (B, N, H) in float32 (float64 for float64 weights and states).

        Args:
            states_BNH: z_hat, or the understanding tokens z in token space.

        Returns:
            The perturbation; per token its L2 norm is eps, or eps times the sample's RMS token
            norm, and never more than that of ``eps_max``.
        """
        with torch.autocast(device_type=states_BNH.device.type, enabled=False):
            states_BNH = full_precision(states_BNH)
            return self.direction(states_BNH) * (self.eps * self.scale(states_BNH))


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or left in float64 where it already is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Perturber(PerturberBase):
    """The learned C of the paper (B.3): ``depth`` linear layers, GELU between, last without bias.

    The output layer keeps PyTorch's default initialisation: a zero one, usual for residual
    branches, would leave the normalised direction undefined at the start.

    Args:
        hidden_size: H, the width of the states.
        width: w of the inner layers. 256 gives the paper's 2.1M parameters at H = 4096.
        depth: number of linear layers, at least 1; the paper's best is 3.
        eps_max: bound on the per-token norm (see ``PerturberBase``); the paper's is 0.02.
        eps_init: eps at the start, strictly between 0 and ``eps_max``; the paper's is 0.01.
        eps_mode: ``"absolute"`` (the paper's) or ``"relative"``.

    Raises:
        UserError: a size below 1, or eps_init outside (0, eps_max).
    """

    kind: PerturberKind = "learned"

    def __init__(
        self,
        hidden_size: int,
        width: int = 256,
        depth: int = 3,
        eps_max: float = 0.02,
        eps_init: float = 0.01,
        eps_mode: EpsMode = "absolute",
    ) -> None:
        super().__init__(eps_max, eps_mode)
        for name, value in (("hidden_size", hidden_size), ("width", width), ("depth", depth)):
            if value < 1:
                raise UserError(f"perturber {name}={value!r}: must be a whole number of at least 1")
        if not 0 < eps_init < eps_max:
            raise UserError(
                f"eps_init={eps_init!r} must lie strictly between 0 and eps_max={eps_max!r}: "
                "eps = eps_max * sigmoid(g) reaches neither end; lower eps_init or raise eps_max"
            )
        sizes = [hidden_size, *[width] * (depth - 1), hidden_size]
        layers: list[nn.Module] = []
        for i in range(depth - 1):
            layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.layers = nn.Sequential(*layers)
        share = eps_init / eps_max
        self.gate = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))))

    @property
    def eps(self) -> Tensor:
        """eps_max * sigmoid(g), differentiable in the gate g."""
        return self.eps_max * torch.sigmoid(self.gate)

    def direction(self, states_BNH: Tensor) -> Tensor:
        """The MLP's output, normalised per token; a zero output gives a zero direction, not NaN."""
        if self.gate.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the perturber's weights are {self.gate.dtype}; they must stay float32, or the "
                "perturbation is lost to rounding: do not cast C together with the model"
            )
        return F.normalize(self.layers(states_BNH.to(self.gate.dtype)), dim=-1, eps=1e-12)


class RandomPerturber(PerturberBase):
    """The control of Table 4: a uniformly random direction under the same bound, nothing to learn.

    Args:
        eps_max: bound, as for ``Perturber``.
        eps_init: the fixed length of the noise, at most ``eps_max``.
        eps_mode: as for ``Perturber``.
        seed: of its own generator, which ``state_dict`` carries; the global one is not touched.
    """

    kind: PerturberKind = "random"

    def __init__(
        self,
        eps_max: float = 0.02,
        eps_init: float = 0.01,
        eps_mode: EpsMode = "absolute",
        seed: int = 0,
    ) -> None:
        super().__init__(eps_max, eps_mode)
        if not 0 < eps_init <= eps_max:
            raise UserError(f"eps_init={eps_init!r} must be in (0, eps_max={eps_max!r}]")
        self.eps_fixed = float(eps_init)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def eps(self) -> Tensor:
        """The fixed length."""
        return torch.tensor(self.eps_fixed)

    def direction(self, states_BNH: Tensor) -> Tensor:
        """Gaussian, normalised: uniform on the sphere. Drawn on the CPU, so devices agree."""
        noise_BNH = torch.randn(states_BNH.shape, generator=self.generator)
        return F.normalize(noise_BNH, dim=-1).to(states_BNH)

    def get_extra_state(self) -> Tensor:
        """The generator's state: a resumed run draws what the unbroken one would have drawn."""
        return self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Restore the generator."""
        self.generator.set_state(state.cpu())


class NoPerturber(PerturberBase):
    """delta = 0: with it the game is the *round trip* control, redrawn but not attacked."""

    kind: PerturberKind = "none"

    def __init__(self) -> None:
        super().__init__(eps_max=1.0, eps_mode="absolute")

    @property
    def eps(self) -> Tensor:
        """Always 0."""
        return torch.tensor(0.0)

    def direction(self, states_BNH: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(states_BNH)


def build_perturber(
    kind: PerturberKind,
    hidden_size: int,
    *,
    width: int = 256,
    depth: int = 3,
    eps_max: float = 0.02,
    eps_init: float = 0.01,
    eps_mode: EpsMode = "absolute",
    seed: int = 0,
) -> PerturberBase:
    """Build the perturber that a setting names.

    A learned one takes its initial weights from ``seed`` without touching the global generator.

    Raises:
        UserError: an unknown kind, or a value that the chosen kind refuses.
    """
    if kind == "learned":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Perturber(hidden_size, width, depth, eps_max, eps_init, eps_mode)
    if kind == "random":
        return RandomPerturber(eps_max, eps_init, eps_mode, seed)
    if kind == "none":
        return NoPerturber()
    raise UserError(f"perturber kind {kind!r} is unknown; use 'learned', 'random' or 'none'")
