"""What a method costs: FLOPs, bytes, KV cache and roofline time, under a named convention.

Without torch: `price` (a schedule), `price_trace` (a recorded run), `load_architecture`, `load_hardware`,
`CONVENTIONS`. With torch: `architecture_of` a live model's config, `count` on a real forward (`tokenzoo.counting.counted`).

    from tokenzoo.cost import load_architecture, price
    model = load_architecture("llava-onevision-7b")
    cost = price(model, model.video_workload(frames=32), zoo.build("fastv"), hardware="a100", convention="exact")
    cost.flops, cost.seconds, cost.kv_bytes, cost.part("vision").flops, [part.flops for part in cost.layers]
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "CONVENTIONS": "tokenzoo.cost.conventions",
    "Cost": "tokenzoo.cost.costs",
    "Hardware": "tokenzoo.cost.hardware",
    "ModelArchitecture": "tokenzoo.cost.architecture",
    "architecture_of": "tokenzoo.cost.model_config",
    "load_architecture": "tokenzoo.cost.architecture",
    "load_hardware": "tokenzoo.cost.hardware",
    "price": "tokenzoo.cost.pricing",
    "price_tokens": "tokenzoo.cost.pricing",
    "price_trace": "tokenzoo.cost.traces",
    "workload_of": "tokenzoo.cost.traces",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line prices without ever loading the counter."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenzoo.cost' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
