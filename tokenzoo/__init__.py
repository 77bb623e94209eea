"""tokenzoo: training-free visual-token reduction for multimodal LLMs, side by side and compared fairly.

Importing this package imports no torch; `apply` does, when it is first used.
"""

from __future__ import annotations

from typing import Any

from tokenzoo.errors import FailedError, UnsupportedError, UserError
from tokenzoo.method import ops
from tokenzoo.method.cached_layer import CachedLayer, CacheRead
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.encoder_layer import EncoderLayer
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import ActsAfter, DataDependentError, PositionPolicy, Reduction, UnreachableError
from tokenzoo.method.trace import Trace
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.method.workload import Architecture, Source, Workload
from tokenzoo.zoo.hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = [
    "ActsAfter",
    "Architecture",
    "CacheRead",
    "CachedLayer",
    "DataDependentError",
    "DecoderLayer",
    "EncoderLayer",
    "FailedError",
    "PositionPolicy",
    "Reduction",
    "Source",
    "TokenReducer",
    "Trace",
    "UnreachableError",
    "UnsupportedError",
    "UserError",
    "VisualTokens",
    "Workload",
    "apply",
    "hookimpl",
    "ops",
]


def __getattr__(name: str) -> Any:
    if name == "apply":
        from tokenzoo.application import apply

        return apply
    raise AttributeError(f"module 'tokenzoo' has no attribute '{name}'")
