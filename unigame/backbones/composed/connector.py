"""The trained parts of a composed model: queries and connector, and a projector for an LLM.

Shape suffixes: B samples, N queries (or image tokens), H width of the LM, W width of the
denoiser's conditioning, D width of vision features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unigame.backbones.composed.config import CONNECTOR_FILE, ConnectorConfig
from unigame.backbones.folder import open_safetensors
from unigame.backbones.model_files import refuse_not_finite
from unigame.errors import UserError


class Connector(nn.Module):
    """Learned queries in, conditioning out.

    The queries stand behind a prompt, where the language model fills them with what it is about to
    draw (as in MetaQueries, arXiv 2504.06256, and BLIP-3o, arXiv 2505.09568); a two-layer MLP
    between two norms turns their states into what the denoiser's cross-attention reads. The last
    norm gives the scale of a text encoder's output, so that a pretrained denoiser starts near
    inputs it knows.
    """

    def __init__(self, hidden_size: int, config: ConnectorConfig) -> None:
        super().__init__()
        self.queries_NH = nn.Parameter(0.02 * torch.randn(config.num_queries, hidden_size))
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.width),
            nn.LayerNorm(config.width),
        )

    def forward(self, states_BNH: Tensor) -> Tensor:
        """States of the queries -> conditioning (B, N, W), outside autocast.

        In bfloat16 the rounding of ``z_hat + delta`` would swallow a bounded delta.
        """
        with torch.autocast(states_BNH.device.type, enabled=False):
            return self.mlp(states_BNH.to(self.queries_NH.dtype))


class Projector(nn.Sequential):
    """Two-layer MLP from vision features to a text-only LLM's embeddings: how UMM-2 sees."""

    def __init__(self, feature_size: int, hidden_size: int) -> None:
        super().__init__(
            nn.Linear(feature_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )


class TrainedParts(nn.Module):
    """What ``connector.safetensors`` holds, in float32 on any base.

    Args:
        hidden_size: H of the language model.
        config: sizes of the connector.
        feature_size: D of a separate vision encoder; None where the VLM sees by itself.
    """

    def __init__(
        self, hidden_size: int, config: ConnectorConfig, feature_size: int | None = None
    ) -> None:
        super().__init__()
        self.connector = Connector(hidden_size, config)
        self.projector = None if feature_size is None else Projector(feature_size, hidden_size)

    @classmethod
    def initialised(
        cls, hidden_size: int, config: ConnectorConfig, feature_size: int | None, seed: int
    ) -> TrainedParts:
        """Fresh weights from ``seed``; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(hidden_size, config, feature_size)

    def save(self, folder: str | Path) -> None:
        """Write ``connector.safetensors``."""
        state = {
            name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()
        }
        save_file(state, Path(folder) / CONNECTOR_FILE, metadata={"format": "pt"})

    def load(self, folder: str | Path) -> None:
        """Read ``connector.safetensors`` of the same sizes; see ``check_file``."""
        self.check_file(folder)
        file = Path(folder) / CONNECTOR_FILE
        weights = load_file(file)
        refuse_not_finite(weights, f"connector {str(file)!r}")
        self.load_state_dict(weights)

    def check_file(self, folder: str | Path) -> None:
        """Compare names and shapes of the file with this module's, without reading weights.

        Raises:
            UserError: the file is missing, unreadable, or of a connector of other sizes.
        """
        file = Path(folder) / CONNECTOR_FILE
        if not file.is_file():
            raise UserError(
                f"{str(file)!r} is missing; a composed model needs its connector: make one with "
                "'unigame compose', or copy the whole folder"
            )
        opened = open_safetensors(file)
        names = opened.keys()
        found = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        wanted = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"{str(file)!r} has {name!r} of shape {found.get(name)}, the parts named in "
                    f"config.json need {wanted.get(name)}; it was trained with other parts or "
                    "sizes: restore them, or compose the model again"
                )
