"""Single tokens through a language model on a GPU, as one recorded CUDA graph a token.

Free drawing feeds hundreds of single tokens. A GPU does each in a millisecond or two, but Python
needs ten times as long to launch a pass's kernels one by one. So keys and values get their final
place from the beginning (``StaticCache``), everything that changes from token to token stands in
tensors, and a pass through the class's own layers is recorded once and then replayed whole.

Shape suffixes: B rows, L prompt tokens, R room (all tokens of a row), T tokens fed at once,
H width.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import StaticCache

from unigame.backbones.common.fast.prompt_cache import read_prompts
from unigame.backbones.common.layout import PaddedTokens

Work = Callable[[], Tensor]

# Models whose recording has failed: each failure costs time, and leaves some memory behind.
_refused: weakref.WeakSet[Any] = weakref.WeakSet()

# Of their tables transformers asks how long the sequence is by now, which a graph cannot answer.
GROWING_ROPE = ("dynamic", "longrope")
ALIGNMENT = 8  # attention pads a copy of a mask whose rows are no multiple of this long


def supports(model: Any, tokens: PaddedTokens) -> bool:
    """Whether a pass can be recorded: one GPU, torch's attention, and layers that see all."""
    config = getattr(model, "config", None)
    devices = {p.device for p in model.parameters()}
    return (
        model not in _refused
        and len(devices) == 1
        and all(p.is_floating_point() for p in model.parameters())  # packed layers: nobody tried
        and not any(isinstance(p, DTensor) for p in model.parameters())  # shards (FSDP2)
        and next(iter(devices)).type == "cuda"
        and tokens.axes_ABL is None
        and has_fixed_shapes(config)
    )


def has_fixed_shapes(config: Any) -> bool:
    """Whether a model of these settings does the same operations for every token."""
    text = config.get_text_config(decoder=True) if config is not None else None
    if getattr(text, "_attn_implementation", None) != "sdpa":
        return False
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return rope.get("rope_type", "default") not in GROWING_ROPE and kinds == {"full_attention"}


def cuda_graph(work: Work, device: torch.device) -> Work:
    """Record what ``work`` does on the GPU; the returned function does it again, at one launch.

    The result is the same tensor every time, overwritten.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # Around everything, so that this thread leaves the side stream also where recording fails.
        with torch.cuda.stream(side):
            work()  # libraries choose kernels and take their work space at the first call
            # Other threads may use the GPU meanwhile: a data loader that pins memory does.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = work()
        torch.cuda.current_stream().wait_stream(side)

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay


class _Cache(StaticCache):
    """Keys and values in one type, the one that attention computes in.

    Under autocast a norm or a rotation can leave keys in float32 beside bfloat16 values, while
    ``StaticCache`` gives both the keys' type and cannot take the other.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Cast, then as the class does."""
        kind = key_states.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else key_states.dtype
        return super().update(key_states.to(dtype), value_states.to(dtype), *args, **kwargs)


class StaticLM:
    """The model with room for all tokens to come: ``start`` with the prompts, then ``step``.

    Args:
        model: without its head, in evaluation mode; see ``supports``.
        tokens: the left-padded prompts' mask and positions.
        room: tokens that will be fed after the prompts, at most.
        record: makes a function that repeats another in the same memory. Where it fails, a warning
            says so, the function itself is called, with the same numbers, and ``supports`` is False
            from then on.
    """

    def __init__(
        self,
        model: Any,
        tokens: PaddedTokens,
        room: int,
        record: Callable[[Work, torch.device], Work] = cuda_graph,
    ) -> None:
        self.model, self.tokens, self.record = model, tokens, record
        self.begun = tokens.mask_BL.shape[1]
        self.room = -(-(self.begun + room) // ALIGNMENT) * ALIGNMENT
        self.cache = _Cache(config=model.config, max_cache_len=self.room)

    def start(self, embeds_BLH: Tensor) -> Tensor:
        """The newest hidden states (B, H) behind the prompts."""
        hidden_BH, prompts = read_prompts(self.model, embeds_BLH, self.tokens)
        rows, _, width = embeds_BLH.shape
        device = embeds_BLH.device
        self.embeds_B1H = torch.zeros(rows, 1, width, device=device, dtype=embeds_BLH.dtype)
        self.mask_B11R = torch.zeros(rows, 1, 1, self.room, device=device, dtype=torch.bool)
        self.position_B1 = torch.zeros(rows, 1, device=device, dtype=torch.long)
        self.place_1 = torch.zeros(1, device=device, dtype=torch.long)
        self._begin(prompts)
        self.replay = self._recorded()
        self.cache.reset()  # recording went on from the prompts
        self._begin(prompts)
        return hidden_BH

    def step(self, embeds_BTH: Tensor) -> Tensor:
        """The newest hidden states (B, H) behind T further tokens of every row."""
        for embeds_B1H in embeds_BTH.split(1, dim=1):
            self.embeds_B1H.copy_(embeds_B1H)
            hidden_BH = self.replay() if self.replay is not None else self._pass()
        return hidden_BH.clone()  # the next replay writes into it

    def _begin(self, prompts: Any) -> None:
        """Everything as it stands behind the prompts."""
        for index, layer in enumerate(prompts.layers):
            self.cache.update(layer.keys, layer.values, index)
        self.mask_B11R.zero_()
        self.mask_B11R[:, 0, 0, : self.begun] = self.tokens.mask_BL.bool()
        self.position_B1.copy_(self.tokens.next_position_B1)
        self.place_1.fill_(self.begun)

    def _recorded(self) -> Work | None:
        """A replay of ``_pass``; None where it cannot be recorded."""
        try:
            return self.record(self._pass, self.embeds_B1H.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _refused.add(self.model)
            # Ending a failed recording fails, too; what it failed of is the error before.
            reason = str(error.__context__ or error).strip().splitlines()[0]
            warnings.warn(
                f"drawing goes on without a CUDA graph: {reason}. The pictures are the same, and "
                "slower; backbone.lean_drawing = False does not try",
                stacklevel=2,
            )
            return None

    def _pass(self) -> Tensor:
        """One token of every row. Reads and writes fixed tensors; Python decides nothing."""
        self.mask_B11R.index_fill_(3, self.place_1, True)
        output = self.model(
            inputs_embeds=self.embeds_B1H,
            attention_mask=self.mask_B11R,
            position_ids=self.position_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.place_1.add_(1)
        self.position_B1.add_(1)
        hidden_BH: Tensor = output.last_hidden_state[:, -1]
        return hidden_BH
