"""For CI alone: lets PyPI's torchvision, which is built for CUDA, be imported beside PyTorch's CPU build.

Its compiled operators cannot be loaded there, and its import fails on declaring two of them for tracing. Declaring them first
is enough: nothing here calls them. `.ci/run` copies this file into an environment and names it in a .pth file, so it runs as
Python starts; torch is imported only once torchvision is.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class Declare(MetaPathFinder):
    """Declares the operators when torchvision is looked for, then steps aside."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        self.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(self.library)


kept: list[Any] = []
sys.meta_path.insert(0, Declare())
