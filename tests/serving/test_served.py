"""What can be served, and that vLLM's side of a method is the host's: without vLLM, on the features of a Hugging Face model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenzoo
from tokenzoo import UnsupportedError, UserError
from tokenzoo.bench.tasks import task
from tokenzoo.commands.serve_check import as_expected
from tokenzoo.method.workload import Source
from tokenzoo.models.checkpoint import load
from tokenzoo.serving.check import Comparison, Rounding, in_transformers, rounding
from tokenzoo.serving.encoding import Encoding, assignment
from tokenzoo.serving.positions import StepPlaces, arranged, shortened, split_places, with_places
from tokenzoo.serving.served import named, served
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import tiny_model
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 6
MERGING = f"aim:merge_at=pre_llm,l1={LAYERS},retention=0.4"
METHODS = ["random:retention=0.4", "pool", MERGING, "divprune:retention=0.3", "vidcom2", "dycoke", "pool+divprune:retention=0.5"]


def asked(family, method):
    return served(named(tiny_model(family, layers=LAYERS).config, method))


def features(model, inputs, kind):
    """As vLLM's model gives them: the tokens of each picture [tokens, hidden]."""
    root = model.model

    def encode(**call):
        made = getattr(root, f"get_{kind}_features")(**call).pooler_output
        return list(made)

    names = [name for name in inputs if name.startswith(f"{kind}_") or name == "batch_num_images"]
    pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
    return encode, {pixels: inputs[pixels], **{name: inputs[name] for name in names if kind == "image" or "image" not in name}}


@torch.no_grad()
def in_the_host(model, method, inputs):
    """The trace, and what the decoder is given [batch, length, hidden]."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with tokenzoo.apply(model, method) as run:
        handle.remove()
        handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
    handle.remove()
    return run.trace, seen[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "case", "kind"),
    [
        ("llava", "single", "image"),
        ("llava", "images", "image"),
        ("llava-next", "images", "image"),
        ("llava-onevision", "single", "image"),
        ("llava-onevision", "video", "video"),
        ("qwen2.5-vl", "images", "image"),
        ("qwen2.5-vl", "video", "video"),
        ("qwen3-vl", "images", "image"),
    ],
)
def test_a_picture_alone_is_reduced_as_in_its_prompt(family: str, case: str, kind: str, method: str) -> None:
    model = tiny_model(family, layers=LAYERS)
    inputs = tiny_inputs(model, case)
    encode, call = features(model, inputs, kind)
    plan = served(named(model.config, method))
    assert plan is not None
    with torch.no_grad():
        made = Encoding(plan)(encode, call)
    trace, entered = in_the_host(model, method, inputs)
    expected = [(number, source) for number, sample in enumerate(trace.samples) for source in sample.sources]
    assert [assignment(one.source) for one in made] == [source.assignment for _, source in expected]
    assert [len(one.tokens) for one in made] == [plan.entered(source.source) for _, source in expected]
    for one, (number, source) in zip(made, expected, strict=True):
        padding = entered.shape[1] - len(trace.samples[number].entry)
        torch.testing.assert_close(one.tokens, entered[number, torch.tensor(sorted(source.rows)) + padding])


@pytest.mark.parametrize(
    ("family", "method", "reason"),
    [
        ("llava", "fastv:K=2", "inside the LLM"),
        ("llava", "aim", "inside the LLM"),
        ("llava", "divprune+vtw:K=3", "inside the LLM"),
        ("llava", "divprune+snapkv", "what the KV cache holds"),
        ("llava", "dycoke:p=0.5", "what the KV cache holds"),
        ("llava", "tome", "acts inside the vision encoder"),
        ("llava", "downsample", "smaller"),
        ("llava", "prumerge", "as many tokens as the picture asks for"),
        ("llava-onevision", "vidcom2:rounding=released", "as many tokens as the picture asks for"),
        ("llava", "mmtok", "reads the question"),
        ("llava", "divprune:position=keep", "divprune:position=renumber"),
        ("llava", "evs", "evs:position=renumber"),
        ("llava", "random:retention=0", "leaves nothing"),
        ("llava-onevision", "uniform+divprune", "'uniform' chooses freely among the views"),
        ("llava-onevision", "fastvid:signal=head,position=renumber", "pooling head"),
        ("qwen2.5-vl", "visionzip", "reads the vision encoder"),
        ("qwen3-vl", "visionzip", "reads the vision encoder"),
        ("internvl", "visionzip", "reads the vision encoder"),
    ],
)
def test_what_vllm_cannot_do_is_refused_with_the_reason(family: str, method: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        asked(family, method)


@pytest.mark.parametrize("method", [0.25, {"name": "divprune"}])
def test_a_method_that_is_no_text_is_refused(method) -> None:
    with pytest.raises(UserError, match="Write a method as text"):
        asked("llava", method)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'divprune'"):
        asked("llava", "divprun")


def test_a_stage_that_is_off_needs_nothing() -> None:
    assert asked("llava-onevision", "dycoke") is not None


def test_one_view_leaves_nothing_open() -> None:
    assert asked("llava", "uniform+divprune") is not None


def test_nothing_to_do_is_nothing() -> None:
    assert asked("llava", "none") is None
    assert served(tiny_model("llava").config) is None


def test_a_picture_has_another_key_under_another_method() -> None:
    keys = {asked("llava", method).identity("picture") for method in ("random", "random:seed=1", "divprune")}
    assert len(keys) == 3 and asked("llava", "random").identity("another") not in keys


def test_the_last_encoder_layer_is_built_where_a_method_reads_it() -> None:
    assert asked("llava", f"aim:l1={LAYERS}").whole_tower
    assert not asked("llava", "visionzip").whole_tower


def test_embeddings_in_place_of_pictures_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="embeddings in their place"):
        asked("llava", "random").sources({"image_embeds": torch.zeros(1, 4, 8)}, "image")


def test_counts_are_those_of_the_declaration() -> None:
    source = Source("video", (16,) * 4, 1, (64,) * 4, ((4, 4),) * 4)
    assert asked("llava-onevision", "divprune:retention=0.25").entered(source) == 16 + 1


# --- M-RoPE -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(places=st.lists(st.tuples(*[st.integers(0, 65535)] * 3), min_size=1, max_size=5))
def test_places_pass_through_features_of_any_format(places) -> None:
    wanted = torch.tensor(places).T
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        features, found = split_places(with_places(torch.ones(len(places), 3, dtype=dtype), wanted))
        assert torch.equal(found, wanted) and features.shape == (len(places), 3) and features.dtype == dtype


def mrope(length: int, pictures: list[tuple[int, int, int]]) -> torch.Tensor:
    """Positions [3, length] of text and pictures (offset, height, width), one frame each."""
    columns, following, position = [], 0, 0
    for offset, height, width in pictures:
        columns += [(position + index,) * 3 for index in range(offset - following)]
        position += offset - following
        columns += [(position, position + row, position + column) for row in range(height) for column in range(width)]
        following, position = offset + height * width, position + max(height, width)
    columns += [(position + index,) * 3 for index in range(length - following)]
    return torch.tensor(columns).T


@settings(deadline=None)
@given(
    pictures=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data()), min_size=1, max_size=3),
    behind=st.integers(1, 4),
    chunk=st.integers(1, 9),
)
def test_kept_tokens_have_the_positions_of_the_whole_prompt(pictures, behind: int, chunk: int) -> None:
    """Whatever the chunks in which vLLM reads the prompt."""
    whole, spans, kept, places = [], [], [], []
    full = left = 0
    for text, height, width, data in pictures:
        size = height * width
        anchors = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
        kept += [*range(full, full + text), *(full + text + anchor for anchor in anchors)]
        whole.append((full + text, height, width))
        spans.append((left + text, len(anchors), size))
        places.append(mrope(size, [(0, height, width)])[:, anchors])
        full, left = full + text + size, left + text + len(anchors)
    kept += range(full, full + behind)
    length = full + behind
    tokens = left + behind

    def positions_of(total: int, offsets: list[int]) -> torch.Tensor:
        return mrope(total, [(offset, *size) for offset, (_, *size) in zip(offsets, whole, strict=True)])

    positions, ahead = shortened(tokens, spans, positions_of)
    visual = torch.zeros(tokens, dtype=torch.bool)
    for offset, count, _ in spans:
        visual[offset : offset + count] = True
    steps, together = StepPlaces(chunk), torch.cat(places, dim=1)
    entered = []
    for start in range(0, tokens, chunk):
        now = visual[start : start + chunk]
        seen = int(visual[:start].sum())
        if now.any():
            steps.note(now, [together[:, seen : seen + int(now.sum())]])
        entered.append(steps.added(positions[:, start : start + chunk]).clone())
    expected = mrope(length, whole)
    assert torch.equal(torch.cat(entered, dim=1), expected[:, kept])
    assert ahead == int(expected.max()) + 1 - tokens


def test_other_tokens_pass_only_where_rounding_moves_them_too() -> None:
    """`rounding` asks a second model what differs; one that keeps the first one's tokens explains nothing."""
    checkpoint, eager = (load("embedded:llava", "float32", backend) for backend in ("sdpa", "eager"))
    questions = list(task("attribute").questions(3, 0))
    divprune, other = (load_zoo().build(f"{name}:retention=0.25") for name in ("divprune", "uniform"))
    ours = in_transformers(checkpoint, divprune, questions, 4)
    assert as_expected(Comparison("same", ours, ours), Rounding())
    first = ours.answers[0].pictures[0]
    elsewhere = replace(ours, kept={**ours.kept, first: in_transformers(checkpoint, other, questions[:1], 4).kept[first]})
    row = Comparison("other tokens", ours, elsewhere)
    assert (row.moved, row.kept, row.differing) == ([0], 2, [])
    assert not as_expected(row, rounding(row, eager, divprune, questions, 4))
    assert as_expected(row, rounding(row, eager, other, questions, 4))


def test_places_are_of_one_step() -> None:
    steps = StepPlaces(4)
    steps.note(torch.tensor([False, True]), [torch.tensor([[1], [2], [3]])])
    assert steps.added(torch.ones(3, 2, dtype=torch.long)).tolist() == [[1, 2], [1, 3], [1, 4]]
    assert steps.added(torch.ones(3, 3, dtype=torch.long)).tolist() == [[1] * 3] * 3


def test_a_full_step_is_laid_out_as_a_short_one() -> None:
    """A compiled decoder keeps the strides of the step that it was compiled for, which is a full one."""
    steps = StepPlaces(4)
    full, short = (steps.added(torch.ones(3, count, dtype=torch.long)) for count in (4, 2))
    assert full.stride() == short.stride() and not full.is_contiguous() and full.data_ptr() == short.data_ptr()


def test_tokens_stay_in_their_frame_behind_its_timestamp() -> None:
    """Text at columns 0, 3, 4; in an unbroken run the order is the method's, as in the host."""
    visual = torch.tensor([False, True, True, False, False, True, True])
    order, columns = arranged(visual, torch.tensor([3, 1, 2, 0]))
    assert columns.tolist() == [0, 2, 1, 3, 4, 6, 5]
    rows = torch.tensor([0, 3, 4, 6, 2, 5, 1])  # what was given: text, then tokens
    assert torch.equal(rows[order], columns)
    order, columns = arranged(visual, torch.tensor([], dtype=torch.long))
    assert (order.tolist(), columns.tolist()) == ([0, 1, 2], [0, 3, 4])
    order, columns = arranged(torch.ones(4, dtype=torch.bool), torch.tensor([3, 0]))
    assert (order.tolist(), columns.tolist()) == ([0, 1], [3, 0])
