"""Where a device's time goes: a profiler's trace summed up by kernel, and by what they compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import record
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Words in kernels' names -> what they compute; the first that fits counts.
KERNELS = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "convolutions": ("convolution", "conv2d", "implicit", "fprop", "wgrad", "dgrad", "winograd"),
    "matrix products": ("gemm", "gemv", "nvjet", "xmma", "cutlass", "bmm", "::mm", "::addmm"),
    "copies": ("memcpy", "memset", "copy", "nchw", "nhwc"),
}


def summarise(work: Callable[[], Any], device: torch.device, rows: int = 15) -> dict[str, Any]:
    """One call under torch's profiler.

    Returns:
        ``kernel_ms`` on the device (on a CPU: in operations), ``wall_ms_profiled`` (the profiler
        itself slows the host), ``calls``, ``share_by_kind``, and ``table``, the first ``rows`` in
        lines of text.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    begun = time.perf_counter()
    with profile(activities=activities) as profiled:
        work()
        if cuda:
            torch.cuda.synchronize()
    wall_ms = 1e3 * (time.perf_counter() - begun)
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    spent = sorted(
        (
            ((e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e3, e.count, e.key)
            for e in profiled.key_averages()
            if e.device_type == wanted and not e.is_user_annotation
        ),
        reverse=True,
    )
    total = sum(ms for ms, _, _ in spent)
    kinds: dict[str, float] = {}
    for ms, _, name in spent:
        kind = kernel_kind(name)
        kinds[kind] = kinds.get(kind, 0.0) + ms / total
    table = [f"{'ms':>9} {'share':>6} {'calls':>7}  kernel"]
    table += [f"{ms:9.2f} {ms / total:6.1%} {n:7}  {name[:90]}" for ms, n, name in spent[:rows]]
    return {
        "kernel_ms": round(total, 2),
        "wall_ms_profiled": round(wall_ms, 2),
        "calls": sum(count for _, count, _ in spent),
        "share_by_kind": record.rounded(kinds, 3),
        "table": table,
    }


def kernel_kind(name: str) -> str:
    """What a kernel or operation computes, by its name."""
    name = name.lower()
    for kind, words in KERNELS.items():
        if any(word in name for word in words):
            return kind
    return "elementwise and other"
