"""The timing harness: interleaved, complete, and honest about a method's own time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tokenzoo import TokenReducer
from tokenzoo.bench.memory import peak_bytes
from tokenzoo.bench.timing import (
    MethodError,
    devices_of,
    environment,
    machine_name,
    milliseconds,
    time_methods,
    watch_hooks,
)
from tokenzoo.testing import tiny_inputs, tiny_model
from tokenzoo.testing.emulated import emulated_devices, on_device

ORDER: list[str] = []


@dataclass
class Keeper(TokenReducer):
    """Keeps every second token, and notes when it is asked; `label` tells two of them apart."""

    label: str = "a"
    name: ClassVar[str] = "keeper"

    def left(self, views, source, architecture):
        return (sum(views) + 1) // 2

    def reduce(self, tokens):
        ORDER.append(self.label)
        return torch.arange(0, len(tokens.features), 2)


@dataclass
class Failing(TokenReducer):
    name: ClassVar[str] = "failing"

    def left(self, views, source, architecture):
        return 1

    def reduce(self, tokens):
        raise ZeroDivisionError("on purpose")


@dataclass
class Idle(TokenReducer):
    name: ClassVar[str] = "idle"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llava")


def test_rounds_are_interleaved_and_complete(model):
    ORDER.clear()
    done = []
    inputs = tiny_inputs(model, "single")
    methods = {"none": Idle(), "a": Keeper("a"), "b": Keeper("b")}
    timed = time_methods(model, dict.fromkeys(methods, inputs), methods, rounds=3, new_tokens=3, on_round=done.append)
    assert done == [1, 2, 3]
    assert [len(one.rounds) for one in timed.values()] == [3, 3, 3]
    each_round = ["a"] * 3 + ["b"] * 3  # prefill, generate, and the pass with watched hooks
    assert ORDER[-18:] == each_round * 3
    for name, one in timed.items():
        assert all(r.prefill_ms > 0 and r.first_token_ms > 0 and r.decode_ms > 0 for r in one.rounds)
        assert all((r.method_ms > 0) == (name != "none") for r in one.rounds)
        assert one.peak_bytes > 0


def test_a_failing_method_is_named(model):
    with pytest.raises(MethodError) as error:
        methods = {"none": Idle(), "bad": Failing()}
        time_methods(model, dict.fromkeys(methods, tiny_inputs(model, "single")), methods, rounds=1)
    assert error.value.method == "bad" and isinstance(error.value.__cause__, ZeroDivisionError)
    assert not model._forward_pre_hooks


def test_watched_hooks_do_the_same_and_leave_the_method_alone(model):
    method = Keeper("c")
    watched, spent = watch_hooks(method, torch.device("cpu"))
    assert "reduce" in vars(watched) and "reduce" not in vars(method) and watched == method and spent == []


def test_peak_memory_counts_what_is_held_at_once():
    def work():
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        return second

    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(2 * 4_000_000, rel=0.01)


def test_milliseconds_and_environment(model):
    assert milliseconds(lambda: None, torch.device("cpu")) < 1000
    found = environment(model)
    assert found["dtype"] == "float32" and found["attention"] in ("sdpa", "eager") and found["threads"] >= 1
    assert found["machine"]


class Gpu:
    """What torch offers for a kind of GPU, with a clock of its own for each of two of them."""

    def __init__(self) -> None:
        self.clocks = {0: 0.0, 1: 0.0}
        self.held = {0: 100, 1: 200}
        self.most = dict(self.held)
        outer = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: int) -> None:
                self.at = outer.clocks[stream]

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

            def synchronize(self) -> None: ...

        self.Event = Event

    def current_stream(self, device: torch.device) -> int:
        return device.index

    def synchronize(self, device: torch.device) -> None: ...

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.most[device.index] = self.held[device.index]

    def memory_allocated(self, device: torch.device) -> int:
        return self.held[device.index]

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.most[device.index]

    def get_device_name(self, device: torch.device) -> str:
        return "H100" if device.index < 2 else "A100"

    def work(self, number: int, time: float, memory: int) -> None:
        self.clocks[number] += time
        self.most[number] = max(self.most[number], self.held[number] + memory)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


def test_a_gpu_is_measured_by_its_own_clock_and_allocator(gpu):
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    assert milliseconds(lambda: gpu.work(1, 7.0, 40), second) == 7.0
    assert milliseconds(lambda: gpu.work(1, 7.0, 40), first) == 0.0
    assert peak_bytes(lambda: gpu.work(1, 7.0, 40), second) == 40

    def both():
        gpu.work(0, 1.0, 30)
        gpu.work(1, 1.0, 5)

    assert peak_bytes(both, first, second) == 35


def test_several_gpus_are_named(gpu):
    devices = [torch.device("cuda", number) for number in (0, 1, 2)]
    assert machine_name(*devices) == "2 x H100, A100"


def test_the_devices_of_a_model_are_named():
    with emulated_devices():
        model = on_device(tiny_model("llava", layers=4), 0, lm_head=1)
        assert list(map(str, devices_of(model))) == ["emulated:0", "emulated:1"]
        assert environment(model)["device"] == "emulated:0, emulated:1"
        assert milliseconds(lambda: None, *devices_of(model)) < 1000 and peak_bytes(lambda: None, *devices_of(model)) is None
