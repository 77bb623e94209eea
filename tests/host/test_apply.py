"""The host's promises about a model: it is as it was afterwards, and what cannot work is refused with a remedy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, StaticCache

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError, UserError
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import tiny_model
from tokenzoo.zoo.plugins import load_zoo


@dataclass
class KeepHalf(TokenReducer):
    """Keeps every second visual token after layer 1."""

    name = "keep-half"

    def kept(self, entered, layers):
        return {1: (entered + 1) // 2}

    def pick(self, layer, count):
        return torch.arange(0, len(layer.visual), 2)


@dataclass
class Failing(KeepHalf):
    name = "failing"

    def pick(self, layer, count):
        raise RuntimeError("a bug of the method")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llava", layers=4)


@pytest.fixture
def inputs(model):
    return tiny_inputs(model, "single")


def foreign_hooks(model):
    """Everything of tokenzoo's that hangs on a model: hooks and watched methods."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if getattr(hook, "__module__", "").startswith("tokenzoo")
    ]
    patched = [name for module in model.modules() for name in vars(module) if name.startswith("get_")]
    return hooks + patched


def test_none_is_the_model_bit_for_bit(model, inputs):
    with torch.no_grad():
        expected = model(**inputs).logits
        with tokenzoo.apply(model, "none") as run:
            assert not any(
                getattr(hook, "__module__", "").startswith("tokenzoo")
                for layer in model.model.language_model.layers
                for module in layer.modules()
                for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            )
            actual = model(**inputs).logits
    assert torch.equal(actual, expected)
    assert run.trace.tokens() == [inputs["input_ids"].shape[1]] * 4


def test_layers_before_the_first_reduction_carry_no_hook(model):
    with tokenzoo.apply(model, KeepHalf()):
        layer = model.model.language_model.layers[0]
        assert not any(
            getattr(hook, "__module__", "").startswith("tokenzoo")
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        )


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_leaves_no_trace(model, inputs, failure):
    config = model.config.to_dict()
    with torch.no_grad():
        expected = model(**inputs).logits
        try:
            with tokenzoo.apply(model, "prumerge+fastv:K=1"):
                model(**inputs)
                if failure is not None:
                    raise failure
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert not foreign_hooks(model)
        assert model.config.to_dict() == config
        assert torch.equal(model(**inputs).logits, expected)


def test_a_failing_method_leaves_no_trace_and_keeps_its_traceback(model, inputs):
    with pytest.raises(RuntimeError, match="a bug of the method"), tokenzoo.apply(model, Failing()):
        model(**inputs)
    assert not foreign_hooks(model)
    with tokenzoo.apply(model, KeepHalf()) as run, torch.no_grad():
        model(**inputs)
    assert run.trace.visual_tokens() == [36, 36, 18, 18]


def test_a_second_application_is_refused(model):
    with (
        tokenzoo.apply(model, "none"),
        pytest.raises(UnsupportedError, match="already at work"),
        tokenzoo.apply(model.model.language_model, "none", visual=[(0, 1)]),
    ):
        pass


def test_training_mode_is_refused(model):
    model.train()
    try:
        with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"), tokenzoo.apply(model, KeepHalf()):
            pass
    finally:
        model.eval()


def test_training_mode_inside_the_block_is_refused(model, inputs):
    with tokenzoo.apply(model, KeepHalf()):
        model.train()
        try:
            with pytest.raises(UnsupportedError, match="training mode"):
                model(**inputs)
        finally:
            model.eval()


def test_labels_are_refused(model, inputs):
    with tokenzoo.apply(model, KeepHalf()), pytest.raises(UnsupportedError, match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_a_static_cache_is_refused(model, inputs):
    with tokenzoo.apply(model, KeepHalf()), torch.no_grad():
        cache = StaticCache(config=model.config.text_config, max_cache_len=200)
        with pytest.raises(UnsupportedError, match="static KV cache"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="cache_implementation='static' has one length"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static")


def test_chunked_prefill_is_refused(model, inputs):
    with tokenzoo.apply(model, KeepHalf()), torch.no_grad():
        with pytest.raises(UnsupportedError, match="prefill_chunk_size was given"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=16)
        cache = model(**inputs).past_key_values
        with pytest.raises(UnsupportedError, match="a second prompt on the same cache"):
            model(input_ids=inputs["input_ids"][:, :3], past_key_values=cache)


def test_a_cache_filled_outside_the_block_is_refused(model, inputs):
    with torch.no_grad():
        cache = model(**inputs).past_key_values
        with tokenzoo.apply(model, KeepHalf()), pytest.raises(UnsupportedError, match="not filled inside"):
            model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)


def test_a_ready_made_mask_is_refused(model, inputs):
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with tokenzoo.apply(model, KeepHalf()), pytest.raises(UnsupportedError, match="ready-made"):
        model(**{**inputs, "attention_mask": mask})


def test_sliding_windows_are_refused():
    from transformers import Qwen2Config, Qwen2Model

    decoder = Qwen2Model(
        Qwen2Config(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=2,
        )
    ).eval()  # fmt: skip
    with tokenzoo.apply(decoder, KeepHalf(), visual=[(1, 5)]), pytest.raises(UnsupportedError, match="sliding"):
        decoder(inputs_embeds=torch.randn(1, 8, 16))


def test_an_unknown_family_names_the_supported_ones():
    from transformers import GPT2Config, GPT2Model

    stranger = GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=8)).eval()
    with pytest.raises(UnsupportedError, match=r"gpt2.*Supported: .*llava.*qwen2_5_vl"), tokenzoo.apply(stranger, "none"):
        pass


def test_pixels_without_input_ids_are_refused(model, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with tokenzoo.apply(model, KeepHalf()), pytest.raises(UnsupportedError, match="without input_ids"):
        model(inputs_embeds=embeddings, **rest)


@dataclass
class Returns(TokenReducer):
    """Returns whatever it is told to."""

    name = "returns"
    what: str = ""

    def kept(self, entered, layers):
        return {0: None}

    def pick(self, layer, count):
        return {
            "float": torch.zeros(3),
            "twice": torch.tensor([1, 1]),
            "range": torch.tensor([0, 99]),
            "negative": torch.tensor([-1]),
            "list": [0, 1],
            "nan": tokenzoo.Reduction(layer.hidden_states[layer.visual][:2] * torch.nan, torch.tensor([0, 1])),
            "shape": tokenzoo.Reduction(layer.hidden_states[layer.visual][:3], torch.tensor([0, 1])),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("float", "long tensor"),
        ("twice", "kept twice"),
        ("range", "out of range"),
        ("negative", "out of range"),
        ("list", "must return an index tensor"),
        ("nan", "NaN"),
        ("shape", "features have shape"),
    ],
)
def test_an_invalid_reduction_fails_in_the_methods_name(model, inputs, what, message):
    with (
        tokenzoo.apply(model, Returns(what)),
        torch.no_grad(),
        pytest.raises(InvalidReductionError, match=f"Method 'returns' .*{message}"),
    ):
        model(**inputs)


@pytest.mark.parametrize("index", [-1, 3, 40])
def test_a_layer_that_none_follows_is_refused(model, index):
    @dataclass
    class Late(KeepHalf):
        name = "late"

        def kept(self, entered, layers):
            return {index: 1}

    with pytest.raises(UserError, match=f"'late' would act after layer {index}"), tokenzoo.apply(model, Late()):
        pass


def test_no_trace_before_a_prefill(model):
    with tokenzoo.apply(model, "none") as run, pytest.raises(UnsupportedError, match="No prefill has run"):
        _ = run.trace


def test_a_bare_decoder_needs_spans():
    decoder = LlamaModel(
        LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        )
    ).eval()  # fmt: skip
    with pytest.raises(UserError, match="visual="), tokenzoo.apply(decoder, KeepHalf()):
        pass
    with tokenzoo.apply(decoder, KeepHalf(), visual=[(2, 8)]) as run, torch.no_grad():
        output = decoder(inputs_embeds=torch.randn(1, 10, 16))
    assert run.trace.visual_tokens() == [6, 6, 3]
    assert output.last_hidden_state.shape[1] == 7
    with (
        tokenzoo.apply(decoder, KeepHalf(), visual=[(2, 80)]),
        torch.no_grad(),
        pytest.raises(UserError, match="does not lie within"),
    ):
        decoder(inputs_embeds=torch.randn(1, 10, 16))


def test_methods_joined_by_plus_run_in_the_order_written(model, inputs):
    with tokenzoo.apply(model, [KeepHalf(), load_zoo().build("vtw:K=3").reducers[0]]) as run, torch.no_grad():
        model(**inputs)
    assert run.trace.visual_tokens() == [36, 36, 18, 0]


def test_an_observer_sees_what_the_methods_left(model, inputs):
    class Recorder:
        def __init__(self):
            self.seen = []

        @tokenzoo.hookimpl
        def tokenzoo_after_layer(self, layer):
            self.seen.append((layer.index, len(layer.visual)))

    recorder = Recorder()
    with tokenzoo.apply(model, KeepHalf(), observers=[recorder]), torch.no_grad():
        model(**inputs)
    assert recorder.seen == [(1, 18)]


def test_a_trace_survives_a_file(model, inputs, tmp_path):
    with tokenzoo.apply(model, "aim:l1=1,l2=3") as run, torch.no_grad():
        model(**inputs)
    run.trace.save(tmp_path / "trace.json")
    assert tokenzoo.Trace.load(tmp_path / "trace.json") == run.trace
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenzoo trace"):
        tokenzoo.Trace.load(tmp_path / "other.json")


def test_hidden_states_have_each_layers_length(model, inputs):
    with tokenzoo.apply(model, KeepHalf()), torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    total = inputs["input_ids"].shape[1]
    assert [state.shape[1] for state in states] == [total, total, total - 18, total - 18, total - 18]


@pytest.mark.parametrize("method", ["prumerge", "prumerge_plus", "aim"])
def test_llava_with_an_encoder_without_cls(method):
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=90, vision_feature_select_strategy="full")
    ).eval()
    ids = torch.tensor([[5, *[90] * 16, 6, 7]])
    with tokenzoo.apply(model, method) as run, torch.no_grad():
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))
    assert run.trace.visual_tokens()[-1] < 16
