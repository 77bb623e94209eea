"""What a method's author needs to prove a method: tiny models, the mask oracle, the guarantees as tests."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "FAMILIES": "models",
    "USUAL": "models",
    "Place": "models",
    "tiny_model": "models",
    "CASES": "inputs",
    "cases": "inputs",
    "tiny_inputs": "inputs",
    "take_sample": "inputs",
    "Finding": "findings",
    "GUARANTEES": "findings",
    "TOLERANCE": "case",
    "check_reducer": "check",
    "contract_tests": "authors",
    "assert_contract": "authors",
    "visual_tokens": "authors",
    "decide": "authors",
    "assert_golden": "authors",
    "check_family": "families",
    "full_prompt": "oracle",
    "oracle_logits": "oracle",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tokenzoo.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tokenzoo.testing' has no attribute '{name}'")
