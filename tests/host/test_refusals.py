"""Nothing odd is silently wrong: it is right, or refused with reason and remedy. Each of these went wrong once."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaModel, LlavaConfig, LlavaForConditionalGeneration

import tokenzoo
from tokenzoo import UnsupportedError, UserError
from tokenzoo.testing.case import Case
from tokenzoo.testing.check import tiny_case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import tiny_inputs
from tokenzoo.testing.models import IMAGE, tiny_model
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 6


@pytest.fixture
def model():
    return tiny_model("llava", layers=LAYERS)


def decoder():
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2)
    return LlamaModel(config).eval()


def logits_of(model, method, inputs, steps):
    """The logits of a prefill and of greedy steps after it, alone in a block of its own."""
    with tokenzoo.apply(model, method), torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return torch.stack(made.logits)


def test_a_compiled_model_is_refused(model):
    model.compile()
    with pytest.raises(UnsupportedError, match="compiled"), tokenzoo.apply(model, "fastv"):
        pass


def test_a_compiled_decoder_is_refused(model):
    decoder = model.model.language_model
    decoder.forward = torch.compile(decoder.forward)
    with pytest.raises(UnsupportedError, match="compile its parts"), tokenzoo.apply(model, "fastv"):
        pass


@pytest.mark.parametrize("method", ["fastv:K=2", "random:retention=0.5"])
def test_two_prompts_in_flight_decode_as_if_alone(model, method):
    """A cache is tied to its prefill: prefill A, prefill B, decode A."""
    first, second = tiny_inputs(model, "single"), tiny_inputs(model, "images")
    expected = logits_of(model, method, first, 2)
    with tokenzoo.apply(model, method), torch.no_grad():
        before = model(**first)
        model(**second)
        token = before.logits[:, -1:].argmax(-1)
        after = model(input_ids=token, past_key_values=before.past_key_values)
    torch.testing.assert_close(before.logits[:, -1], expected[0])
    torch.testing.assert_close(after.logits[:, -1], expected[1])


def test_guided_generation_is_what_its_two_prompts_give(model):
    inputs = tiny_inputs(model, "single")
    length = inputs["input_ids"].shape[1]
    with tokenzoo.apply(model, "fastv:K=2"), torch.no_grad():
        made = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, guidance_scale=1.7, output_scores=True, return_dict_in_generate=True
        )
    tokens = made.sequences[:, length:]
    guided = fed(model, inputs, tokens)
    free = fed(model, {"input_ids": inputs["input_ids"][:, -1:]}, tokens)
    for step in range(3):
        torch.testing.assert_close(made.scores[step], 1.7 * (guided[step] - free[step]) + free[step], atol=1e-4, rtol=1e-4)


def fed(model, prompt, tokens):
    """Log probabilities after a prompt and after each of the tokens fed to its cache, in a block of its own."""
    with tokenzoo.apply(model, "fastv:K=2"), torch.no_grad():
        outputs = [model(**prompt)]
        for token in tokens[:, :-1].T:
            outputs.append(model(input_ids=token[:, None], past_key_values=outputs[-1].past_key_values))
    return [output.logits[:, -1].log_softmax(-1) for output in outputs]


def test_a_mask_that_hides_placeholders_is_refused(model):
    inputs = tiny_inputs(model, "single")
    inputs["attention_mask"][0, inputs["input_ids"][0].eq(IMAGE).nonzero()[3]] = 0
    with tokenzoo.apply(model, "fastv:K=2"), pytest.raises(UnsupportedError, match="hides visual tokens of sample 0"):
        model(**inputs)


def test_spans_that_overlap_or_reach_into_padding_are_refused():
    states, mask = torch.randn(1, 12, 16), torch.tensor([[0, 0, *[1] * 10]])
    with tokenzoo.apply(decoder(), "fastv:K=1", visual=[[(2, 6), (4, 8)]]) as run, pytest.raises(UserError, match="overlap"):
        run.decoder(inputs_embeds=states)
    with tokenzoo.apply(decoder(), "fastv:K=1", visual=[(1, 5)]) as run, pytest.raises(UnsupportedError, match="padded batch"):
        run.decoder(inputs_embeds=states, attention_mask=mask)


@pytest.mark.parametrize("method", ["prumerge", "vtw"])
def test_features_made_by_hand_are_refused(model, method):
    inputs = tiny_inputs(model, "single")
    with tokenzoo.apply(model, method), torch.no_grad():
        model.model.get_image_features(pixel_values=inputs["pixel_values"])
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(UnsupportedError, match="without input_ids"):
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])


def test_a_wrapped_model_is_reduced_inside_its_wrapper(model):
    class Wrapper(torch.nn.Module):
        """What PEFT does: the wrapper calls the base model's forward, past its hooks."""

        def __init__(self, base):
            super().__init__()
            self.base, self.config = base, base.config

        def get_base_model(self):
            return self.base

        def forward(self, **inputs):
            return self.base.forward(**inputs)

    wrapper = Wrapper(model).eval()
    with tokenzoo.apply(wrapper, "fastv:K=2") as run, torch.no_grad():
        wrapper(**tiny_inputs(model, "single"))
    assert run.trace.visual_tokens() == [36, 36, 18, 18, 18, 18]


def test_a_video_before_an_image_is_right():
    case = tiny_case("qwen2.5-vl", "video", layers=LAYERS)
    both = video_before_image(case.model)
    report = check_case(both, load_zoo().build("random:retention=0.5+fastv:K=2").reducers)
    assert [str(finding) for finding in report.findings] == [] and report.dropped


def test_a_video_before_an_image_beside_a_sample_with_an_image_is_right():
    case = tiny_case("qwen2.5-vl", "video", layers=LAYERS)
    first, image = video_before_image(case.model).inputs, tiny_inputs(case.model, "single")
    gap = first["input_ids"].shape[1] - image["input_ids"].shape[1]
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    padded = {name: torch.nn.functional.pad(image[name], (gap, 0)) for name in names}
    both = {**first, **{name: torch.cat([first[name], padded[name]]) for name in names}}
    both |= {name: torch.cat([first[name], image[name]]) for name in ("pixel_values", "image_grid_thw")}
    report = check_case(Case(case.model, both, "two samples"), load_zoo().build("prumerge:mode=fixed").reducers)
    assert [str(finding) for finding in report.findings] == [] and report.dropped


def video_before_image(model):
    video, image = tiny_inputs(model, "video"), tiny_inputs(model, "single")
    ids = torch.cat([video["input_ids"][:1, video["attention_mask"][0].bool()], image["input_ids"]], 1)
    kinds = torch.cat([video["mm_token_type_ids"][:1, video["attention_mask"][0].bool()], image["mm_token_type_ids"]], 1)
    rest = {k: v for given in (video, image) for k, v in given.items() if k.startswith(("pixel", "image_grid", "video_grid"))}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **rest}
    return Case(model, inputs, "a video before an image")


def test_two_threads_in_one_block_are_refused(model):
    inputs, errors = tiny_inputs(model, "single"), []
    inside, go_on = threading.Event(), threading.Event()

    def wait(module, args):
        inside.set()
        go_on.wait(20)

    def call():
        with torch.no_grad():
            model(**inputs)

    with tokenzoo.apply(model, "fastv:K=2"):
        handle = model.model.language_model.layers[0].register_forward_pre_hook(wait)
        other = threading.Thread(target=call)
        other.start()
        assert inside.wait(20)
        try:
            model(**inputs)
        except UnsupportedError as error:
            errors.append(str(error))
        go_on.set()
        other.join()
        handle.remove()
    assert len(errors) == 1 and "Two threads" in errors[0]


def clip_llava():
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=90, vision_feature_select_strategy="full")
    return LlavaForConditionalGeneration(config).eval()


def test_clip_with_all_its_features_keeps_the_cls_token():
    model = clip_llava()
    inputs = {"input_ids": torch.tensor([[5, *[90] * 17, 6, 7]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        expected = model(**inputs).logits
        with tokenzoo.apply(model, "none") as run:
            assert torch.equal(model(**inputs).logits, expected) and run.trace.visual_tokens() == [17] * 4
        with tokenzoo.apply(model, "uniform:retention=0.5") as run:
            model(**inputs)
        assert run.trace.visual_tokens() == [9] * 4 and run.trace.samples[0].entry[1] == 1
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model.generation_config.eos_token_id = None
    report = check_case(Case(model, inputs, "CLS passes the projector"), load_zoo().build("prumerge").reducers)
    assert not report.findings and report.dropped and 1 in report.outcome.trace.samples[0].entry


@pytest.mark.parametrize("method", ["vtw:K=2", "random:retention=0"])
def test_a_prompt_of_pictures_alone_cannot_lose_them_all(method):
    message = "Add text to the prompt"
    with tokenzoo.apply(decoder(), method, visual=[(0, 6)]) as run, pytest.raises(UnsupportedError, match=message):
        run.decoder(inputs_embeds=torch.randn(1, 6, 16))


@pytest.mark.parametrize("option", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": "itself"}])
def test_generation_that_cannot_work_is_refused_before_the_first_forward(model, option):
    calls = []
    handle = model.register_forward_pre_hook(lambda *args: calls.append(1))
    option = {name: model if value == "itself" else value for name, value in option.items()}
    with tokenzoo.apply(model, "fastv:K=2"), pytest.raises(UnsupportedError, match=next(iter(option))):
        model.generate(**tiny_inputs(model, "single"), max_new_tokens=2, **option)
    handle.remove()
    assert not calls


def test_a_part_in_training_mode_is_refused(model):
    model.model.language_model.train()
    model.training = False
    with pytest.raises(UnsupportedError, match="a part of it"), tokenzoo.apply(model, "fastv"):
        pass


def test_rows_named_by_a_tensor_are_refused(model):
    with tokenzoo.apply(model, "fastv:K=2"), pytest.raises(UnsupportedError, match="logits_to_keep"):
        model(**tiny_inputs(model, "single"), logits_to_keep=torch.tensor([3]))


def test_tensor_parallelism_is_refused(model, tmp_path):
    import torch.distributed as distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = model.model.language_model.layers[0]
        parallelize_module(layer, init_device_mesh("cpu", (1,)), {"mlp.up_proj": ColwiseParallel()})
        with pytest.raises(UnsupportedError, match="tensor parallelism"), tokenzoo.apply(model, "fastv"):
            pass
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("pair", ["fastv:K=2+pdrop:layer_list=[2,3,4]", "pdrop:layer_list=[2,3,4]+fastv:K=2"])
def test_each_method_keeps_its_own_positions(pair):
    case = tiny_case("llava", "left", layers=LAYERS)
    report = check_case(case, load_zoo().build(pair).reducers)
    assert [str(finding) for finding in report.findings] == []


@pytest.mark.parametrize("first", ["renumber", "keep"])
@pytest.mark.parametrize("second", ["renumber", "keep"])
def test_each_method_keeps_its_own_positions_before_the_llm(first, second):
    case = tiny_case("llava", "images", layers=LAYERS)
    pair = f"random:retention=0.7,position={first}+uniform:retention=0.5,position={second}"
    report = check_case(case, load_zoo().build(pair).reducers)
    assert [str(finding) for finding in report.findings] == []


def test_a_model_that_drops_tokens_by_itself_is_refused_by_name():
    model = tiny_model("llava", layers=2)
    model.config.model_type, model.config.video_pruning_rate = "nemotron_h_omni", 0.7
    with pytest.raises(UnsupportedError, match=r"nemotron_h_omni.*video_pruning_rate=0.7"), tokenzoo.apply(model, "fastv"):
        pass
    model.model.video_pruning_rate, model.config.video_pruning_rate = 0.7, 0.0  # the module copied it when it was made
    with pytest.raises(UnsupportedError, match=r"nemotron_h_omni.*video_pruning_rate=0.7"), tokenzoo.apply(model, "fastv"):
        pass


@pytest.mark.parametrize("name", ["prumerge", "visionzip", "mmtok", "fastvid", "holov"])
def test_a_bare_decoder_has_no_encoder_to_read(name: str) -> None:
    decoder = tiny_model("llava", layers=12).model.language_model
    with (
        pytest.raises(UnsupportedError, match=f"'{name}' reads the vision encoder"),
        tokenzoo.apply(decoder, name, visual=[(5, 41)]),
    ):
        pass
