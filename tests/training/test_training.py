"""Training: the pieces by hand, and a few steps of every stage with a resumption in between."""

import numpy as np
import pytest
import torch

from tokenzoo.bench.image_questions import IMAGE_QUESTIONS, Asked
from tokenzoo.bench.scenes import KINDS, Scene, SceneObject, sample_scene
from tokenzoo.models.checkpoint import CHECKPOINTS
from tokenzoo.training import data, stages
from tokenzoo.training.encoder import encode, led, objects_on_top, pixels, recorded, salience, scores
from tokenzoo.training.export import build_tokenizer, export
from tokenzoo.training.oracle import OracleTokens, per_cell
from tokenzoo.training.reductions import MODES, reduce
from tokenzoo.training.shapes import HIDDEN, build_llava, build_onevision, continue_from
from tokenzoo.training.sources import LLAVA_PICTURES, TILED_PICTURES, VIDEOS, pictures, shown

FEW_SECONDS = 0.01  # minutes: one or two steps


def some_questions(scenes, rng, count):
    return data.ask(scenes, IMAGE_QUESTIONS, np.ones(len(IMAGE_QUESTIONS)), count, rng)


def test_a_packed_question_reads_as_if_it_were_alone():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng)]
    model, oracle = build_llava().eval(), OracleTokens(HIDDEN)
    asked, places = some_questions(scenes, rng, 5), torch.arange(144)[None]
    with torch.no_grad():
        tokens = oracle(*shown(scenes))
        together, _, _ = data.read(model, tokens, data.pack(asked, places))
        for index in range(5):
            alone, _, _ = data.read(model, tokens, data.pack([asked[0][index : index + 1]], places))
            assert torch.allclose(together[:, index], alone[:, 0], atol=1e-4)


def test_packed_logits_are_those_of_the_whole_model():
    """What training optimises is what `predict` reads: same tokens, same positions, and after the answer the end."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, tokenizer = build_llava().eval(), build_tokenizer()
    scenes = [sample_scene(rng)]
    asked = some_questions(scenes, rng, 1)
    values = pixels(pictures(scenes))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked[0][0][1].prompt}]}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    text = f"{text} {asked[0][0][1].answer}"
    ids = tokenizer(text.replace("<image>", "<image>" * 144), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        projected = model.model.multi_modal_projector(encode(model, values)[0])
        packed = data.pack(asked, torch.arange(144)[None])
        logits, states, _ = data.read(model, projected, packed)
        stock = model(input_ids=ids, pixel_values=values).logits
        stop = data.stop_loss(model, states, packed)
    assert torch.allclose(logits[:, 0], stock[:, -2], atol=1e-4)
    assert stop.item() == pytest.approx(-stock[0, -1].log_softmax(-1)[tokenizer.eos_token_id].item(), abs=1e-4)


@pytest.mark.parametrize(("source", "frames", "visual"), [(LLAVA_PICTURES, 1, 144), (TILED_PICTURES, 1, 300), (VIDEOS, 8, 289)])
def test_sources_lay_tokens_out_as_the_model_does(source, frames, visual):
    model = build_llava() if source is LLAVA_PICTURES else build_onevision()
    features = torch.randn(2, frames, 144, HIDDEN)
    tokens = source.whole(features, model)
    assert tokens.shape == (2, visual, HIDDEN)
    if source is TILED_PICTURES:
        packed, _ = model.model.pack_image_features(
            [features[0].repeat(2, 1, 1)], torch.tensor([[96, 96]]), image_newline=model.model.image_newline
        )
        assert torch.equal(tokens[0], packed[0])
    rng = np.random.default_rng(0)
    for _ in range(12):
        kept, places, _ = source.lay_out(features, model, rng)
        assert kept.shape[:2] == places.shape and (places.diff(dim=1) > 0).all()
        assert kept.shape[1] <= visual


@pytest.mark.parametrize("mode", MODES)
def test_reductions_keep_views_in_their_places(mode):
    """A view's tokens come from that view: each is a mean of tokens that carry the view's number."""
    torch.manual_seed(0)
    tokens = torch.arange(3.0)[None, :, None, None].expand(2, 3, 36, 4)
    for seed in range(8):
        kept, places = reduce(tokens, mode, np.random.default_rng(seed))
        assert torch.allclose(kept[..., 0], (places // 36).float(), atol=1e-5)
        assert (places.diff(dim=1) > 0).all()


def test_means_of_neighbours_are_means_of_runs():
    tokens = torch.arange(36.0)[None, None, :, None]
    kept, _ = reduce(tokens, "means", np.random.default_rng(3))
    assert (kept[0, :, 0].diff() > 0).all() and (kept * 2 == (kept * 2).round()).all(), "means of consecutive numbers"


def test_nine_cells_sum_up_a_hundred_and_forty_four_patches():
    scene = Scene((SceneObject("ring", "red", 4, (3, 3), 6), SceneObject("7", "cyan", 0, (0, 0), 1)), 1)
    cells = per_cell(shown([scene])[0])[0]
    assert cells[0].tolist() == [[14, 0, 0], [0, 5, 0], [0, 0, 0]], "7 is the fourteenth kind, the ring the fifth"
    assert cells[1].tolist() == [[7, 0, 0], [0, 1, 0], [0, 0, 0]] and cells[2, 2].tolist() == [2, 2, 2]


def test_oracle_tokens_are_read_off_visual_tokens():
    """Sums of embeddings are explained wholly; noise of a tenth of their spread costs a hundredth."""
    torch.manual_seed(0)
    labels, _ = shown([sample_scene(np.random.default_rng(seed)) for seed in range(60)])
    true, found = OracleTokens(HIDDEN), OracleTokens(HIDDEN)
    still = torch.full((len(labels),), 0.5)
    tokens = true(labels, still).detach()
    assert found.fit(tokens, labels) > 0.999
    assert torch.allclose(found(labels, still), tokens, atol=1e-3)
    assert 0.97 < found.fit(tokens + 0.1 * tokens.std() * torch.randn_like(tokens), labels) < 0.999


def test_attention_is_read_as_the_encoder_computes_it():
    torch.manual_seed(0)
    model = build_llava().eval()
    model.set_attn_implementation("eager")
    values = pixels(pictures([sample_scene(np.random.default_rng(0))]))
    with torch.no_grad(), recorded(model) as records:
        attentions = model.model.vision_tower(values, output_attentions=True).attentions
    read = scores(records[3], 4, True)
    assert torch.allclose(read["CLS row"], attentions[3].mean(1)[:, 0, 1:], atol=1e-5)
    assert torch.allclose(read["column mean"], attentions[3].mean(1)[:, 1:, 1:].mean(1), atol=1e-5)


def test_objects_on_top_counts_object_patches():
    """Attention that follows brightness finds a white square; attention turned round never does."""
    scene = Scene((SceneObject("square", "white", 4, (4, 4), 4),), 2)
    model = build_onevision().eval()
    layer = model.model.vision_tower.encoder.layers[0]
    brightness = torch.zeros(HIDDEN)
    with torch.no_grad():
        model.model.vision_tower.embeddings.patch_embedding.weight.zero_()[0].fill_(0.01)
        model.model.vision_tower.embeddings.patch_embedding.bias.zero_()[1] = 10.0
        model.model.vision_tower.embeddings.position_embedding.weight.zero_()
        brightness[0] = 1.0
        layer.self_attn.k_proj.weight.zero_()[0] = brightness
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.zero_()
    shares = []
    for sign in (5.0, -5.0):
        with torch.no_grad():
            layer.self_attn.q_proj.bias[0] = sign
        shares.append(objects_on_top(model, pixels(pictures([scene])), shown([scene])[0])[0])
    assert shares[0]["column mean"] == shares[0]["mean query"] == 1
    assert shares[1]["column mean"] == shares[1]["mean query"] == 0


def test_a_checkpoint_is_taken_over_word_by_word(tmp_path, monkeypatch):
    torch.manual_seed(0)
    old, new = build_llava(), build_llava()
    export(old, tmp_path)
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    swapped = tokenizer.replace('"circle"', '"*"').replace('"square"', '"circle"').replace('"*"', '"square"')
    (tmp_path / "tokenizer.json").write_text(swapped)
    continue_from(new, tmp_path)
    circle, square = data.WORD_IDS["circle"], data.WORD_IDS["square"]
    assert torch.equal(new.lm_head.weight[circle], old.lm_head.weight[square].bfloat16().float())
    assert torch.equal(new.model.vision_tower.pre_layrnorm.weight, old.model.vision_tower.pre_layrnorm.weight)


def test_decoder_layers_move_down_and_fresh_ones_write_nothing(tmp_path):
    """With as many of its last layers silenced, the old model gives the new one's logits."""
    torch.manual_seed(0)
    old, new = build_llava().eval(), build_llava().eval()
    for weight in old.parameters():
        weight.data = weight.data.bfloat16().float()  # as a checkpoint keeps it
    for layer in old.model.language_model.layers[-2:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    export(old, tmp_path)
    continue_from(new, tmp_path, later=2)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng)]
    packed = data.pack(some_questions(scenes, rng, 3), torch.arange(144)[None])
    visual = torch.randn(1, 144, HIDDEN)
    with torch.no_grad():
        logits, states, _ = data.read(new, visual, packed)
        assert torch.allclose(logits, data.read(old, visual, packed)[0], atol=1e-4)
    assert torch.equal(states[2], states[0])


def test_text_that_is_blind_does_not_see_the_picture_in_the_layers_that_survey_it():
    torch.manual_seed(0)
    model = build_onevision().eval()
    model.set_attn_implementation("eager")
    rng = np.random.default_rng(0)
    packed = data.pack(some_questions([sample_scene(rng)], rng, 3), torch.arange(144)[None])
    pictures_shown = torch.randn(2, 1, 144, HIDDEN)
    with torch.no_grad():
        blind = [data.read(model, picture, packed, blind=True) for picture in pictures_shown]
        seeing = data.read(model, pictures_shown[0], packed)
    shared = len(data.PREFIX) + 144
    surveyed, later = data.SURVEYING, data.SURVEYING + 1
    assert torch.equal(blind[0][1][surveyed][:, shared:], blind[1][1][surveyed][:, shared:])
    assert not torch.allclose(blind[0][1][later][:, shared:], blind[1][1][later][:, shared:])
    assert [bool(attention.max() > 0) for attention in blind[0][2]] == [False] * surveyed + [True] * (12 - surveyed)
    assert all(attention.max() > 0 for attention in seeing[2])


def test_surveying_attention_is_held_against_the_salience_of_objects():
    """Every object has an equal share, whatever its size; least is lost where attention is as wanted, in proportion."""
    scene = Scene((SceneObject("ring", "red", 4, (3, 3), 4), SceneObject("7", "cyan", 0, (0, 0), 1)), 1)
    labels = shown([scene])[0]
    salient = salience(labels).view(12, 12)
    assert salient[3:7, 3:7].sum() == salient[0, 0] == 1 and salient.sum() == 2
    wanted = led(salience(labels))
    assert wanted.sum().item() == pytest.approx(1) and wanted[0, 0] > 10 * wanted[0, 40] > 10 * wanted[0, 1] > 0
    packed = data.pack(some_questions([scene], np.random.default_rng(0), 2), torch.arange(144)[None])
    text = packed.ids.shape[1] - len(data.PREFIX)
    right = 0.3 * wanted.expand(1, 4, text, 144)
    entropy = -(wanted * wanted.log()).sum().item()
    assert data.survey_loss([right, right], wanted, packed).item() == pytest.approx(entropy, abs=1e-4)
    even = torch.full_like(right, 1 / 144)
    assert data.survey_loss([even, right], wanted, packed).item() > entropy + 0.1


def test_a_question_is_grounded_in_the_object_it_names_and_then_in_its_answer():
    """Nothing is lost where a question's last words look at these objects alone; questions about no object do not count."""
    asked = [[(0, Asked("which shape is left-of the circle?", (), "ring")), (1, Asked("how many red things?", (), "2"))]]
    packed = data.pack(asked, torch.arange(144)[None])
    kinds = torch.zeros(1, 144, dtype=torch.long)
    kinds[0, :4], kinds[0, 10], kinds[0, 20] = KINDS.index("circle") + 1, KINDS.index("ring") + 1, KINDS.index("2") + 1
    attentions = [torch.full((1, 4, packed.ids.shape[1] - len(data.PREFIX), 144), 0.001) for _ in range(12)]
    row = packed.answer_index[0, 0] - len(data.PREFIX) - 144
    rows = slice(row - 1, row + 1)
    for step, patches in enumerate((slice(0, 4), slice(10, 11))):
        for layer in data.GROUNDED[step]:
            attentions[layer][0, :, rows] = 0
            attentions[layer][0, :, rows, patches] = 0.1
    assert data.grounding_loss(attentions, kinds, asked, packed).item() == pytest.approx(0, abs=2e-3)
    attentions[data.GROUNDED[1][0]][0, :, rows, 11:14] = 0.1
    assert data.grounding_loss(attentions, kinds, asked, packed).item() == pytest.approx(np.log(4) / 4, abs=2e-3)


def test_every_other_picture_of_a_batch_is_crowded():
    scenes = LLAVA_PICTURES.samples(np.random.default_rng(0), 8)
    assert all(len(scene.digits) >= 2 and len(scene.shapes) >= 3 for scene in scenes[1::2])
    assert any(len(scene.digits) == 1 for scene in scenes[::2])


def test_stages_run_save_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "BATCH", {"cells": 2, "encoder": 4, "decoder": 2})
    torch.manual_seed(0)
    torch.set_num_threads(1)
    first = stages.Trainer(build_onevision(), (VIDEOS, TILED_PICTURES), tmp_path, seed=0)
    assert not first.resume()
    first.run("cells", FEW_SECONDS)
    second = stages.Trainer(build_onevision(), (VIDEOS, TILED_PICTURES), tmp_path, seed=0)
    assert second.resume()
    assert second.step == first.step > 0 and second.done == first.done
    assert torch.equal(second.model.lm_head.weight, first.model.lm_head.weight)
    before = {name: value.clone() for name, value in second.model.state_dict().items()}
    oracle = second.oracle.kind.weight.clone()
    second.run("encoder", FEW_SECONDS)
    changed = {name for name, value in second.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("vision_tower" in name or "projector" in name for name in changed)
    before = {name: value.clone() for name, value in second.model.state_dict().items()}
    second.run("decoder", FEW_SECONDS)
    changed = {name for name, value in second.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("language_model" in name for name in changed) and not any("vision_tower" in name for name in changed)
    assert torch.equal(second.oracle.kind.weight, oracle), "oracle tokens stay once an encoder is trained on them"
    assert set(second.done) == {"cells", "encoder", "decoder"}


def test_the_shipped_weights_have_the_hub_s_names():
    """Other loaders know LLaVA's weights by these names (llava-hf on the Hub)."""
    from safetensors import safe_open

    for name in ("llava", "onevision"):
        with safe_open(CHECKPOINTS / name / "model.safetensors", "pt") as file:
            keys = list(file.keys())
        parts = ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head.")
        assert all(key.startswith((*parts, "image_newline")) for key in keys)
        assert all(any(key.startswith(part) for key in keys) for part in parts)
