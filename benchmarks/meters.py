"""What a piece of work takes: seconds, arithmetic, passes of the language model, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, on a GPU until its work is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


class Counter:
    """Arithmetic and tokens through the language model, by phase. In the place of a PhaseTimer.

    Attributes:
        flops: floating point operations of matrix products and convolutions, forward and backward.
        tokens: ``{phase: {"forward": n, "backward": n}}``, tokens that went through the language
            model; padding and prompts count.
    """

    def __init__(self, language_model: Any) -> None:
        self.flops: dict[str, float] = {}
        self.tokens: dict[str, dict[str, int]] = {}
        self._phase = "other"
        self._flops = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
        self._language_model = language_model

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count everything within; what no phase covers is under "other"."""
        handle = self._language_model.register_forward_hook(self._count_tokens, with_kwargs=True)
        try:
            with self._flops:
                yield
        finally:
            handle.remove()
            rest = self._flops.get_total_flops() - sum(self.flops.values())
            self.flops["other"] = self.flops.get("other", 0.0) + rest

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As ``PhaseTimer.phase``."""
        before, outer, self._phase = self._flops.get_total_flops(), self._phase, name
        yield
        self._phase = outer
        found = self._flops.get_total_flops() - before
        self.flops[name] = self.flops.get(name, 0.0) + found

    def flush(self, meter: Any) -> None:
        """As ``PhaseTimer.flush``; a count is no figure for the log."""

    def _count_tokens(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        states_BLH: Tensor = output.last_hidden_state
        found = self.tokens.setdefault(self._phase, {"forward": 0, "backward": 0})
        count = states_BLH.shape[0] * states_BLH.shape[1]
        found["forward"] += count
        if states_BLH.requires_grad:

            def passed(grad: Tensor) -> None:
                found["backward"] += count

            states_BLH.register_hook(passed)


def _cpu_attention() -> dict[Any, Any]:
    """The fused attention of CPUs, which torch's counter does not know."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
