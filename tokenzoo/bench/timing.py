"""How long a model takes with each of several methods, so that the numbers can be read against each other.

Warm-up first; then rounds over all methods (A B C, A B C, ...), so that a machine that grows slower hits all alike, and
ratios are taken within a round. Of each method and round: the prefill alone, the time to the first token and per decoded
token of a real `generate`, and, in a pass of its own that does not disturb these, the time inside the method's own hooks.
CUDA work is timed with events and waited for; on the CPU the clock is `time.perf_counter`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

import tokenzoo
from tokenzoo.bench.memory import peak_bytes
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.signatures import DECISIONS


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
    device = model.device
    words = words or {name: {} for name in methods}
    timed: dict[str, Timed] = {name: Timed([], None, platform.node()) for name in methods}
    for name, method in methods.items():
        with _blaming(name), tokenzoo.apply(model, method, **words[name]):
            for _ in range(warmup):
                _generate(model, inputs[name], 2)
            timed[name].peak_bytes = peak_bytes(partial(_prefill, model, inputs[name]), device)
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
        prefill = milliseconds(lambda: _prefill(model, inputs), model.device)
        first, per_token = _generate(model, inputs, new_tokens)
    watched, spent = watch_hooks(method, model.device)
    with tokenzoo.apply(model, watched, **words):
        _prefill(model, inputs)
    return Round(prefill, first, per_token, sum(spent))


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Run `work` once and return how long it took, all its GPU work included."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return (time.perf_counter() - began) * 1000


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.inference_mode()
def _prefill(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def _generate(model: Any, inputs: Mapping[str, Any], new_tokens: int) -> tuple[float, float]:
    """Milliseconds to the first new token, and per token after it."""
    clock = _TokenClock(model.device)
    synchronize(model.device)
    began = time.perf_counter()
    model.generate(**inputs, streamer=clock, do_sample=False, num_beams=1, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    first, last = clock.times[1], clock.times[-1]
    count = len(clock.times) - 2
    return (first - began) * 1000, (last - first) * 1000 / count if count > 0 else float("nan")


class _TokenClock(BaseStreamer):
    """Notes when `generate` hands over the prompt (first) and each new token."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def watch_hooks(method: Any, device: torch.device) -> tuple[Any, list[float]]:
    """A copy of a Pipeline or TokenReducer whose hooks note how long they take, and the list they note it in (ms)."""
    spent: list[float] = []

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*seen: Any) -> Any:
            result: list[Any] = []
            spent.append(milliseconds(lambda: result.append(hook(*seen)), device))
            return result[0]

        return call

    def watch(reducer: TokenReducer) -> TokenReducer:
        watched = copy.copy(reducer)
        for name, used in zip(DECISIONS, (reducer.enters, reducer.acts_inside), strict=True):
            if used:
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
        if model.device.type == "cuda":
            found["machine"] = torch.cuda.get_device_name(model.device)
            found["cuda"] = torch.version.cuda
        config = model.config.get_text_config()
        found["device"] = str(model.device)
        found["dtype"] = str(model.dtype).removeprefix("torch.")
        found["attention"] = getattr(config, "_attn_implementation", None) or "unknown"
    return found


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
