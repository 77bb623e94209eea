"""`tokenzoo cost`: price methods on an architecture and a GPU without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenzoo.commands.options import BATCH, DECODE, FRAMES, GROUP, IMAGES, SCALE, TOKENS
from tokenzoo.errors import UserError
from tokenzoo.numbers import decimal_bytes, flops, milliseconds
from tokenzoo.report.sheets import FORMATS, Sheet, show


@click.command("cost")
@click.option("--arch", default="llava-onevision-7b", show_default=True, help="Architecture of the registry.")
@click.option("--config", type=click.Path(path_type=Path), help="Read the architecture from a Hugging Face config.json.")
@click.option("--methods", default="none,fastv,pdrop,vtw,aim", show_default=True, help="Methods, separated by commas.")
@click.option("--images", type=IMAGES, help="Price a prompt of so many images (default: one).")
@click.option("--frames", type=FRAMES, help="Price a prompt of one video of so many frames.")
@click.option("--tokens", type=TOKENS, help="Visual tokens of an image or a frame, instead of the architecture's.")
@click.option("--text-tokens", type=TOKENS, help="Text tokens of the prompt [images: 40, video: 100].")
@click.option("--trace", type=click.Path(path_type=Path), help="Price a recorded run instead (of 'tokenzoo run').")
@click.option("--scale", type=SCALE, help="Multiply a trace's visual tokens [default: 1].")
@click.option("--convention", default="exact", show_default=True, help="llm-viewer, fastv, pdrop or exact.")
@click.option("--hardware", default="a100", show_default=True, help="GPU of the registry, or 'none'.")
@click.option("--dtype", default="float16", show_default=True, help="Number format: its width and the GPU's peak.")
@click.option("--batch", type=BATCH, default=1, help="Equal samples in a batch.")
@click.option("--decode", type=DECODE, default=0, metavar="N", help="Also price N decoding steps.")
@click.option("--tensor-parallel", type=GROUP, default=1, metavar="N", help="Split over N GPUs.")
@click.option("--flash/--no-flash", default=False, help="Attention as one kernel that never writes the scores.")
@click.option("--per-layer", is_flag=True, help="Show every layer: tokens, FLOPs, time, bound, KV cache.")
@click.option("--counted", is_flag=True, help="Confirm 'exact' by counting a real forward of this shape (imports torch).")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it.")
@click.option("--list-architectures", is_flag=True, help="List the architectures and leave.")
@click.option("--list-hardware", is_flag=True, help="List the GPUs and leave.")
def command(**options: Any) -> None:
    """Price methods under a named convention: FLOPs, bytes, KV cache, roofline time.

    The closed forms need no model and no GPU. `exact` counts the whole model with the method's own work; the other
    conventions are those of published tables and count the decoder alone.
    """
    if options["list_architectures"] or options["list_hardware"]:
        _list(options["list_architectures"], options["list_hardware"])
        return
    text = show(_sheets(options), options["form"])
    if text is not None:
        click.echo(text, nl=False)


def _sheets(options: dict[str, Any]) -> list[Sheet]:
    from tokenzoo.cost import architecture, model_config

    if options["scale"] is not None and not options["trace"]:
        raise UserError("--scale multiplies the visual tokens of a recorded run: give one with --trace FILE.")
    if options["counted"] and (options["trace"] or options["convention"] != "exact"):
        raise UserError("--counted confirms schedules under 'exact': leave --trace out and take --convention exact.")
    if options["config"]:
        model = model_config.architecture_of(options["config"], options["config"].stem)
    else:
        model = architecture.load_architecture(options["arch"])
    settings = {
        "convention": options["convention"],
        "hardware": None if options["hardware"] == "none" else options["hardware"],
        "dtype": options["dtype"],
        "batch": options["batch"],
        "decode": options["decode"],
        "flash": options["flash"],
        "tensor_parallel": options["tensor_parallel"],
    }
    if options["trace"]:
        costs, base, subject, refused = _trace_costs(model, options, settings)
    else:
        costs, base, subject, refused = _schedule_costs(model, options, settings)
    sheets = [_summary(model, subject, list(costs.values()), base, options)]
    sheets[0].notes += [f"No price for {specification}: {why}" for specification, why in refused.items()]
    if options["per_layer"]:
        sheets += [_layers(cost) for cost in costs.values()]
    if options["counted"]:
        sheets.append(_counted(model, costs, options))
    return sheets


def workload_from(model: Any, options: dict[str, Any]) -> Any:
    """The workload that --images, --frames, --tokens and --text-tokens describe."""
    if options["frames"] is not None and options["images"] is not None:
        raise UserError("Give either --frames or --images, not both.")
    text = options["text_tokens"]
    if options["frames"] is not None:
        return model.video_workload(options["frames"], options["tokens"], 100 if text is None else text)
    images = 1 if options["images"] is None else options["images"]
    return model.image_workload(images, options["tokens"], 40 if text is None else text)


#: The costs by specification, that of `none`, what was priced, and why there is no price for other specifications.
Priced = tuple[dict[str, Any], Any, str, dict[str, str]]


def _schedule_costs(model: Any, options: dict[str, Any], settings: dict[str, Any]) -> Priced:
    from tokenzoo.cost.pricing import price
    from tokenzoo.method.reduction import DataDependentError
    from tokenzoo.zoo.plugins import load_zoo
    from tokenzoo.zoo.specification import split_methods

    workload = workload_from(model, options)
    base = price(model, workload, **settings)
    costs: dict[str, Any] = {}
    refused: dict[str, str] = {}
    methods = {specification: load_zoo().build(specification) for specification in split_methods(options["methods"])}
    for specification, method in methods.items():
        try:
            costs[specification] = price(model, workload, method, **settings)
        except DataDependentError as error:
            instead = "Price a recorded run instead: 'tokenzoo run --trace FILE', then 'tokenzoo cost --trace FILE'."
            refused[specification] = f"{error} {instead}"
        except UserError as error:  # such as a layer that this architecture does not have
            refused[specification] = str(error)
    if not costs:
        raise UserError(next(iter(refused.values())))
    visual = workload.visual_tokens
    pictures = f"{options['frames']} frames" if options["frames"] is not None else f"{len(workload.sources)} image(s)"
    return costs, base, f"{pictures}: {visual} visual + {workload.text_tokens} text tokens", refused


def _trace_costs(model: Any, options: dict[str, Any], settings: dict[str, Any]) -> Priced:
    from tokenzoo.cost.traces import price_trace
    from tokenzoo.method.trace import Trace

    scale = 1.0 if options["scale"] is None else options["scale"]
    trace = Trace.load(options["trace"])
    settings = {key: value for key, value in settings.items() if key != "batch"}
    if options["batch"] != 1:
        raise UserError("A trace has its own batch; leave --batch out.")
    cost = price_trace(trace, model, scale=scale, text_tokens=options["text_tokens"], **settings)
    return {"": cost}, cost, f"recorded in {options['trace'].name}, visual tokens times {scale:g}", {}


def _summary(model: Any, subject: str, costs: list[Any], base: Any, options: dict[str, Any]) -> Sheet:
    first = costs[0]
    columns = ["Method", "Visual tokens, mean", "FLOPs", "% of none"]
    exact = first.convention == "exact"
    columns += ["vision", "method's own", "element-wise"] if exact else []
    columns += ["bytes moved", "prefill ms", "bound", "KV cache"]
    columns += [f"decode {first.decode.steps} ms", "decode FLOPs", "KV after"] if first.decode else []
    where = f" on {first.hardware}" if first.hardware else ""
    group = f", tensor parallel {first.tensor_parallel}" if first.tensor_parallel > 1 else ""
    title = f"{model.name}, {subject}; {first.convention}{where}, {first.dtype}, batch {first.batch}{group}"
    sheet = Sheet(title, columns, left=frozenset({0, columns.index("bound")}))
    for cost in costs:
        cells = [cost.method, f"{cost.mean_visual_tokens:.1f}", flops(cost.flops), _share(cost.flops, base.flops)]
        if exact:
            encoder = cost.part("vision").flops + cost.part("projector").flops
            cells += [flops(encoder), flops(cost.part("method").flops), flops(cost.elementwise)]
        moved = "–" if cost.bytes is None else decimal_bytes(cost.bytes)
        cells += [moved, milliseconds(cost.seconds if cost.hardware else None), _bound(cost), decimal_bytes(cost.kv_bytes)]
        if cost.decode:
            cells += [milliseconds(cost.decode.seconds), flops(cost.decode.flops), decimal_bytes(cost.decode.kv_bytes)]
        data = cost.as_dict()
        if not options["per_layer"]:
            data = {key: value for key, value in data.items() if key not in ("parts",)}
        sheet.add(cells, **data)
    from tokenzoo.cost.conventions import load_convention

    sheet.notes.append(f"{first.convention}: {load_convention(first.convention).summary}.")
    if exact and any(cost.part("method").flops for cost in costs):
        sheet.notes.append("Method's own: its matrix products; their time is a lower bound, compute alone.")
    return sheet


def _share(number: float, base: float) -> str:
    return f"{100 * number / base:.1f}" if base else "–"


def _bound(cost: Any) -> str:
    """The bound that holds for most of the prefill's time, and its share of it."""
    times: dict[str, float] = {}
    for part in cost.parts:
        for priced in part.operations:
            if priced.bound:
                times[priced.bound] = times.get(priced.bound, 0.0) + (priced.seconds or 0.0)
    if not times:
        return "–"
    name = max(times, key=lambda bound: times[bound])
    return f"{name} {100 * times[name] / sum(times.values()):.0f} %"


def _layers(cost: Any) -> Sheet:
    columns = ["Part", "tokens", "visual", "FLOPs", "element-wise", "bytes", "ms", "bound", "KV cache"]
    sheet = Sheet(f"{cost.method}: per layer", columns, left=frozenset({0, 7}))
    for part in cost.parts:
        layer = int(part.name.split()[1]) if part.name.startswith("layer ") else None
        cells = [part.name]
        cells += ["", ""] if layer is None else [_present(cost, layer), str(cost.visual_tokens[layer])]
        moved = decimal_bytes(part.bytes) if cost.has_bytes else "–"
        cells += [flops(part.flops), flops(part.elementwise), moved, milliseconds(part.seconds), part.bound or "–"]
        cells += ["" if layer is None else decimal_bytes(cost.kv_bytes_per_layer[layer])]
        sheet.add(
            cells,
            method=cost.method,
            part=part.name,
            flops=part.flops,
            elementwise=part.elementwise,
            bytes=part.bytes if cost.has_bytes else None,
            seconds=part.seconds,
            bound=part.bound,
            tokens=None if layer is None else cost.tokens[layer],
            visual_tokens=None if layer is None else cost.visual_tokens[layer],
            mlp_tokens=None if layer is None else cost.mlp_tokens[layer],
            kv_bytes=None if layer is None else cost.kv_bytes_per_layer[layer],
        )
    return sheet


def _present(cost: Any, layer: int) -> str:
    """The tokens of a layer; where fewer reach its MLP, both."""
    tokens, left = cost.tokens[layer], cost.mlp_tokens[layer]
    return str(tokens) if left == tokens else f"{tokens}, MLP {left}"


def _counted(model: Any, costs: dict[str, Any], options: dict[str, Any]) -> Sheet:
    from tokenzoo.counting.shape_models import count_shape
    from tokenzoo.zoo.plugins import load_zoo

    sheet = Sheet(
        f"{model.name}: counted on a forward of this shape, without weights",
        ["Method", "computed", "counted", "Δ", "vision", "projector", "decoder", "LM head", "method's own"],
    )
    workload = workload_from(model, options)
    for specification, cost in costs.items():
        counted = count_shape(model, workload, load_zoo().build(specification), batch=options["batch"])
        difference = counted.flops - cost.flops
        parts = counted.parts
        sheet.add(
            [cost.method, str(cost.flops), str(counted.flops), str(difference), *(flops(n) for n in parts.values())],
            method=cost.method,
            computed=cost.flops,
            counted=counted.flops,
            difference=difference,
            **{f"{name}_flops": number for name, number in parts.items()},
        )
    return sheet


def _list(architectures: bool, hardware: bool) -> None:
    from tokenzoo.cost.architecture import load_architecture
    from tokenzoo.cost.hardware import load_hardware
    from tokenzoo.zoo.plugins import load_zoo

    registry, sheets = load_zoo().registry, []
    if architectures:
        sheet = Sheet("Architectures", ["Name", "hidden", "layers", "heads", "kv", "intermediate", "vocab", "vision"])
        for name in registry.architectures:
            model = load_architecture(name)
            decoder, tower = model.decoder, model.vision
            numbers = (decoder.hidden, decoder.layers, decoder.heads, decoder.kv_heads, decoder.intermediate, decoder.vocab)
            sheet.add([name, *map(str, numbers), f"{tower.layers} × {tower.hidden}" if tower else "–"], name=name)
        sheets.append(sheet)
    if hardware:
        sheet = Sheet("Hardware", ["Name", "also", "TFLOP/s float16", "GB/s", "GB", "source"], left=frozenset({0, 1, 5}))
        for name, entry in registry.hardware.items():
            gpu = load_hardware(name)
            peak = f"{gpu.flops['float16'] / 1e12:.1f}" if "float16" in gpu.flops else "–"
            rates = [peak, f"{gpu.bandwidth / 1e9:.0f}", f"{gpu.memory / 1e9:.0f}"]
            sheet.add([name, " ".join(entry.get("aliases") or []), *rates, gpu.source], name=name)
        sheets.append(sheet)
    show(sheets, "table")
