"""A wrong adapter fails under its own name; a plugin's adapter may replace a built-in one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import tokenzoo
from tokenzoo import UserError, application
from tokenzoo.host.adapter import AdapterError
from tokenzoo.host.families.llava import Llava, with_cls
from tokenzoo.host.families.llava_onevision import LlavaOnevision
from tokenzoo.testing.case import Case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.inputs import tiny_inputs, words
from tokenzoo.testing.models import tiny_model
from tokenzoo.zoo import plugins
from tokenzoo.zoo.plugins import load_zoo

LAYERS = 6
FOREIGN = nn.Linear(4, 4)


class Mine(Llava):
    """An adapter that is right."""

    name = "mine"


class NoCls(Mine):
    def has_cls(self, model):
        return False


class ClsOfSiglip(LlavaOnevision):
    name = "mine"

    def has_cls(self, model):
        return True


class OtherLayersProjections(Mine):
    def decoder_projections(self, layer):
        attention = self.last.self_attn
        return attention.q_proj, attention.k_proj

    def decoder(self, model):
        found = super().decoder(model)
        self.last = found.layers[-1]
        return found


class MlpsProjections(Mine):
    def decoder_projections(self, layer):
        return layer.mlp.gate_proj, layer.self_attn.k_proj


class NarrowProjections(Mine):
    def decoder_projections(self, layer):
        return FOREIGN, layer.self_attn.k_proj


class MisspeltProjections(Mine):
    def decoder_projections(self, layer):
        return layer.self_attn.query, layer.self_attn.key


class ForeignNorms(Mine):
    def head_norms(self, layer):
        return FOREIGN, None


class TurnsHalf(Mine):
    def rotate(self, layer, states, cos, sin):
        return states[..., :8]


class ShortRecords(Mine):
    def split_recorded(self, model, recorded, sources):
        return [(query[:, 1:], key[:, 1:]) for query, key in super().split_recorded(model, recorded, sources)]


class OneRecord(Mine):
    def split_recorded(self, model, recorded, sources):
        return super().split_recorded(model, recorded, sources)[:1]


class ShortOutputs(Mine):
    def split_outputs(self, model, output, sources):
        return [part.flatten(0, 1) for part in super().split_outputs(model, output, sources)]


class FewerTokens(Mine):
    def sources(self, model, call, kind):
        return [with_cls("image", (5, 6), 1, 0)] * len(call["pixel_values"])


class NoSources(Mine):
    def sources(self, model, call, kind):
        return []


class NoList(Mine):
    def sources(self, model, call, kind):
        return None


class OtherGrid(Mine):
    def sources(self, model, call, kind):
        return [replace(source, encoder_grids=((5, 5),)) for source in super().sources(model, call, kind)]


class OtherMarks(Mine):
    def sources(self, model, call, kind):
        made = super().sources(model, call, kind)
        return [replace(source, view_of_token=source.view_of_token.index_fill(0, torch.tensor([3]), -1)) for source in made]


class NoToken(Mine):
    def token_id(self, model, kind):
        return None


class ForeignProjector(Mine):
    def projector(self, model):
        return FOREIGN


class TowersLayers(Mine):
    def encoder_layers(self, model):
        return [FOREIGN]


class LayerTooFar(Mine):
    def feature_layer(self, model):
        return 4


class OutputProjections(Mine):
    def encoder_projections(self, layer):
        return FOREIGN, layer.self_attn.k_proj


class RootAsDecoder(Mine):
    def decoder(self, model):
        return self.root(model)


class DecoderAsRoot(Mine):
    def root(self, model):
        return model.model.language_model

    def decoder(self, model):
        return model.model.language_model


class OtherDepth(Mine):
    def architecture(self, model):
        return replace(super().architecture(model), layers=3)


class RaisesInFeatures(Mine):
    def split_features(self, model, features, sources):
        return [features[9]]


class SplitsAcross(Mine):
    def split_features(self, model, features, sources):
        return [part[1:] for part in super().split_features(model, features, sources)]


class ShortOutput(Mine):
    def projector_output(self, model, output, features):
        return output[0, 1:]


class ShortStandIn(Mine):
    def placeholder_output(self, model, features, output):
        return super().placeholder_output(model, features, output)[:, 1:]


EARLY, ENCODER, LAYER, NEXT = "prumerge", "hiprune", "fastv:K=3", "pdrop"
WRONG = [
    (NoCls, ENCODER, "split_|encoder_attention"),
    (ClsOfSiglip, ENCODER, "split_|encoder_attention"),
    (OtherLayersProjections, LAYER, "decoder_projections"),
    (MlpsProjections, LAYER, "decoder_projections"),
    (NarrowProjections, LAYER, "decoder_projections"),
    (MisspeltProjections, LAYER, "decoder_projections"),
    (ForeignNorms, LAYER, "head_norms"),
    (TurnsHalf, NEXT, "rotate"),
    (ShortRecords, EARLY, "split_recorded"),
    (OneRecord, EARLY, "split_recorded"),
    (ShortOutputs, "prunesid", "split_outputs"),
    (FewerTokens, LAYER, "sources"),
    (NoSources, LAYER, "sources"),
    (NoList, LAYER, "sources"),
    (OtherGrid, EARLY, "sources"),
    (OtherMarks, EARLY, "sources"),
    (NoToken, LAYER, "token_id"),
    (ForeignProjector, EARLY, "projector"),
    (TowersLayers, EARLY, "encoder_layers"),
    (LayerTooFar, EARLY, "feature_layer"),
    (OutputProjections, EARLY, "encoder_projections"),
    (RootAsDecoder, LAYER, "decoder"),
    (DecoderAsRoot, LAYER, "root"),
    (OtherDepth, LAYER, "architecture"),
    (RaisesInFeatures, EARLY, "split_features"),
    (SplitsAcross, EARLY, "split_features"),
    (ShortOutput, EARLY, "projector_output"),
    (ShortStandIn, EARLY, "placeholder_output"),
]


def adapted(monkeypatch, family):
    """A tiny model of the family that `family` serves, which is asked first."""
    monkeypatch.setattr(application, "BUILT_IN", (family(), *application.BUILT_IN))
    model = tiny_model("llava-onevision" if issubclass(family, LlavaOnevision) else "llava", layers=LAYERS)
    return model, tiny_inputs(model, "left")


@pytest.mark.parametrize(("family", "method", "piece"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_adapter_is_named(monkeypatch, family, method, piece):
    model, inputs = adapted(monkeypatch, family)
    with torch.no_grad():
        plain = model(**inputs).logits
        where = rf"adapter of family 'mine' \(.*{family.__name__}\) is wrong: (?:{piece})"
        with pytest.raises(AdapterError, match=where) as error, tokenzoo.apply(model, method, **words(inputs)):
            model(**inputs)
        assert "\n" not in str(error.value)
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("method", sorted({method for _, method, _ in WRONG}))
def test_a_right_adapter_is_not(monkeypatch, method):
    model, inputs = adapted(monkeypatch, Mine)
    with torch.no_grad(), tokenzoo.apply(model, method, **words(inputs)) as run:
        model(**inputs)
    assert run.trace.visual_tokens()[-1] < 36


def test_the_contract_kit_does_not_blame_the_method(monkeypatch):
    model, inputs = adapted(monkeypatch, Mine)
    case = Case(model, inputs, "mine")
    monkeypatch.setattr(application, "BUILT_IN", (ShortOutput(), *application.BUILT_IN[1:]))
    with pytest.raises(AdapterError, match="ShortOutput"):
        check_case(case, load_zoo().build(EARLY).reducers)


def test_placeholders_without_a_picture_are_refused():
    model = tiny_model("llava", layers=LAYERS)
    inputs = tiny_inputs(model, "single")
    del inputs["pixel_values"]
    with tokenzoo.apply(model, "fastv:K=2"), torch.no_grad(), pytest.raises(UserError, match="36 image tokens"):
        model(**inputs)


REPLACING = """
from tokenzoo import hookimpl
from tokenzoo.host.families.llava import Llava


class Marked(Llava):
    name = "marked"


@hookimpl
def tokenzoo_families():
    return [{}]
"""


@pytest.fixture
def plugin(tmp_path):
    """Loads a plugin file for one test."""

    def load(source):
        path = tmp_path / "family.py"
        path.write_text(source)
        plugins.configure([path])

    yield load
    plugins.configure()


def test_a_plugin_replaces_a_built_in_family(plugin):
    model = tiny_model("llava", layers=LAYERS)
    assert application.family_of(model).name == "llava"
    plugin(REPLACING.format("Marked()"))
    assert application.family_of(model).name == "marked"
    assert application.family_of(tiny_model("llava-next", layers=LAYERS)).name == "llava-next"
    report = check_case(Case(model, tiny_inputs(model, "images"), "marked"), load_zoo().build("prumerge+fastv:K=3").reducers)
    assert report.findings == [] and report.dropped
    plugins.configure()
    assert application.family_of(model).name == "llava"


def test_what_is_no_family_is_named(plugin):
    plugin(REPLACING.format("Marked"))
    with pytest.raises(UserError, match=r"tokenzoo_families returned .*Marked.*, not instances"):
        application.family_of(tiny_model("llava", layers=LAYERS))
