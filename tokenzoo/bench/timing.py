"""How long a model takes with each of several methods, so that the numbers can be read against each other.

Warm-up first; then rounds over all methods (A B C, A B C, ...), so that a machine that grows slower hits all alike, and
ratios are taken within a round. Of each method and round: the prefill alone, the time to the first token and per decoded
token of a real `generate`, and, in a pass of its own that does not disturb these, the time inside the method's own hooks.
Work on one GPU is timed with that GPU's events and waited for; else the clock is `time.perf_counter`, and every device is waited
for.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import tokenzoo
from tokenzoo.bench.memory import peak_bytes
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import decisions


class MethodError(Exception):
    """A method failed while it was timed; the cause says how."""

    def __init__(self, method: str) -> None:
        super().__init__(f"Method '{method}' failed while it was timed.")
        self.method = method


@dataclass(frozen=True)
class Round:
    """One method in one round, all in milliseconds; `decode_ms` is per token after the first."""

    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    method_ms: float


@dataclass
class Timed:
    """What was measured of one method: every round, the peak memory of a prefill, and the name of the machine it ran on."""

    rounds: list[Round]
    peak_bytes: int | None
    host: str = ""


def time_methods(
    model: Any,
    inputs: Mapping[str, Any],
    methods: Mapping[str, Any],
    rounds: int = 5,
    warmup: int = 1,
    new_tokens: int = 8,
    on_round: Callable[[int], None] | None = None,
    words: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Timed]:
    """Time `model` with each of `methods` (name -> Pipeline or TokenReducer), interleaved.

    `inputs` and `words` by the same names: what the model is called with, and what `tokenzoo.apply` is told. `on_round` is
    called with the number of finished rounds. A method that raises ends the whole timing with a MethodError that names it:
    leave it out and start anew, so that the rounds stay comparable.
    """
    devices = devices_of(model)
    words = words or {name: {} for name in methods}
    timed: dict[str, Timed] = {name: Timed([], None, platform.node()) for name in methods}
    for name, method in methods.items():
        with _blaming(name), tokenzoo.apply(model, method, **words[name]):
            for _ in range(warmup):
                _generate(model, inputs[name], 2)
            timed[name].peak_bytes = peak_bytes(partial(_prefill, model, inputs[name]), *devices)
    for done in range(rounds):
        for name, method in methods.items():
            with _blaming(name):
                timed[name].rounds.append(_one_round(model, inputs[name], method, new_tokens, words[name]))
        if on_round is not None:
            on_round(done + 1)
    return timed


@contextlib.contextmanager
def _blaming(method: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise MethodError(method) from error


def _one_round(model: Any, inputs: Mapping[str, Any], method: Any, new_tokens: int, words: Mapping[str, Any]) -> Round:
    with tokenzoo.apply(model, method, **words):
        prefill = milliseconds(lambda: _prefill(model, inputs), *devices_of(model))
        first, per_token = _generate(model, inputs, new_tokens)
    watched, spent = watch_hooks(method, *devices_of(model))
    with tokenzoo.apply(model, watched, **words):
        _prefill(model, inputs)
    return Round(prefill, first, per_token, sum(spent))


def milliseconds(work: Callable[[], Any], *devices: torch.device) -> float:
    """Run `work` once and return how long it took, all its work on `devices` included."""
    synchronize(*devices)
    if len(devices) == 1 and is_gpu(devices[0]):
        gpu = torch.get_device_module(devices[0])
        stream = gpu.current_stream(devices[0])  # of that GPU, whichever is the current one
        start, end = gpu.Event(enable_timing=True), gpu.Event(enable_timing=True)
        start.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end)
    began = time.perf_counter()
    work()
    synchronize(*devices)
    return (time.perf_counter() - began) * 1000


def is_gpu(device: torch.device) -> bool:
    """Whether it is of a kind that has a name, and events that tell its own time."""
    return device.type in ("cuda", "xpu")


def synchronize(*devices: torch.device) -> None:
    """Wait until the devices have done what they were given."""
    for device in devices:
        module = torch.get_device_module(device)
        if device.type == "mps":
            module.synchronize()
        elif device.type != "cpu" and hasattr(module, "synchronize"):
            module.synchronize(device)


def devices_of(model: Any) -> list[torch.device]:
    """The devices that hold a model's weights, in the order in which the weights are met."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters())) or [model.device]


@torch.inference_mode()
def _prefill(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def _generate(model: Any, inputs: Mapping[str, Any], new_tokens: int) -> tuple[float, float]:
    """Milliseconds to the first new token, and per token after it."""
    devices = devices_of(model)
    clock = _TokenClock(devices)
    synchronize(*devices)
    began = time.perf_counter()
    model.generate(**inputs, streamer=clock, do_sample=False, num_beams=1, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    first, last = clock.times[1], clock.times[-1]
    count = len(clock.times) - 2
    return (first - began) * 1000, (last - first) * 1000 / count if count > 0 else float("nan")


class _TokenClock(BaseStreamer):
    """Notes when `generate` hands over the prompt (first) and each new token."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = devices
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        synchronize(*self.devices)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def processor_milliseconds(work: Callable[[], Any]) -> float:
    """Processor time of `work`, all threads together: what other programs take meanwhile does not count."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def watch_hooks(
    method: Any, *devices: torch.device, measure: Callable[[Callable[[], Any]], float] | None = None
) -> tuple[Any, list[float]]:
    """A copy of a Pipeline or TokenReducer whose hooks note how long they take, and the list they note it in (ms).

    `measure`: how a hook is timed, if not by the clock of the devices.
    """
    spent: list[float] = []
    timed_by = measure or (lambda work: milliseconds(work, *devices))

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*seen: Any) -> Any:
            result: list[Any] = []
            spent.append(timed_by(lambda: result.append(hook(*seen))))
            return result[0]

        return call

    def watch(reducer: TokenReducer) -> TokenReducer:
        watched = copy.copy(reducer)
        for name in decisions(reducer):
            object.__setattr__(watched, name, timed(getattr(reducer, name)))
        return watched

    if isinstance(method, TokenReducer):
        return watch(method), spent
    return dataclasses.replace(method, reducers=tuple(watch(reducer) for reducer in method.reducers)), spent


def environment(model: Any = None) -> dict[str, Any]:
    """What a time depends on besides the method: machine, threads, versions, precision, attention backend."""
    import transformers

    found: dict[str, Any] = {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "tokenzoo": tokenzoo.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if model is not None:
        devices = devices_of(model)
        found["machine"] = machine_name(*devices)
        if any(device.type == "cuda" for device in devices):
            found["cuda"] = torch.version.cuda
        config = model.config.get_text_config()
        found["device"] = ", ".join(map(str, devices))
        found["dtype"] = str(model.dtype).removeprefix("torch.")
        found["attention"] = getattr(config, "_attn_implementation", None) or "unknown"
    return found


def machine_name(*devices: torch.device) -> str:
    """The GPUs' names, with their number where there are several of one; the processor's where there is no GPU."""
    counted = Counter(torch.get_device_module(device).get_device_name(device) for device in devices if is_gpu(device)).items()
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counted) or processor_name()


def processor_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
