"""Models whose parts lie on several devices, or, by accelerate, on the disk until they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def beside(states: torch.Tensor, module: Any) -> torch.Tensor:
    """States on the device of a module's weight. Where accelerate offloads the weight, its hook moves the states itself."""
    device = module.weight.device
    return states if device.type == "meta" else states.to(device)


@contextmanager
def own_parameters(module: Any) -> Iterator[None]:
    """While a module's bare parameters are read: accelerate brings them only for the module's forward."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield
