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
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unigame.errors import UserError

PerturberKind = Literal["learned", "random", "none"]
EpsMode = Literal["absolute", "relative"]
Scope = Literal["token", "shared"]
UNIVERSAL_START = 0.05
"""Deviation of a new universal direction: a step of AdamW at 5e-3 then turns it by some degrees."""


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
        """A vector of L2 norm 1 (0 where undefined) for each token, (B, N, H) or (B, 1, H)."""
        raise NotImplementedError

    def direction_of(self, states_BNH: Tensor, head_B: Tensor) -> Tensor:
        """The same by the head that each sample drew; one without heads has one direction."""
        return self.direction(states_BNH)

    def scale(self, states_BNH: Tensor) -> Tensor:
        """Length that eps = 1 stands for, (B, 1, 1) or (1, 1, 1): 1, or the RMS token norm."""
        if self.eps_mode == "relative":
            return token_rms(states_BNH)
        return states_BNH.new_ones(1, 1, 1)

    def forward(self, states_BNH: Tensor, head_B: Tensor | None = None) -> Tensor:
        """Give delta = C(z_hat), (B, N, H) in float32 (float64 for float64 weights and states).

        Args:
            states_BNH: z_hat, or the understanding tokens z in token space.
            head_B: which of its heads perturbs each sample; None: the first.

        Returns:
            The perturbation; per token its L2 norm is eps, or eps times the sample's RMS token
            norm, and never more than that of ``eps_max``.
        """
        with torch.autocast(device_type=states_BNH.device.type, enabled=False):
            states_BNH = full_precision(states_BNH)
            if head_B is None:
                direction = self.direction(states_BNH)
            else:
                direction = self.direction_of(states_BNH, head_B)
            return (direction * (self.eps * self.scale(states_BNH))).expand_as(states_BNH)


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
        depth: number of linear layers; the paper's best is 3. 0, for shared directions: no layers,
            the learned vector alone is the direction of every picture. Such a *universal*
            perturbation (Moosavi-Dezfooli et al., arXiv 1610.08401) cannot know what a picture
            shows, so it can change how things are drawn, but hardly which.
        eps_max: bound on the per-token norm (see ``PerturberBase``); the paper's is 0.02.
        eps_init: eps at the start, strictly between 0 and ``eps_max``; the paper's is 0.01.
        eps_mode: ``"absolute"`` (the paper's) or ``"relative"``.
        scope: ``"token"`` (the paper's), or ``"shared"``: one direction for all tokens, from their
            mean and a learned vector. A direction of each token's own can smear content; a shared
            one changes how the whole picture is drawn.
        heads: shared directions; more than one share the inner layers.
        fixed: eps stays ``eps_init``.

    Raises:
        UserError: a size below 1, eps_init outside (0, eps_max), or a direction of each token's
            own (scope ``"token"``) without layers.
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
        *,
        scope: Scope = "token",
        heads: int = 1,
        fixed: bool = False,
    ) -> None:
        super().__init__(eps_max, eps_mode)
        sizes_by_name = {"hidden_size": hidden_size, "width": width, "depth": depth, "heads": heads}
        for name, value in sizes_by_name.items():
            if value < (name != "depth" or scope == "token"):
                raise UserError(f"perturber {name}={value!r}: must be a whole number of at least 1")
        if not 0 < eps_init < eps_max:
            raise UserError(
                f"eps_init={eps_init!r} must lie strictly between 0 and eps_max={eps_max!r}: "
                "eps = eps_max * sigmoid(g) reaches neither end; lower eps_init or raise eps_max"
            )
        self.heads = heads
        self.layers: nn.Sequential | None = None
        if depth:
            sizes = [hidden_size, *[width] * (depth - 1), heads * hidden_size]
            layers: list[nn.Module] = []
            for i in range(depth - 1):
                layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()]
            layers.append(nn.Linear(sizes[-2], sizes[-1], bias=False))
            self.layers = nn.Sequential(*layers)
        share = eps_init / eps_max
        gate = torch.tensor(math.log(share / (1.0 - share)))
        self.gate = nn.Parameter(gate, requires_grad=not fixed)
        self.shift: nn.Parameter | None = None
        if scope == "shared":
            start = torch.zeros(heads, hidden_size)
            self.shift = nn.Parameter(start if depth else start.normal_(std=UNIVERSAL_START))

    @property
    def eps(self) -> Tensor:
        """eps_max * sigmoid(g), differentiable in the gate g."""
        return self.eps_max * torch.sigmoid(self.gate)

    def direction(self, states_BNH: Tensor) -> Tensor:
        """The MLP's output, normalised per token; a zero output gives a zero direction, not NaN."""
        if self.shift is not None:
            return self.directions(states_BNH)[:, :1]
        return F.normalize(self._out(states_BNH), dim=-1, eps=1e-12)

    def direction_of(self, states_BNH: Tensor, head_B: Tensor) -> Tensor:
        """One shared direction a sample, (B, 1, H)."""
        directions_BMH = self.directions(states_BNH)
        return directions_BMH[torch.arange(len(head_B), device=head_B.device), head_B][:, None]

    def directions(self, states_BNH: Tensor) -> Tensor:
        """What every head says of each sample, (B, M, H), normalised."""
        assert self.shift is not None, "directions of each token belong to no head"
        shift_MH = self.shift
        if self.layers is None:
            out_BMH = shift_MH.expand(len(states_BNH), *shift_MH.shape)
        else:
            out_BMH = self._out(states_BNH.mean(dim=1)).unflatten(-1, shift_MH.shape) + shift_MH
        return F.normalize(out_BMH, dim=-1, eps=1e-12)

    def overlap(self, states_BNH: Tensor) -> Tensor:
        """How alike the heads are, (B,): the mean cosine of two of them, where positive."""
        with torch.autocast(device_type=states_BNH.device.type, enabled=False):
            directions_BMH = self.directions(full_precision(states_BNH))
        cosine_BMM = directions_BMH @ directions_BMH.mT
        return cosine_BMM.triu(1).clamp(min=0).sum((-2, -1)) / math.comb(self.heads, 2)

    @torch.no_grad()
    def restart(self, head: int, seed: int) -> dict[Tensor, slice]:
        """Give a head the weights of a new one; returns which rows of which weights they are."""
        assert self.shift is not None
        if self.layers is None:
            new = torch.empty(self.shift.shape[1])
            new.normal_(std=UNIVERSAL_START, generator=torch.Generator().manual_seed(seed))
            self.shift[head] = new.to(self.shift)
            return {self.shift: slice(head, head + 1)}
        last, size = self.layers[-1], self.shift.shape[1]
        assert isinstance(last, nn.Linear)
        rows, bound = slice(head * size, (head + 1) * size), last.in_features**-0.5
        new = torch.empty(size, last.in_features)  # as nn.Linear starts
        new.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        last.weight[rows] = new.to(last.weight)
        self.shift[head] = 0
        return {last.weight: rows, self.shift: slice(head, head + 1)}

    def _out(self, states: Tensor) -> Tensor:
        if self.gate.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the perturber's weights are {self.gate.dtype}; they must stay float32, or the "
                "perturbation is lost to rounding: do not cast C together with the model"
            )
        assert self.layers is not None, "directions of each token need layers"
        out: Tensor = self.layers(states.to(self.gate.dtype))
        return out


class RandomPerturber(PerturberBase):
    """The control of Table 4: a uniformly random direction under the same bound, nothing to learn.

    Args:
        eps_max: bound, as for ``Perturber``.
        eps_init: the fixed length of the noise, at most ``eps_max``.
        eps_mode: as for ``Perturber``.
        seed: of its own generator, whose state a checkpoint keeps; the global one is not touched.
        scope: as for ``Perturber``; a shared direction is a new one for each sample and head.
    """

    kind: PerturberKind = "random"

    def __init__(
        self,
        eps_max: float = 0.02,
        eps_init: float = 0.01,
        eps_mode: EpsMode = "absolute",
        seed: int = 0,
        scope: Scope = "token",
    ) -> None:
        super().__init__(eps_max, eps_mode)
        if not 0 < eps_init <= eps_max:
            raise UserError(f"eps_init={eps_init!r} must be in (0, eps_max={eps_max!r}]")
        self.eps_fixed = float(eps_init)
        self.generator = torch.Generator().manual_seed(seed)
        self.scope: Scope = scope

    @property
    def eps(self) -> Tensor:
        """The fixed length."""
        return torch.tensor(self.eps_fixed)

    def direction(self, states_BNH: Tensor) -> Tensor:
        """Gaussian, normalised: uniform on the sphere. Drawn on the CPU, so devices agree."""
        samples, tokens, width = states_BNH.shape
        shape = (samples, tokens if self.scope == "token" else 1, width)
        noise_BNH = torch.randn(shape, generator=self.generator)
        return F.normalize(noise_BNH, dim=-1).to(states_BNH)


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
    scope: Scope = "token",
    heads: int = 1,
    fixed: bool = False,
) -> PerturberBase:
    """Build the perturber that a setting names.

    A learned one takes its initial weights from ``seed`` without touching the global generator.

    Raises:
        UserError: an unknown kind, or a value that the chosen kind refuses.
    """
    if kind == "learned":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Perturber(
                hidden_size,
                width,
                depth,
                eps_max,
                eps_init,
                eps_mode,
                scope=scope,
                heads=heads,
                fixed=fixed,
            )
    if kind == "random":
        return RandomPerturber(eps_max, eps_init, eps_mode, seed, scope)
    if kind == "none":
        return NoPerturber()
    raise UserError(f"perturber kind {kind!r} is unknown; use 'learned', 'random' or 'none'")
