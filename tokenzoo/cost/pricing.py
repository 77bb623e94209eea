"""Price a method from its schedule: no model, no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenzoo.cost import exact, vision
from tokenzoo.cost.architecture import ModelArchitecture, load_architecture
from tokenzoo.cost.conventions import Convention, load_convention
from tokenzoo.cost.costs import Cost, DecodeCost, Part, PricedOperation
from tokenzoo.cost.hardware import Hardware, dtype_named, load_hardware, width_of
from tokenzoo.cost.operations import Operation, Step
from tokenzoo.cost.roofline import all_reduce, time_operation
from tokenzoo.errors import UserError
from tokenzoo.method.accounting import check_layers
from tokenzoo.method.workload import Architecture, EncoderCut, Workload


class Schedulable(Protocol):
    """What can be priced: a `TokenReducer` or a `Pipeline`."""

    def schedule(self, workload: Workload) -> list[int]: ...
    def mlp_schedule(self, workload: Workload) -> list[int]: ...
    def encoder_cuts(self, workload: Workload) -> list[tuple[EncoderCut, ...]]: ...
    def projector_tokens(self, workload: Workload) -> int: ...
    def decoder_tokens(self, workload: Workload) -> int: ...
    def overhead(self, workload: Workload) -> int: ...
    def cache_schedule(self, workload: Workload) -> list[int]: ...
    def read_schedule(self, workload: Workload) -> list[int]: ...
    def decode_overhead(self, workload: Workload, steps: int) -> tuple[int, int]: ...


def price(
    model: ModelArchitecture | str,
    workload: Workload,
    reducer: Schedulable | None = None,
    *,
    convention: str = "exact",
    hardware: Hardware | str | None = None,
    dtype: str = "float16",
    batch: int = 1,
    decode: int = 0,
    flash: bool = False,
    tensor_parallel: int = 1,
    head_positions: Literal["last", "all"] = "last",
    grids: Sequence[tuple[int, int]] | None = None,
) -> Cost:
    """Price one prefill of `workload`, and `decode` decoding steps after it, with `reducer` (None: unreduced).

    `model` is an architecture or the name of one in the registry; `workload.architecture` must be its decoder (build
    it with `model.image_workload(...)` or `model.video_workload(...)`). `hardware` (or its name) adds roofline times.
    `batch` equal samples; `flash`: attention as one kernel that does not write the scores; `head_positions`: "last" as
    in `generate`, "all" as in a plain forward (only `exact` distinguishes them); `grids`: (height, width) in tokens of
    every view before the projector, which window attention depends on (default: as near to a square as possible).

    Raises UserError for unknown names and impossible numbers, DataDependentError where the schedule depends on the
    picture (price a trace then, with `tokenzoo.cost.price_trace`).
    """
    model = load_architecture(model) if isinstance(model, str) else model
    whole_number(batch, "batch", 1)
    check_workload(model, workload)
    visual = _schedule(model, workload, reducer)
    cached, read = (reducer.cache_schedule(workload), reducer.read_schedule(workload)) if reducer else (visual, visual)
    own_step, own_steps = reducer.decode_overhead(workload, decode) if reducer else (0, 0)
    return price_tokens(
        model,
        [count + workload.text_tokens for count in visual],
        visual,
        entered=workload.text_tokens + (reducer.decoder_tokens(workload) if reducer else workload.visual_tokens),
        mlp_tokens=[count + workload.text_tokens for count in reducer.mlp_schedule(workload)] if reducer else None,
        grids=vision.view_grids(workload, grids) * batch,
        encoder_cuts=reducer.encoder_cuts(workload) * batch if reducer else (),
        projector_tokens=batch * (reducer.projector_tokens(workload) if reducer else workload.projector_tokens),
        overhead=batch * (reducer.overhead(workload) if reducer else 0),
        cached=[count + workload.text_tokens for count in cached],
        read=[count + workload.text_tokens for count in read],
        decode_overhead=(batch * own_step, batch * own_steps),
        method=str(reducer) if reducer else "none",
        convention=convention,
        hardware=hardware,
        dtype=dtype,
        batch=batch,
        decode=decode,
        flash=flash,
        tensor_parallel=tensor_parallel,
        head_positions=head_positions,
    )


def price_tokens(
    model: ModelArchitecture,
    tokens: Sequence[int],
    visual_tokens: Sequence[int],
    *,
    entered: int | None = None,
    mlp_tokens: Sequence[int] | None = None,
    grids: Sequence[tuple[int, int]] = (),
    encoder_cuts: Sequence[tuple[EncoderCut, ...]] = (),
    projector_tokens: int = 0,
    overhead: int = 0,
    cached: Sequence[int] | None = None,
    read: Sequence[int] | None = None,
    decode_overhead: tuple[int, int] = (0, 0),
    method: str = "",
    convention: str = "exact",
    hardware: Hardware | str | None = None,
    dtype: str = "float16",
    batch: int = 1,
    decode: int = 0,
    flash: bool = False,
    tensor_parallel: int = 1,
    head_positions: Literal["last", "all"] = "last",
) -> Cost:
    """Price a prefill in which `tokens[l]` rows of each sample enter decoder layer l: the ground of `price`.

    `entered`: rows of each sample that enter the decoder, of which methods may drop some before layer 0 (None: none of them);
    `mlp_tokens[l]` rows reach that layer's MLP (None: all). `grids`, `encoder_cuts` (where patches of each of these views leave
    inside the encoder; () where none do), `projector_tokens` and `overhead` are of the whole batch.
    `cached`: rows in each layer's KV cache after the prefill (None: all that entered); `read`: how many of them each layer
    reads in a decoding step (None: all that are cached); `decode_overhead`: the methods' own products in the first step, and
    in all of them.
    """
    cached = tokens if cached is None else cached
    read = cached if read is None else read
    rules, dtype = load_convention(convention), dtype_named(dtype)
    gpu = load_hardware(hardware) if isinstance(hardware, str) else hardware
    setting = Setting(model, rules, gpu if rules.has_bytes else None, dtype, batch, flash, tensor_parallel)
    mlp = list(tokens) if mlp_tokens is None else list(mlp_tokens)
    setting.check(tokens, decode, head_positions)
    setting.check(mlp, decode, head_positions)
    parts = []
    if rules.whole_model:
        parts.append(setting.part("vision", vision.vision_tower(model, grids, setting.width, encoder_cuts)))
        parts.append(setting.part("projector", vision.projector(model, projector_tokens, setting.width)))
        given = batch * (tokens[0] if entered is None else entered)
        parts.append(setting.part("per-layer inputs", exact.layer_inputs(model.decoder, given, setting.width)))
    kinds = [(model.decoder.of_layer(index), *counts) for index, counts in enumerate(zip(tokens, mlp, strict=True))]
    positions = mlp[-1] if head_positions == "all" and rules.whole_model else min(1, mlp[-1])
    layers = {kind: setting.prefill(*kind, positions) for kind in set(kinds)}
    parts += [Part(f"layer {index}", layers[kind]) for index, kind in enumerate(kinds)]
    parts.append(setting.part("lm head", rules.lm_head(model.decoder, batch * positions, setting.width)))
    if rules.whole_model and overhead:
        parts.append(setting.part("method", [Operation("method", flops=overhead, parallel=False)]))
    return Cost(
        architecture=model.name,
        method=method,
        convention=convention,
        dtype=dtype,
        hardware=gpu.name if gpu else "",
        batch=batch,
        tensor_parallel=tensor_parallel,
        tokens=tuple(tokens),
        visual_tokens=tuple(visual_tokens),
        mlp_tokens=tuple(mlp),
        projector_tokens=projector_tokens,
        parts=tuple(part for part in parts if part.operations),
        kv_bytes_per_layer=tuple(setting.kv_bytes(model.decoder.of_layer(index), count) for index, count in enumerate(cached)),
        has_bytes=rules.has_bytes,
        decode=setting.decode(cached, read, decode, decode_overhead if rules.whole_model else (0, 0)) if decode else None,
    )


@dataclass(frozen=True)
class Setting:
    """Everything that stays the same over the layers of one price."""

    model: ModelArchitecture
    convention: Convention
    hardware: Hardware | None
    dtype: str
    batch: int
    flash: bool
    tensor_parallel: int

    @property
    def width(self) -> int:
        return width_of(self.dtype)

    def check(self, tokens: Sequence[int], decode: int, head_positions: str) -> None:
        """Raise UserError for numbers that cannot be, and for layers that a convention has no formula for."""
        decoder, group = self.model.decoder, self.tensor_parallel
        if (decoder.linear or decoder.shared_kv_layers) and not self.convention.whole_model:
            raise UserError(
                f"Convention '{self.convention.name}' has no formula for layers of {self.model.name} without keys and values of "
                "their own. Price it with 'exact'."
            )
        whole_number(self.batch, "batch", 1)
        whole_number(decode, "decode", 0)
        whole_number(group, "tensor parallel", 1)
        if decoder.heads % group or (decoder.kv_heads % group and group % decoder.kv_heads):
            raise UserError(
                f"{decoder.heads} heads and {decoder.kv_heads} key-value heads cannot be split over {group} GPUs. "
                f"Choose a tensor-parallel size that divides both."
            )
        if head_positions not in ("last", "all"):
            raise UserError(f"head_positions is 'last' or 'all', not {head_positions!r}.")
        if len(tokens) != decoder.layers:
            raise UserError(f"{len(tokens)} token counts were given for the {decoder.layers} layers of {self.model.name}.")
        for count in tokens:
            whole_number(count, "tokens of a layer", 0)

    def part(self, name: str, operations: Sequence[Operation]) -> Part:
        return Part(name, self.priced(operations))

    def priced(self, operations: Sequence[Operation]) -> tuple[PricedOperation, ...]:
        if self.hardware is None:
            return tuple(PricedOperation(operation) for operation in operations)
        times = [time_operation(operation, self.hardware, self.dtype, self.tensor_parallel) for operation in operations]
        return tuple(
            PricedOperation(operation, time.seconds, time.bound) for operation, time in zip(operations, times, strict=True)
        )

    def layer(self, decoder: Architecture, queries: int, context: int, mlp: int | None = None) -> tuple[PricedOperation, ...]:
        """One layer of the decoder: `queries` rows enter, each attends to `context`; `mlp` of them reach its MLP (None: all)."""
        step = Step(queries, context, self.batch, self.width, self.flash, mlp)
        operations = self.convention.decoder_layer(decoder, step, self.model.skip_mlp_add)
        if self.tensor_parallel > 1 and self.convention.has_bytes:
            operations += [
                all_reduce(f"all-reduce after {where}", rows * self.model.decoder.hidden, self.width, self.tensor_parallel)
                for where, rows in (("attention", self.batch * queries), ("mlp", step.mlp_rows))
            ]
        return self.priced(operations)

    def prefill(self, decoder: Architecture, count: int, mlp: int, positions: int) -> tuple[PricedOperation, ...]:
        """One layer of the prefill. Where it shares keys, only the rows whose logits are asked for go through it."""
        if decoder.shared_kv_layers:
            return self.layer(decoder, positions, count, positions)
        return self.layer(decoder, count, count, mlp)

    def kv_bytes(self, decoder: Architecture, tokens: int) -> int:
        """Bytes of one layer's keys and values: a layer with a window keeps all but one row of it. A linear-attention layer keeps
        the last rows before its convolution, and a state in float32, however many tokens there were."""
        if decoder.shared_kv_layers:
            return 0
        if decoder.linear is not None:
            sizes = decoder.linear
            state = sizes.value_heads * sizes.key_dim * sizes.value_dim
            return self.batch * (sizes.channels * sizes.kernel * self.width + 4 * state)
        if decoder.window:
            tokens = min(tokens, decoder.window - 1)
        return 2 * self.batch * tokens * decoder.kv_heads * decoder.head_dim * self.width

    def decode(self, tokens: Sequence[int], read: Sequence[int], steps: int, overhead: tuple[int, int]) -> DecodeCost:
        """The cost of `steps` decoding steps after a prefill that left `tokens[l]` rows in layer l's cache, of which `read[l]`
        are read; `overhead`: the methods' own products in the first step, and in all of them."""
        head = self.part("lm head", self.convention.lm_head(self.model.decoder, self.batch, self.width))
        cached_in = Counter((self.model.decoder.of_layer(index), count) for index, count in enumerate(tokens))
        layers_of = Counter((self.model.decoder.of_layer(index), count) for index, count in enumerate(read))
        totals: list[Any] = [0, 0, 0, 0.0 if head.seconds is not None and self.hardware is not None else None]
        first: list[Any] = []
        inputs = self.part("per-layer inputs", exact.layer_inputs(self.model.decoder, self.batch, self.width))
        for step in range(steps):
            added = [Part("", self.layer(decoder, 1, seen(decoder, count + step + 1))) for decoder, count in layers_of]
            for part, times in [(head, 1), (inputs, 1), *zip(added, layers_of.values(), strict=True)]:
                totals[0] += times * part.flops
                totals[1] += times * part.elementwise
                totals[2] += times * part.bytes
                if totals[3] is not None:
                    totals[3] += times * (part.seconds or 0.0)
            first = first or list(totals)
        for found, flops in zip((first, totals), overhead, strict=True):
            own = self.part("method", [Operation("method", flops=flops, parallel=False)])
            found[0] += flops
            if flops and found[3] is not None:
                found[3] += own.seconds or 0.0
        return DecodeCost(
            steps=steps,
            flops=totals[0],
            elementwise=totals[1],
            bytes=totals[2],
            seconds=totals[3],
            first_step_flops=first[0],
            first_step_seconds=first[3],
            kv_bytes=sum(times * self.kv_bytes(decoder, count + steps) for (decoder, count), times in cached_in.items()),
        )


def seen(decoder: Architecture, tokens: int) -> int:
    """How many of `tokens` rows a generated one sees in a layer, itself included."""
    return min(tokens, decoder.window) if decoder.window else tokens


def _schedule(model: ModelArchitecture, workload: Workload, reducer: Schedulable | None) -> list[int]:
    layers = model.decoder.layers
    if reducer is None:
        return [workload.visual_tokens] * layers
    singles: tuple[Any, ...] = getattr(reducer, "reducers", (reducer,))
    for single in singles:
        check_layers(single, model.decoder)
        wrong = [layer for layer in single.layers(layers) if not -1 <= layer < layers]
        if wrong:
            raise UserError(f"'{single}' acts after layer {wrong[0]}, but {model.name} has {layers} layers.")
    visual = list(reducer.schedule(workload))
    if len(visual) != layers:
        raise UserError(f"The schedule of '{reducer}' has {len(visual)} layers, {model.name} has {layers}.")
    for count in visual:
        whole_number(count, f"a layer's visual tokens in the schedule of '{reducer}'", 0)
    return visual


def check_workload(model: ModelArchitecture, workload: Workload) -> None:
    """Raise UserError where the workload is impossible or was made for another architecture."""
    if workload.architecture != model.decoder:
        raise UserError(
            f"The workload was made for '{workload.architecture.name}', not for '{model.name}'. "
            f"Make it with image_workload() or video_workload() of the architecture."
        )
    whole_number(workload.text_tokens, "text tokens", 0)
    for source in workload.sources:
        for count in (*source.view_tokens, *source.encoder_views, source.structural):
            whole_number(count, "visual tokens", 0)


def whole_number(value: Any, what: str, at_least: int) -> int:
    """Return `value` if it is a whole number of at least `at_least`, else raise UserError."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{what} must be a whole number of at least {at_least}, not {value!r}.")
    return value
