"""What lmms-eval's entry-point group `lmms_eval.models` is told: the model `tokenzoo`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The manifest of `lmms-eval --model tokenzoo`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("tokenzoo", simple_class_path="tokenzoo.lmms.model.Tokenzoo")
