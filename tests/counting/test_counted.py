"""Counted = computed: FLOPs counted on a real forward (fvcore and FlopCounterMode) equal `exact`, to the digit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import Any, ClassVar

import pytest
from installed import WHOLE_GEMMA4
from selection import crossed

torch = pytest.importorskip("torch")

from tokenzoo.cost import architecture_of, price, price_trace, workload_of  # noqa: E402
from tokenzoo.counting import count  # noqa: E402
from tokenzoo.errors import UnsupportedError  # noqa: E402
from tokenzoo.method.pipeline import Pipeline  # noqa: E402
from tokenzoo.method.reducer import TokenReducer  # noqa: E402
from tokenzoo.method.reduction import ActsAfter, DataDependentError  # noqa: E402
from tokenzoo.testing import tiny_inputs, tiny_model  # noqa: E402
from tokenzoo.zoo.plugins import load_zoo  # noqa: E402

CASES = [("llava", "single"), ("llava-onevision", "video"), ("qwen2.5-vl", "single"), ("qwen2.5-vl", "video")]
#: Families whose layers cost in other ways: a few methods each, which act before the projector, before and inside the LLM.
MORE_CASES = [
    ("llava-next", "single"),
    ("llava-next-video", "video"),
    ("video-llava", "video"),
    ("qwen2-vl", "single"),
    ("qwen3-vl", "video"),
    ("qwen3-vl-mha", "single"),
    ("qwen3-vl-moe", "single"),
    ("qwen3.5", "video"),
    ("qwen3.5-moe", "single"),
    ("internvl", "single"),
    ("gemma3", "single"),
    ("gemma4", "single"),
    ("gemma4", "video"),
    ("gemma4-moe", "single"),
    ("smolvlm", "single"),
    ("idefics3", "single"),
    ("idefics2", "single"),
]
FEW = ["none", "random", "prumerge", "aim:retention=0.4,l1=2,l2=5", "prumerge_plus:mode=fixed,ratio=0.2+fastv:K=2"]
#: Where every third layer alone has an attention map, AIM cannot act; PyramidDrop reads the layers 1, 4 and 7.
INSTEAD = {"aim:retention=0.4,l1=2,l2=5": "pdrop:layer_list=[1,4,7],ratios=[0.8,0.6,0.3]"}
LAYERS = 12
#: The seed methods at settings that act within few layers.
SEEDS = [
    "none",
    "random",
    "uniform",
    "pool",
    "fastv:K=2,R=0.7",
    "pdrop:layer_list=[1,3,4],ratios=[0.6,0.3,0]",
    "vtw:K=3",
    "aim:retention=0.4,l1=2,l2=5",
    "prumerge",
    "prumerge_plus:mode=fixed,ratio=0.2",
]
OTHERS = [name for name in load_zoo((), ()).names() if name not in {spec.partition(":")[0] for spec in SEEDS}]
COMBINATIONS = ["prumerge_plus:mode=fixed,ratio=0.2+fastv:K=2", "fastv:K=2+pdrop:layer_list=[1,3,4],ratios=[0.6,0.3,0]"]
#: Every ordered pair of seed methods; a third of the pairs with others, one in this order, the next in that. Each on one case.
NEW_PAIRS = [pair for pair in combinations([*SEEDS, *OTHERS], 2) if not set(pair) <= set(SEEDS)][::3]
ORDERED = [*permutations(SEEDS, 2), *(pair if number % 2 else pair[::-1] for number, pair in enumerate(NEW_PAIRS))]
PAIRS = [(pair, CASES[number % len(CASES)]) for number, pair in enumerate(ORDERED)]


def first_sample(inputs: dict[str, Any]) -> dict[str, Any]:
    """The first sample of a batch alone, without its padding (its picture comes first)."""
    kept = inputs["attention_mask"][0].bool()
    per_token = ("input_ids", "attention_mask", "mm_token_type_ids")
    taken = {name: value[:1, kept] if name in per_token else value for name, value in inputs.items()}
    if "mm_token_type_ids" in taken and not any(name.endswith("grid_thw") for name in taken):
        taken.pop("mm_token_type_ids")
    taken.pop("token_type_ids", None)  # no trace can follow how transformers opens Gemma's masks inside images; it costs nothing
    return taken


@cache
def model_and_inputs(family: str, case: str) -> tuple[Any, dict[str, Any]]:
    model = tiny_model(family, layers=LAYERS)
    return model, first_sample(tiny_inputs(model, case))


@pytest.mark.parametrize(("specification", "case"), crossed([*SEEDS, *COMBINATIONS, *OTHERS], CASES, every=4))
def test_counted_is_computed(specification: str, case: tuple[str, str]) -> None:
    try:
        check(*model_and_inputs(*case), specification)
    except UnsupportedError as error:  # the method says that it cannot work on such a model
        assert specification in OTHERS and specification in str(error)


@pytest.mark.parametrize(("specification", "case"), crossed(FEW, MORE_CASES, every=4))
def test_counted_is_computed_for_more_families(specification: str, case: tuple[str, str]) -> None:
    if case[0].startswith("qwen3.5") or case[0] == "gemma4":
        specification = INSTEAD.get(specification, specification)
    if case[0] == "idefics2" and specification.startswith(("prumerge", "aim")):
        pytest.skip("Behind this encoder no token is a patch.")
    if case == ("gemma4", "video") and not WHOLE_GEMMA4:
        with pytest.raises(UnsupportedError, match=r"need num_frames_per_video.*'transformers>=5\.23'"):
            check(*model_and_inputs(*case), specification)
        return
    check(*model_and_inputs(*case), specification)


@dataclass
class Ahead(TokenReducer):
    """Half of the tokens leave before layer 0, where the layers' own inputs have been made of all of them."""

    name: ClassVar[str] = "ahead"
    acts_after: ClassVar[ActsAfter] = "attention"

    def kept(self, entered: int, layers: int) -> dict[int, int]:
        return {-1: entered // 2}

    def score(self, layer: Any) -> torch.Tensor:
        return layer.hidden_states.float().norm(dim=-1)


@pytest.mark.parametrize("before", ["none", "random:retention=0.6"])
def test_the_layers_own_inputs_are_made_of_rows_that_leave_before_layer_0(before: str) -> None:
    check(*model_and_inputs("gemma4", "single"), Pipeline((*load_zoo().build(before).reducers, Ahead())))


@pytest.mark.matrix
@pytest.mark.parametrize("case", MORE_CASES, ids=" ".join)
@pytest.mark.parametrize("specification", [*SEEDS, *OTHERS, *COMBINATIONS])
def test_counted_is_computed_for_every_method(case: tuple[str, str], specification: str) -> None:
    try:
        check(*model_and_inputs(*case), specification)
    except UnsupportedError as error:
        pytest.skip(f"Refused, as the contract tests hold: {error}")


@pytest.mark.matrix
@pytest.mark.parametrize(("pair", "case"), PAIRS, ids=lambda value: "+".join(value))
def test_counted_is_computed_for_every_pair(pair: tuple[str, str], case: tuple[str, str]) -> None:
    try:
        check(*model_and_inputs(*case), "+".join(pair))
    except UnsupportedError as error:  # some need whole views; some cannot work on such a model
        assert any(specification.partition(":")[0] in str(error) for specification in pair)


def check(model: Any, inputs: dict[str, Any], method: str | Pipeline) -> None:
    reducer = load_zoo().build(method) if isinstance(method, str) else method
    counted = count(model, inputs, reducer)
    assert counted.trace is not None
    sample = counted.trace.samples[0]
    architecture = architecture_of(model)
    grids = [grid for source in sample.sources for grid in source.grids] if architecture.vision.window else None
    workload = workload_of(sample, architecture.decoder, recorded=not reducer.fixed_schedule)
    try:
        cost = price(architecture, workload, reducer, head_positions="all", grids=grids)
    except DataDependentError:  # pooling a grid that is not square: the workload does not say which one it is
        workload = workload_of(sample, architecture.decoder)
        cost = price(architecture, workload, reducer, head_positions="all", grids=grids)

    assert list(cost.tokens) == counted.trace.tokens()
    assert counted.torch_flops == counted.flops == cost.flops
    assert counted.torch_method == counted.method == cost.part("method").flops
    assert counted.module("lm_head") == cost.part("lm head").flops
    layers = sum(part.flops for part in (*cost.layers, cost.part("per-layer inputs")))
    assert counted.module("model.language_model") + counted.module("model.text_model") == layers
    vision = cost.part("vision").flops + cost.part("projector").flops
    modules = (
        "model.vision_tower",
        "model.vision_model",
        "model.video_tower",
        "model.multi_modal_projector",
        "model.connector",
        "model.embed_vision",
        "model.visual",
    )
    assert sum(map(counted.module, modules)) == vision
    assert price_trace(counted.trace, architecture, reducer, head_positions="all").flops == cost.flops
