"""Training: the pieces by hand, and a few steps of every stage with a resumption in between."""

import json

import numpy as np
import pytest
import torch

from tokenzoo.bench import train_data as data
from tokenzoo.bench import train_stages
from tokenzoo.bench.image_questions import IMAGE_QUESTIONS
from tokenzoo.bench.scenes import labels, sample_scene
from tokenzoo.bench.train_models import HIDDEN, adopt, build_llava, build_onevision
from tokenzoo.bench.train_oracle import OracleTokens, per_cell
from tokenzoo.bench.train_sources import LLAVA_PICTURES, TILED_PICTURES, VIDEOS

FEW_SECONDS = 0.01  # minutes: one or two steps


def test_a_packed_question_reads_as_if_it_were_alone():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng)]
    model, oracle = build_llava().eval(), OracleTokens(HIDDEN)
    tokens = oracle(torch.from_numpy(np.stack([labels(scene) for scene in scenes])))
    asked = data.ask(scenes, IMAGE_QUESTIONS, np.ones(len(IMAGE_QUESTIONS)), 5, rng)
    with torch.no_grad():
        together, _ = data.read(model, tokens, data.pack(asked, np.arange(144), 144))
        for index in range(5):
            alone, _ = data.read(model, tokens, data.pack([asked[0][index : index + 1]], np.arange(144), 144))
            assert torch.allclose(together[:, index], alone[:, 0], atol=1e-4)


def test_packed_logits_are_those_of_the_whole_model():
    """What training optimises is what `predict` reads: same tokens, same positions."""
    from tokenzoo.bench.train_encoder import encode, pixels
    from tokenzoo.bench.train_export import build_tokenizer

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, tokenizer = build_llava().eval(), build_tokenizer()
    scenes = [sample_scene(rng)]
    asked = data.ask(scenes, IMAGE_QUESTIONS, np.ones(len(IMAGE_QUESTIONS)), 1, rng)
    values = pixels(LLAVA_PICTURES.pictures(scenes))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked[0][0][1].prompt}]}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text.replace("<image>", "<image>" * 144), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        projected = model.model.multi_modal_projector(encode(model, values)[0])
        packed, _ = data.read(model, projected, data.pack(asked, np.arange(144), 144))
        stock = model(input_ids=ids, pixel_values=values, logits_to_keep=1).logits
    assert torch.allclose(packed[:, 0], stock[:, -1], atol=1e-4)


@pytest.mark.parametrize(("source", "visual"), [(LLAVA_PICTURES, 144), (TILED_PICTURES, 300), (VIDEOS, 289)])
def test_sources_lay_tokens_out_as_the_model_does(source, visual):
    model = build_llava() if source is LLAVA_PICTURES else build_onevision()
    features = torch.randn(2 * source.frames, 144, HIDDEN)
    tokens, positions = source.all_tokens(features, model)
    assert tokens.shape == (2, visual, HIDDEN) and len(positions) == visual == source.span
    if source is TILED_PICTURES:
        packed, _ = model.model.pack_image_features(
            [features[:1].repeat(2, 1, 1)], torch.tensor([[96, 96]]), image_newline=model.model.image_newline
        )
        assert torch.equal(tokens[0], packed[0])


def test_nine_cells_sum_up_a_hundred_and_forty_four_patches():
    scene = sample_scene(np.random.default_rng(3))
    cells = per_cell(torch.from_numpy(labels(scene))[None])[0]
    assert cells.shape == (2, 3, 3) and int((cells[0] > 0).sum()) == len(scene.objects)


def test_adopting_averages_pairs_of_heads():
    llava, onevision = build_llava(), build_onevision()
    adopt(onevision, llava.state_dict())
    name = "model.language_model.layers.0.self_attn.k_proj.weight"
    heads = llava.state_dict()[name].reshape(4, 32, HIDDEN)
    adopted = onevision.state_dict()[name].reshape(2, 32, HIDDEN)
    assert torch.allclose(adopted[1], (heads[2] + heads[3]) / 2)


def test_stages_run_save_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(train_stages, "BATCH", dict.fromkeys(train_stages.BATCH, 1))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    first = train_stages.Trainer(build_onevision(), (VIDEOS, TILED_PICTURES), tmp_path, seed=0)
    first.run("cells", FEW_SECONDS)
    oracle = first.oracle.kind.weight.clone()
    second = train_stages.Trainer(build_onevision(), (VIDEOS, TILED_PICTURES), tmp_path, seed=0)
    second.resume()
    assert second.step == first.step > 0 and second.done == first.done
    assert torch.equal(second.model.lm_head.weight, first.model.lm_head.weight)
    second.run("encoder", FEW_SECONDS)
    second.run("patches", FEW_SECONDS)
    assert torch.equal(second.oracle.kind.weight, oracle), "oracle tokens stay once an encoder is trained on them"
    assert set(json.loads(json.dumps(second.done))) == {"cells", "encoder", "patches"}
