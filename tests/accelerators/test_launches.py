"""What a method's own work launches on an accelerator: few operations, whatever the number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tokenzoo
from tokenzoo.method import own_work
from tokenzoo.method.ops import attention
from tokenzoo.method.weightless import Weightless
from tokenzoo.method.workload import Architecture, Workload
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import tiny_model
from tokenzoo.zoo.plugins import load_zoo

ZOO = load_zoo((), ())
QWEN2_7B = Architecture("qwen2-7b", 3584, 28, 28, 4, 18944, 152064)
QWEN2_05B = Architecture("qwen2-0.5b", 896, 24, 14, 2, 4864, 151936)
#: Launches of a method's own work at one place, whatever the number of tokens.
EACH_LAYER = 40
#: Launches on top of that, once for each sample: SparseVLM's first stage finds out which text tokens rate.
ONCE = {"sparsevlm": 9}
#: Launches of AIM's ranking in all its layers, for a video of 6,272 tokens of which 1,568 enter the LLM.
AIM_VIDEO = 300
METHODS = {name: ZOO.build(name).reducers[0] for name in ZOO.names()}
#: Methods that choose among the tokens inside the LLM (VTW drops all), as many as they declare.
INSIDE = [
    name
    for name, method in METHODS.items()
    if method.acts_inside and name != "vtw" and None not in method.kept(1568, 24).values()
]
#: What a method may be asked inside a model, and whether it is.
ASKED = {"encoder_pick": "acts_in_encoder", "pick": "acts_inside", "pick_cached": "caches", "pick_read": "reads"}
#: Every method that is asked at such a place, and settings that take another way; DyCoke is asked with p alone.
PLACED = [
    *(name for name, method in METHODS.items() if any(getattr(method, acts) for acts in ASKED.values())),
    "dycoke:p=0.7",
    "sparsevlm:version=2",
    "framefusion:similarity=-1,cost=0.95",
]
PLACED = [specification for specification in PLACED if specification not in ("vtw", "dycoke")]


class Launches(TorchDispatchMode):
    """Counts operations that compute; views and empty tensors launch nothing.

    What a layer's signals do is not counted: the model made them, and the host hands them out.
    """

    FREE = ("aten::detach", "aten::_unsafe_view", "aten::empty", "aten::new_empty", "aten::promote_types")

    def __init__(self, event: Any) -> None:
        super().__init__()
        self.count, self.handing_out = 0, False
        if hasattr(event, "signals"):
            event.signals = HandedOut(event.signals, self)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (self.handing_out or function.is_view or function._schema.name.startswith(self.FREE))
        return function(*args, **(kwargs or {}))


class HandedOut:
    """Signals that a count leaves out."""

    def __init__(self, signals: Any, launches: Launches) -> None:
        self.signals, self.launches = signals, launches

    def __getattr__(self, name: str) -> Any:
        signal = getattr(self.signals, name)
        return self.read(signal) if callable(signal) else signal

    def read(self, signal: Any) -> Any:
        def reading(*args: Any) -> Any:
            self.launches.handing_out = True
            try:
                return signal(*args)
            finally:
                self.launches.handing_out = False

        return reading


@pytest.fixture(autouse=True)
def blocks_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CPU_BLOCKS", attention.ACCELERATOR_BLOCKS)


def launches(name: str, architecture: Architecture, visual: int, text: int) -> dict[int, int]:
    """Launches of a method's `pick` after each layer where it removes something, but not everything."""
    method, workload, memory = METHODS[name], Workload.images(architecture, visual, text), {}
    kept, present, found = method.kept(visual, architecture.layers), visual, {}
    for layer in sorted(kept):
        after = kept[layer]
        if not 0 < after < present:
            continue
        event = own_work.layer_event(layer, present, visual, workload, memory, method.acts_after)
        with torch.no_grad(), Weightless(), Launches(event) as counted:
            method.pick(event, after)
        found[layer], present = counted.count, after
    return found


@pytest.mark.parametrize("name", INSIDE)
def test_a_layer_costs_few_launches(name: str) -> None:
    first, *others = launches(name, QWEN2_05B, 1568, 100).values()
    assert max(first - ONCE.get(name, 0), *others, 0) <= EACH_LAYER


@pytest.mark.parametrize("specification", PLACED)
def test_no_place_in_a_model_costs_many_launches(specification: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the encoder, after attention, in the cache, in a decoding step, and where the pictures decide the count: a video and
    an image. Each more of them costs MustDrop and PruneVid, which look up what they found out about each, eight or ten more."""
    method, found = ZOO.build(specification).reducers[0], []
    for name, acts in ASKED.items():
        if getattr(method, acts):
            monkeypatch.setattr(type(method), name, counting(getattr(type(method), name), found))
    model = tiny_model("llava-onevision", layers=12)
    with torch.no_grad(), tokenzoo.apply(model, [method]):
        model.generate(**tiny_inputs(model, "mixed"), max_new_tokens=3, do_sample=False)
    assert found and max(found) <= EACH_LAYER + ONCE.get(specification, 0)


def counting(asked: Any, found: list[int]) -> Any:
    """A method's answer, with its launches noted."""

    def answer(method: Any, event: Any, count: Any) -> Any:
        with Launches(event) as counted:
            result = asked(method, event, count)
        if hasattr(event, "signals"):
            event.signals = event.signals.signals
        found.append(counted.count)
        return result

    return answer


def test_aims_video_row() -> None:
    workload = Workload.video(QWEN2_7B, 32, 196, 100)
    assert sum(launches("aim", QWEN2_7B, workload.visual_tokens // 4, 100).values()) <= AIM_VIDEO
