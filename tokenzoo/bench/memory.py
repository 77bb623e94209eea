"""Peak memory of a piece of work, beyond what was allocated before it began (so weights do not count)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def peak_bytes(work: Callable[[], Any], *devices: torch.device) -> int | None:
    """Run `work` and return the most tensor memory it held at once; None where a device cannot tell.

    A GPU's allocator keeps that figure itself; of several GPUs it is the sum of what each held at its own worst moment. On
    the CPU, torch's profiler reports every allocation, and the highest sum of them is taken: resident set size would not
    do, since freed memory stays with the process.
    """
    if all(device.type == "cpu" for device in devices):
        return _peak_by_profiler(work)
    allocators = [(torch.get_device_module(device), device) for device in devices if device.type != "cpu"]
    if not all(hasattr(allocator, "max_memory_allocated") for allocator, _ in allocators):
        return None
    before = []
    for allocator, device in allocators:
        allocator.synchronize(device)
        allocator.reset_peak_memory_stats(device)
        before.append(allocator.memory_allocated(device))
    result = work()
    for allocator, device in allocators:
        allocator.synchronize(device)
    del result  # only now: what it returns (the cache) was held while it ran
    return sum(
        allocator.max_memory_allocated(device) - held for (allocator, device), held in zip(allocators, before, strict=True)
    )


def _peak_by_profiler(work: Callable[[], Any]) -> int | None:
    from torch.profiler import ProfilerActivity, profile

    with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    del result  # only now: what it returns (the cache) was held while it ran
    results = getattr(profiler.profiler, "kineto_results", None)
    if results is None:
        return None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ side prints start and stop to stderr whatever the log level; progress bars suffer from it."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
