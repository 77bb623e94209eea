"""Which methods, with which settings, fit a prefill budget on a GPU, and what accuracy papers report for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenzoo.cost import Cost, ModelArchitecture, load_architecture, load_hardware, price
from tokenzoo.cost.conventions import load_convention
from tokenzoo.cost.matching import most_within
from tokenzoo.cost.pricing import check_workload
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.zoo.plugins import Zoo, load_zoo

FRAMES = 32


@dataclass(frozen=True)
class Loss:
    """Mean relative accuracy loss over the benchmarks of a printed table, against that table's unreduced row."""

    relative: float
    benchmarks: int
    source: str


@dataclass(frozen=True)
class Recommendation:
    """A setting that fits. `origin` says where it comes from: default, a preset, or solved for the budget.

    `method` is the specification to run it by, `settings` the same with every changed parameter written out.
    """

    method: str
    settings: str
    origin: str
    prefill_ms: float
    tflops: float
    share: float
    visual_tokens: float
    loss: Loss | None = None


@dataclass
class Recommendations:
    """All settings that fit, best first, and the methods that do not, with the reason."""

    target: str
    convention: str
    budget_ms: float
    unreduced_ms: float
    kind: str
    fitting: list[Recommendation] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def recommend(
    architecture: str, hardware: str, budget_ms: float, video: bool | None = None, convention: str = "llm-viewer"
) -> Recommendations:
    """List what fits `budget_ms` of prefill: known accuracy loss first (least first), then by tokens kept.

    `video`: 32 frames (True) or one image (False); None takes a video where the architecture has a default for it.
    """
    zoo, model, gpu = load_zoo(), load_architecture(architecture), load_hardware(hardware)
    if not load_convention(convention).has_bytes:
        raise UserError(f"Convention '{convention}' defines no time. Use llm-viewer or exact.")
    video = model.video is not None if video is None else video
    if video and model.video is None:
        raise UserError(f"'{model.name}' has no default size for videos. Leave --video out, or choose another --arch.")
    workload = model.video_workload(FRAMES) if video else model.image_workload()
    check_workload(model, workload)

    def cost(method: Pipeline | None) -> Cost:
        return price(model, workload, method, convention=convention, hardware=gpu)

    full = cost(None)
    found = Recommendations(f"{model.name}@{gpu.name}", convention, budget_ms, _ms(full), "video" if video else "image")
    for name in zoo.names():
        if name == "none":
            continue
        try:
            settings = list(_settings(zoo, name, budget_ms, cost, model.decoder.layers))
        except UserError as error:
            found.refused[name] = str(error)
            continue
        except DataDependentError:
            found.refused[name] = "its cost depends on the picture; measure it with 'tokenzoo compare --price'."
            continue
        for origin, method, priced in settings:
            loss = published_loss(zoo, name, origin, model, found.kind)
            if loss is None and origin not in ("default", "solved"):
                continue  # a preset for another model or input, of which nothing is known here
            preset = f"{name}@{origin}"
            found.fitting.append(
                Recommendation(
                    method=str(method) if origin in ("default", "solved") else preset,
                    settings=str(method),
                    origin=origin,
                    prefill_ms=_ms(priced),
                    tflops=priced.flops / 1e12,
                    share=priced.flops / full.flops,
                    visual_tokens=priced.mean_visual_tokens,
                    loss=loss,
                )
            )
    found.fitting.sort(key=lambda one: (one.loss is None, one.loss.relative if one.loss else -one.visual_tokens))
    return found


def _settings(zoo: Zoo, name: str, budget_ms: float, cost: Any, layers: int) -> Iterator[tuple[str, Pipeline, Cost]]:
    """The default, the presets and the largest setting that fit; each setting once."""
    seen: set[str] = set()
    refusal: UserError | DataDependentError | None = None
    presets = zoo.registry.methods[name].presets if name in zoo.registry.methods else {}
    for origin in ["default", *presets]:
        method = zoo.build(name if origin == "default" else f"{name}@{origin}")
        try:
            priced = cost(method)
        except (UserError, DataDependentError) as error:  # such as a layer that this architecture does not have
            refusal = refusal or error
            continue
        if str(method) not in seen and _ms(priced) <= budget_ms:
            seen.add(str(method))
            yield origin, method, priced
    try:
        found = most_within(zoo.build(name), lambda method: _ms(cost(method)), budget_ms, layers)
    except (UserError, DataDependentError) as error:
        if not seen:
            raise (refusal if isinstance(refusal, DataDependentError) else error) from None
        return
    if str(found.method) not in seen:
        yield "solved", found.method, cost(found.method)


def _ms(cost: Cost) -> float:
    assert cost.seconds is not None
    return cost.seconds * 1000


def published_loss(zoo: Zoo, name: str, preset: str, model: ModelArchitecture, kind: str) -> Loss | None:
    """What a table of images or videos (`kind`) printed for this preset on the same model, against its unreduced row.

    None where nothing did. A table is of images where its name begins so, or its `kind` says so; else of videos.
    """
    entry = zoo.registry.methods.get(name)
    for result in entry.published if entry else []:
        of = result.get("kind") or ("image" if str(result.get("table", "")).startswith("image") else "video")
        if result.get("preset") != preset or of != kind or not _measured_on(result, model):
            continue
        rows = [one for one in zoo.registry.methods["none"].published if _same_table(one, result)]
        shared = [
            {key: (value, row["accuracy"][key]) for key, value in result["accuracy"].items() if key in row["accuracy"]}
            for row in rows
        ]
        pairs = max(shared, key=len, default={})
        if pairs:
            loss = sum(1 - ours / full for ours, full in pairs.values()) / len(pairs)
            return Loss(loss, len(pairs), f"{result['source']}, {result['table']}, {result['row']}")
    return None


def _same_table(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("source", "table", "architecture", "model"))


def _measured_on(result: dict[str, Any], model: ModelArchitecture) -> bool:
    """Whether a printed accuracy is this model's: the same decoder and, where both are known, the same vision tower."""
    try:
        measured = load_architecture(result.get("model") or result.get("architecture", ""))
    except UserError:
        return False
    keys = ("hidden", "layers", "heads", "kv_heads", "intermediate")
    same_decoder = all(getattr(measured.decoder, key) == getattr(model.decoder, key) for key in keys)
    return same_decoder and (measured.vision is None or model.vision is None or measured.vision == model.vision)
