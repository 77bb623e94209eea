"""What token reduction saves on a GPU: every method on 7B models with random weights, in ten minutes.

    python benchmarks/gpu.py                # on a machine with an NVIDIA GPU of 24 GB or more
    python benchmarks/gpu.py --tiny         # the same program on the CPU at toy sizes: that it runs, no figures

Random weights give no accuracy, only time: a kernel takes as long on random numbers. Shapes are true: Qwen2-7B's LLM under
LLaVA-OneVision's 32 frames (6,272 visual tokens + 100 of text), 8 frames (1,568) and 192 frames of 49 (9,408), and the whole
LLaVA-1.5-7B with its encoder (576). bfloat16, sdpa, and flash attention where it is installed.

Rounds are interleaved (A B C, A B C), ratios are taken within a round, and their medians are printed: a method's prefill time
beside the unreduced model's; the same of FLOPs (`exact`, the method's own included) and of the roofline's time for this GPU;
what was kept of the promise; the method's own share; kernels launched and waits for the device in one prefill; memory beyond the
weights; decoding per token. Then the contract kit runs on the device. What the clock left out is said. Everything goes to a
JSON file as well, after each table.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2Config,
)
from transformers.utils import import_utils

import tokenzoo
from tokenzoo.bench.memory import peak_bytes
from tokenzoo.bench.timing import environment, machine_name, milliseconds, watch_hooks
from tokenzoo.cost import Hardware, architecture_of, load_hardware, price_trace
from tokenzoo.errors import UserError
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.models.checkpoint import check_device
from tokenzoo.testing.check import all_digits, check_independence, tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import Words, cases
from tokenzoo.testing.models import USUAL, Place
from tokenzoo.zoo.plugins import load_zoo

DTYPE = torch.bfloat16
IMAGE = 60  # the placeholder's token id, below every vocabulary here
#: The methods the project began with, and the baselines of every table; they are measured first.
SEED = ("none", "random", "uniform", "pool", "aim", "fastv", "pdrop", "vtw", "prumerge", "prumerge_plus")
RAW = "raw model"
DECODED = 16
#: What every row is held to, on a GPU: share of the promised speed-up kept at 6,272 tokens, AIM's own share, `none`'s cost.
KEPT, OWN, NOTHING = 0.9, 0.03, 0.01
KIT_SHARE = 0.15
KIT_LAYERS = 12
#: Which words of a card's name mean which entry of the registry.
CARDS = (
    (("H200",), "h200"),
    (("H100", "PCIe"), "h100-pcie"),
    (("H100",), "h100-sxm"),
    (("A100", "80GB"), "a100-80gb"),
    (("A100",), "a100-40gb"),
    (("L40S",), "l40s"),
    (("RTX A6000",), "rtx-a6000"),
    (("4090",), "rtx-4090"),
)


# --- models and prompts ---------------------------------------------------------------------------------------------


def qwen2(tiny: bool, device: torch.device) -> Any:
    """Qwen2-7B's language model: what LLaVA-OneVision-7B's visual tokens enter."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    config = Qwen2Config(**(small(26) if tiny else {**sizes, "num_key_value_heads": 4, "vocab_size": 152064}))
    return on(device, AutoModelForCausalLM, config)


def llava(tiny: bool, device: torch.device) -> Any:
    """LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, Vicuna-7B."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = CLIPVisionConfig(**(small(4) if tiny else large), image_size=48 if tiny else 336, patch_size=8 if tiny else 14)
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    text = LlamaConfig(**(small(26) if tiny else {**sizes, "vocab_size": 32064}), max_position_embeddings=4096)
    tokens = (vision.image_size // vision.patch_size) ** 2
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=tokens)
    return on(device, AutoModelForImageTextToText, config)


def small(layers: int) -> dict[str, int]:
    """The sizes of --tiny; as deep as a method's published layers need."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {**sizes, "num_hidden_layers": layers, "vocab_size": 128}


def on(device: torch.device, kind: Any, config: Any) -> Any:
    """The model with random weights, made where it will run in the format it will run in: no copy in float32 ever exists."""
    torch.manual_seed(0)
    with torch.device(device):
        return kind.from_config(config, dtype=DTYPE, attn_implementation="sdpa").eval().requires_grad_(False)


@dataclass(frozen=True)
class Scenario:
    """A prompt on a model: `views` runs of `tokens` visual tokens in the middle of `text` tokens; `weight` of the time."""

    name: str
    build: Callable[[bool, torch.device], Any]
    views: int
    tokens: int
    text: int
    weight: float

    @property
    def visual(self) -> int:
        return self.views * self.tokens

    def inputs(self, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of a prefill, and of `tokenzoo.apply`."""
        words = {"questions": ["what is shown in the picture"], "tokenizer": Words()}
        first, length = self.text // 2, self.text + self.visual
        vision = getattr(model.config, "vision_config", None)
        if vision is None:
            embeddings = 0.02 * torch.randn(1, length, model.config.hidden_size, device=model.device, dtype=model.dtype)
            spans = [(first + view * self.tokens, first + (view + 1) * self.tokens) for view in range(self.views)]
            return {"inputs_embeds": embeddings}, {"visual": [spans], **words}
        ids = torch.full((1, length), 5, device=model.device)
        ids[:, first : first + self.visual] = IMAGE
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size, device=model.device, dtype=model.dtype)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}, words


SCENARIOS = (
    Scenario("qwen2-7b, 32 frames", qwen2, 32, 196, 100, 4),
    Scenario("qwen2-7b, 8 frames", qwen2, 8, 196, 100, 1),
    Scenario("qwen2-7b, 192 frames", qwen2, 192, 49, 100, 4),
    Scenario("llava-1.5-7b, image", llava, 1, 576, 64, 2),
)
TINY = (
    Scenario("tiny qwen2, 4 frames", qwen2, 4, 16, 10, 4),
    Scenario("tiny qwen2, 2 frames", qwen2, 2, 16, 10, 1),
    Scenario("tiny qwen2, 12 frames", qwen2, 12, 4, 10, 4),
    Scenario("tiny llava, image", llava, 1, 36, 8, 2),
)


def flash() -> str | None:
    """The newest flash attention that is installed here."""
    found = [f"flash_attention_{number}" for number in (3, 2) if getattr(import_utils, f"is_flash_attn_{number}_available")()]
    return found[0] if found else None


# --- measuring ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def prefill(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def decode(model: Any, cache: Any, steps: int) -> None:
    token = torch.full((1, 1), 7, device=model.device)
    for _ in range(steps):
        model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


class Operations(TorchDispatchMode):
    """Counts operations that compute, where there are no kernels to count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def launches(work: Callable[[], Any], device: torch.device) -> int | None:
    """Kernels that `work` launches, operations on a CPU; None where the profiler is not allowed to see them."""
    if device.type != "cuda":
        with Operations() as counted:
            work()
        return counted.count
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    return sum("LaunchKernel" in event.name for event in profiler.events()) or None


def waits(work: Callable[[], Any], device: torch.device) -> int | None:
    """How often `work` waits for a GPU."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


@dataclass
class Measured:
    """One method: what a prefill of it needs, and its rounds in milliseconds. Its own time is from a pass of its own."""

    method: str
    flops: int = 0
    own_flops: int = 0
    roofline: float | None = None
    launches: int | None = None
    waits: int | None = None
    waits_of_a_step: int | None = None
    peak_bytes: int | None = None
    tokens: float = 0.0
    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    own_share: list[float] = field(default_factory=list)


@dataclass
class Results:
    """A scenario on one attention backend; `left_out`: methods and why they have no row."""

    scenario: str
    backend: str
    visual: int
    text: int
    rows: list[Measured] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def row(self, method: str) -> Measured | None:
        return next((row for row in self.rows if row.method == method), None)

    def ratio(self, row: Measured, what: str = "prefill_ms") -> float | None:
        """The median of a row's ratios to `none`, each within a round."""
        base = self.row("none")
        pairs = list(zip(getattr(row, what), getattr(base, what), strict=False)) if base is not None else []
        return statistics.median(mine / theirs for mine, theirs in pairs) if pairs else None

    def flops_ratio(self, row: Measured) -> float | None:
        base = self.row("none")
        return row.flops / base.flops if row.flops and base is not None and base.flops else None

    def roofline_ratio(self, row: Measured) -> float | None:
        base = self.row("none")
        return row.roofline / base.roofline if row.roofline and base is not None and base.roofline else None

    def kept(self, row: Measured) -> float | None:
        """Measured speed-up over the one that FLOPs promise."""
        promised, taken = self.flops_ratio(row), self.ratio(row)
        return promised / taken if promised and taken else None


class Idle(Exception):
    """A method that has nothing to do on this prompt, such as one that reads an encoder where there is none."""


class Bench:
    """One scenario: a model, a prompt, the methods in turn."""

    def __init__(self, scenario: Scenario, model: Any, backend: str, hardware: Hardware | None) -> None:
        self.model, self.backend, self.hardware = model, backend, hardware
        self.device: torch.device = model.device
        self.inputs, self.options = scenario.inputs(model)
        self.visual = scenario.visual
        self.results = Results(scenario.name, backend, scenario.visual, scenario.text)
        self.methods: dict[str, Any] = {}

    def measure(self, names: Sequence[str], rounds: int, deadline: float) -> Results:
        """Prepare every method, for half of the time at most; rounds over them; kernels and waits last, for profiling may slow
        down what comes after it."""
        half = time.monotonic() + (deadline - time.monotonic()) / 2
        for name in (RAW, *names):
            if name not in (RAW, "none") and time.monotonic() > half:
                self.results.left_out[name] = "no time"
                continue
            try:
                self.results.rows.append(self._prepare(name))
            except Idle:
                self.results.left_out[name] = "removes nothing here"
            except UserError as error:
                self.results.left_out[name] = f"refused: {error}"
            except Exception as error:  # a method that fails must not cost the others their rows
                self.results.left_out[name] = f"failed: {type(error).__name__}: {error}"
                self._make_room()
        took = 0.0
        for done in range(rounds):
            began = time.monotonic()
            if done and began + took > deadline - (deadline - half) / 5:
                break
            for row in self.results.rows:
                self._round(row)
            took = time.monotonic() - began
        for row in self.results.rows:
            if time.monotonic() < deadline:
                self._count(row)
        return self.results

    def _applied(self, method: Any) -> Any:
        return tokenzoo.apply(self.model, method, **self.options)

    def _prepare(self, name: str) -> Measured:
        """Everything about a method but its times; its first prefill is the warm-up."""
        work, row = partial(prefill, self.model, self.inputs), Measured(name)
        if name == RAW:
            work()
            row.peak_bytes = peak_bytes(work, self.device)
            return row
        method = self.methods[name] = load_zoo().build(name)
        watched, asked = watch_hooks(method, self.device)
        with self._applied(watched) as run:
            decode(self.model, work().past_key_values, 2)
            row.peak_bytes = peak_bytes(work, self.device)
            trace = run.trace
        row.tokens = statistics.mean(trace.visual_tokens())
        if name != "none" and row.tokens == self.visual and not asked:
            raise Idle
        options: dict[str, Any] = {"hardware": self.hardware, "dtype": "bfloat16", "flash": True}
        try:
            cost = price_trace(trace, architecture_of(self.model), method, convention="exact", **options)
            row.own_flops = cost.part("method").flops
        except (UserError, DataDependentError):
            # the picture decides what the method itself computes: its own products are not counted
            cost = price_trace(trace, architecture_of(self.model), convention="exact", **options)
        row.flops, row.roofline = cost.flops, cost.seconds
        return row

    def _round(self, row: Measured) -> None:
        if row.method == RAW:
            row.prefill_ms.append(milliseconds(partial(prefill, self.model, self.inputs), self.device))
            return
        method = self.methods[row.method]
        with self._applied(method):
            outputs: list[Any] = []
            row.prefill_ms.append(milliseconds(lambda: outputs.append(prefill(self.model, self.inputs)), self.device))
            cache = outputs.pop().past_key_values
            decode(self.model, cache, 1)
            row.decode_ms.append(milliseconds(partial(decode, self.model, cache, DECODED), self.device) / DECODED)
            del cache
        watched, spent = watch_hooks(method, self.device)
        with self._applied(watched):
            taken = milliseconds(partial(prefill, self.model, self.inputs), self.device)
        row.own_share.append(sum(spent) / taken)

    def _count(self, row: Measured) -> None:
        work = partial(prefill, self.model, self.inputs)
        with nullcontext() if row.method == RAW else self._applied(self.methods[row.method]):
            row.launches, row.waits = launches(work, self.device), waits(work, self.device)
            cache = work().past_key_values
            row.waits_of_a_step = waits(partial(decode, self.model, cache, 1), self.device)

    def _make_room(self) -> None:
        """After a failure, which may have been for want of memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


# --- the contract kit -----------------------------------------------------------------------------------------------


def kit(names: Sequence[str], device: torch.device, deadline: float) -> dict[str, Any]:
    """Each method on one tiny family, the next method on the next one: a single sample, a padded batch, a video, beside the
    mask oracle; where flash attention is installed, with it as well."""
    newest = flash() if device.type == "cuda" else None
    found: dict[str, Any] = {"runs": 0, "findings": [], "refused": [], "left_out": []}
    places = [("sdpa", Place(str(device)))] + ([(newest, Place(str(device), DTYPE))] if newest else [])
    with all_digits():
        for number, name in enumerate(names):
            if time.monotonic() > deadline:
                found["left_out"].append(name)
                continue
            family, (method,) = USUAL[number % len(USUAL)], load_zoo().build(name).reducers
            for backend, place in places:
                try:
                    found["runs"] += sum(_kit_runs(method, family, backend, place, found))
                except Exception as error:
                    found["findings"].append(f"{name} on {family}, {backend}: {type(error).__name__}: {error}")
    return found


def _kit_runs(method: Any, family: str, backend: str, place: Place, found: dict[str, Any]) -> Iterator[int]:
    possible = cases(tiny_case(family, "single", backend, KIT_LAYERS, place).model)
    for case in ("single", "left", "video"):
        if case not in possible:
            continue
        report = check_case(tiny_case(family, case, backend, KIT_LAYERS, place), [method])
        if report.unsupported:
            found["refused"].append(f"{method.name} on {family}")
            return
        found["findings"] += map(str, report.findings)
        yield 1
    if place.full:
        found["findings"] += map(str, check_independence(method, family, KIT_LAYERS, place))
        yield 1


# --- tables ---------------------------------------------------------------------------------------------------------


def table(results: Results, rounds: int) -> Table:
    """One row per method, as Markdown; every ratio is a median of the rounds' ratios."""
    title = f"{results.scenario}: {results.visual} visual + {results.text} text tokens, {results.backend}, {rounds} rounds"
    made = Table(title=title, box=box.MARKDOWN)
    headings = "method tokens time/none FLOPs/none roofline/none kept own_share own_FLOPs launches waits peak decode/none ms"
    for heading in headings.split():
        made.add_column(heading.replace("_", " "), justify="left" if heading == "method" else "right")
    for row in results.rows:
        decoding = results.ratio(row, "decode_ms")
        share = statistics.median(row.own_share) if row.own_share else None
        per_token = statistics.median(row.decode_ms) if row.decode_ms else None
        made.add_row(
            row.method,
            number(row.tokens or None, ".0f"),
            number(results.ratio(row), ".3f"),
            number(results.flops_ratio(row), ".3f"),
            number(results.roofline_ratio(row), ".3f"),
            number(results.kept(row), ".2f"),
            number(share, ".1%"),
            number(row.own_flops / row.flops if row.flops else None, ".1%"),
            number(row.launches, "d"),
            "–" if row.waits is None else f"{row.waits}/{number(row.waits_of_a_step, 'd')}",
            number(None if row.peak_bytes is None else row.peak_bytes / 1e6, ".0f"),
            number(decoding, ".3f"),
            f"{number(statistics.median(row.prefill_ms) if row.prefill_ms else None, '.1f')} + {number(per_token, '.2f')}",
        )
    return made


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


LEGEND = (
    "tokens: visual tokens, mean over the layers. kept: measured speed-up over what FLOPs promise. own share: time in the "
    "method's own hooks, each waited for, so at most that. waits: of a prefill / of a decoding step. peak: MB beyond the "
    "weights. ms: prefill + decoding per token."
)


def targets(tables: Sequence[Results]) -> list[str]:
    """Each target of benchmarks/README.md, and whether it is met."""
    lines = []
    for results in tables:
        raw, aim = results.row(RAW), results.row("aim")
        ratio = results.ratio(raw) if raw is not None else None
        if ratio is not None:
            lines.append(verdict(abs(1 / ratio - 1) <= NOTHING, results, f"none takes {1 / ratio:.3f} of the raw model's time"))
        if aim is not None and aim.own_share:
            share = statistics.median(aim.own_share)
            lines.append(verdict(share <= OWN, results, f"AIM's own share is {share:.1%} (at most {OWN:.0%})"))
        if results.visual < 6000:
            continue
        for name in SEED[1:]:
            row = results.row(name)
            kept = None if row is None else results.kept(row)
            if kept is not None:
                lines.append(verdict(kept >= KEPT, results, f"{name} keeps {kept:.2f} of its promise (at least {KEPT})"))
    return lines


def verdict(met: bool, results: Results, what: str) -> str:
    return f"{'met' if met else 'MISSED'}: {results.scenario}, {results.backend}: {what}"


def card(device: torch.device) -> str | None:
    """The registry's name of a GPU; None where it has none."""
    name = machine_name(device)
    return next((entry for words, entry in CARDS if all(word in name for word in words)), None)


# --- the program ----------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda; cpu with --tiny)")
    parser.add_argument("--methods", nargs="+", help="only these (default: all that are registered)")
    parser.add_argument("--rounds", type=int, default=5, help="at most as many (5)")
    parser.add_argument("--minutes", type=float, default=10, help="stop in time for this (10)")
    parser.add_argument("--hardware", help="the GPU of the roofline, as in 'tokenzoo cost --list-hardware' (by the card's name)")
    parser.add_argument("--json", type=Path, default=Path("gpu-benchmark.json"), help="where the numbers go (gpu-benchmark.json)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: that the program runs, no figures")
    options = parser.parse_args(given)
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    return options


def main(given: Sequence[str] | None = None) -> int:
    started, options = time.monotonic(), arguments(given)
    try:
        device = torch.device(check_device(options.device))
        hardware = options.hardware or card(device)
        gpu = load_hardware(hardware) if hardware else None
    except UserError as error:
        print(f"Error: {error} '--tiny' runs on a CPU.", file=sys.stderr)
        return 2
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    end = started + 60 * options.minutes
    known = options.methods or [*SEED, *(name for name in load_zoo().names() if name not in SEED)]
    names = ["none", *(name for name in known if name != "none")]
    plan = [(scenario, "sdpa") for scenario in (TINY if options.tiny else SCENARIOS)]
    newest = flash() if device.type == "cuda" else None
    if newest:
        plan.insert(3, (plan[0][0], newest))
    console = Console(width=200 if not sys.stdout.isatty() else None)
    report: dict[str, Any] = {"date": date.today().isoformat(), "hardware": hardware, "tables": [], "left_out": []}
    tables: list[Results] = []
    model: Any = None
    built: Any = None
    for place, (scenario, backend) in enumerate(plan):
        share = scenario.weight / sum(later.weight for later, _ in plan[place:])
        available = end - time.monotonic() - 60 * options.minutes * KIT_SHARE
        if available <= 0:
            report["left_out"].append(f"{scenario.name}, {backend}: no time")
            continue
        if built is not scenario.build:
            model = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            model, built = scenario.build(options.tiny, device), scenario.build
        model.set_attn_implementation(backend)
        report["environment"] = environment(model)
        if not tables:
            console.print(report["environment"])
        bench = Bench(scenario, model, backend, gpu)
        results = bench.measure(names, options.rounds, time.monotonic() + share * available)
        tables.append(results)
        report["tables"].append(asdict(results))
        options.json.write_text(json.dumps(report, indent=1))
        console.print(table(results, len(results.rows[0].prefill_ms) if results.rows else 0))
        for name, why in results.left_out.items():
            console.print(f"  {name}: {why}", highlight=False)
    console.print(LEGEND)
    del model
    report["kit"] = kit(names, device, end)
    report["targets"] = targets(tables) if device.type == "cuda" and not options.tiny else []
    options.json.write_text(json.dumps(report, indent=1))
    checked = report["kit"]
    console.print(f"contract kit on {device}: {checked['runs']} runs, {len(checked['findings'])} findings", highlight=False)
    for line in [*checked["findings"], *report["targets"], *(f"left out: {one}" for one in report["left_out"])]:
        console.print(f"  {line}", highlight=False)
    if checked["left_out"]:
        console.print(f"  left out: no time for the kit on {', '.join(checked['left_out'])}", highlight=False)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes; numbers in {options.json}")
    return int(bool(checked["findings"]))


if __name__ == "__main__":
    sys.exit(main())
