"""What a method's own work launches on an accelerator: few operations, whatever the number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenzoo.method import own_work
from tokenzoo.method.ops import attention
from tokenzoo.method.weightless import Weightless
from tokenzoo.method.workload import Architecture, Workload
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo((), ())
QWEN2_7B = Architecture("qwen2-7b", 3584, 28, 28, 4, 18944, 152064)
QWEN2_05B = Architecture("qwen2-0.5b", 896, 24, 14, 2, 4864, 151936)
#: Launches of a method's own work after one layer, at 1,568 visual tokens.
EACH_LAYER = 40
#: SparseVLM asks for more: it scores, chooses raters once, and clusters what it drops.
MORE = {"sparsevlm": 80}
#: Launches of AIM's ranking in all its layers, for a video of 6,272 tokens of which 1,568 enter the LLM.
AIM_VIDEO = 300
INSIDE = [name for name in ZOO.names() if ZOO.build(name).reducers[0].acts_inside]


class Launches(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view and not function._schema.name.startswith(("aten::detach", "aten::_unsafe_view"))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def blocks_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CPU_BLOCKS", attention.ACCELERATOR_BLOCKS)


def launches(name: str, architecture: Architecture, visual: int, text: int) -> dict[int, int]:
    """Launches of a method's `pick` after each layer where it removes something."""
    method = ZOO.build(name).reducers[0]
    workload, memory = Workload.images(architecture, visual, text), {}
    kept, present, found = method.kept(visual, architecture.layers), visual, {}
    for layer in sorted(kept):
        after = kept[layer]
        if after is None or not 0 < after < present:
            continue
        event = own_work.layer_event(layer, present, visual, workload, memory)
        with torch.no_grad(), Weightless(), Launches() as counted:
            method.pick(event, after)
        found[layer], present = counted.count, after
    return found


@pytest.mark.parametrize("name", INSIDE)
def test_a_layer_costs_few_launches(name: str) -> None:
    assert max(launches(name, QWEN2_05B, 1568, 100).values(), default=0) <= MORE.get(name, EACH_LAYER)


def test_aims_video_row() -> None:
    workload = Workload.video(QWEN2_7B, 32, 196, 100)
    assert sum(launches("aim", QWEN2_7B, workload.visual_tokens // 4, 100).values()) <= AIM_VIDEO
