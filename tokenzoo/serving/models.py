"""vLLM's models with a method at work: what vLLM's extension points let a subclass change, nothing is patched.

A processor writes fewer placeholders, a model returns fewer rows for them. Without a method in the config each is the model
that it subclasses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.models import llava, llava_next, llava_onevision, qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.processing import BaseMultiModalProcessor, ProcessorInputs, PromptReplacement, PromptUpdate

from tokenzoo.errors import UnsupportedError
from tokenzoo.serving.encoding import Encoding, kind_of
from tokenzoo.serving.plugin import STOCK
from tokenzoo.serving.positions import placed, shortened, split_places, with_places
from tokenzoo.serving.served import KEY, Served, served

#: A share of video tokens to prune that asks vLLM for new M-RoPE positions; what is pruned is the method's decision.
ASK_FOR_POSITIONS = 1e-6


class Processor(BaseMultiModalProcessor):
    """Writes as many placeholders for a picture as the method leaves of its tokens."""

    def __init__(self, info: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(info, *args, **kwargs)
        self.served = served(info.get_hf_config())

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        if self.served is None:
            return updates
        return [self._reduced(update, self.served, out_mm_kwargs) for update in updates]

    def _reduced(self, update: PromptUpdate, served: Served, items: MultiModalKwargsItems) -> PromptUpdate:
        assert isinstance(update, PromptReplacement) and isinstance(update.target, list)
        kind, (placeholder,) = update.modality, update.target

        def shortened(index: int) -> list[int]:
            call = {name: value[None] for name, value in items[kind][index].get_data().items() if isinstance(value, torch.Tensor)}
            (source,) = served.sources(call, kind)
            return [placeholder] * served.entered(source.source)

        return replace(update, replacement=shortened)

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> dict[str, list[str]]:
        """The key of a picture in vLLM's caches names the method too: the same picture under another one is another entry."""
        hashes = super()._get_mm_hashes(inputs)
        if self.served is None:
            return hashes
        return {kind: [self.served.identity(one) for one in found] for kind, found in hashes.items()}


class Model:
    """Returns the rows that a method leaves of what the encoder and the projector make of a picture."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        found = served(config)
        with _whole_tower(config, found):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.encoding = None if found is None else Encoding(found)
        if found is not None:
            _check_engine(vllm_config, found)
            self._watch(found)

    def _watch(self, served: Served) -> None:
        """Let the encoding see what it needs of the encoder."""
        if served.encoder_layers or served.methods.reduces_early:
            layers = self.vision_tower.vision_model.encoder.layers  # type: ignore[attr-defined]
            self.encoding.attach(layers, self.multi_modal_projector)  # type: ignore[attr-defined,union-attr]

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: Any) -> Any:
        """The features of the layer that the projector reads, where the tower has more layers than vLLM would build."""
        encoding = self.encoding
        if encoding is None or not encoding.served.whole_tower:
            return super()._image_pixels_to_features(vision_tower, pixel_values)  # type: ignore[misc]
        states = [encoding.served.methods.architecture.feature_layer + 1]  # of the states, the first is the encoder's input
        strategy = self.config.vision_feature_select_strategy  # type: ignore[attr-defined]
        return vision_tower(pixel_values, select_layers=states, feature_select_strategy=strategy)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        encode = super().embed_multimodal  # type: ignore[misc]
        if self.encoding is None or not kwargs:
            return encode(**kwargs)
        return [reduced.tokens for reduced in self.encoding(encode, kwargs)]


class MropeModel(Model):
    """The same where positions are three-dimensional: a token that is left keeps its own."""

    supports_multimodal_pruning = True
    is_multimodal_pruning_enabled = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.encoding is not None:
            vllm_config.model_config.multimodal_config.video_pruning_rate = ASK_FOR_POSITIONS
            self.is_multimodal_pruning_enabled = False  # of vLLM's model itself

    def _watch(self, served: Served) -> None:
        pass

    def embed_multimodal(self, **kwargs: Any) -> Any:
        encode = super(Model, self).embed_multimodal  # type: ignore[misc]
        if self.encoding is None or not kwargs:
            return encode(**kwargs)
        kind = kind_of(kwargs)
        return [
            with_places(reduced.tokens, self._places(kind, kwargs, index)[:, reduced.anchors.cpu()].to(reduced.tokens.device))
            for index, reduced in enumerate(self.encoding(encode, kwargs))
        ]

    def _places(self, kind: str, call: Mapping[str, Any], index: int) -> torch.Tensor:
        """The places [3, tokens] of one picture's unreduced tokens, by vLLM's own rule, relative to its first."""
        names = (f"{kind}_grid_thw", "second_per_grid_ts")
        data = {name: SimpleNamespace(data=call[name][index].cpu()) for name in names if call.get(name) is not None}
        (source,) = self.encoding.served.sources({names[0]: data[names[0]].data[None]}, kind)  # type: ignore[union-attr]
        count = source.source.tokens
        picture = SimpleNamespace(modality=kind, data=data, mm_position=PlaceholderRange(offset=1, length=count))
        positions, _ = super().get_mrope_input_positions([0] * (1 + count), [picture])  # type: ignore[misc]
        return positions[:, 1:] - 1

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        stock = super().get_mrope_input_positions  # type: ignore[misc]
        if self.encoding is None:
            return stock(input_tokens, mm_features)
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        spans = []
        for feature in features:
            grid = f"{feature.modality}_grid_thw"
            (source,) = self.encoding.served.sources({grid: feature.data[grid].data[None]}, feature.modality)
            spans.append((feature.mm_position.offset, feature.mm_position.length, source.source.tokens))

        def whole(length: int, offsets: list[int]) -> torch.Tensor:
            moved = [
                replace(feature, mm_position=PlaceholderRange(offset=offset, length=span[2]))
                for feature, offset, span in zip(features, offsets, spans, strict=True)
            ]
            return stock([0] * length, moved)[0]

        return shortened(len(input_tokens), spans, whole)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[torch.Tensor], mrope_positions: Any, num_computed_tokens: int
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        if self.encoding is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        config = self.config  # type: ignore[attr-defined]
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        visual = (ids == config.image_token_id) | (ids == config.video_token_id)
        parts = [split_places(part) for part in multimodal_embeddings]
        positions = placed(mrope_positions, visual, [places for _, places in parts], num_computed_tokens)
        return [part for part, _ in parts], positions, int(positions.max()) + 1 - len(ids)


@contextmanager
def _whole_tower(config: Any, served: Served | None) -> Iterator[None]:
    """Have the model build every layer of its vision tower, where a method reads one that it would leave out."""
    if served is None or not served.whole_tower:
        yield
        return
    wanted, config.vision_feature_layer = config.vision_feature_layer, -1
    try:
        yield
    finally:
        config.vision_feature_layer = wanted


def _check_engine(vllm_config: Any, served: Served) -> None:
    """Ways to run the engine that pass by what a method needs."""
    compilation, parallel = vllm_config.compilation_config, vllm_config.parallel_config
    if getattr(compilation, "cudagraph_mm_encoder", False) or getattr(compilation, "compile_mm_encoder", False):
        raise UnsupportedError(
            f"'{served.pipeline}' acts behind the encoder, which cudagraph_mm_encoder and compile_mm_encoder pass by. Leave "
            "them out."
        )
    tower = vllm_config.model_config.multimodal_config.mm_encoder_tp_mode
    if served.encoder_layers and parallel.tensor_parallel_size > 1 and tower != "data":
        raise UnsupportedError(
            f"'{served.pipeline}' reads the encoder's heads, which tensor parallelism splits. Pass --mm-encoder-tp-mode data, or "
            "serve a method that does not read the encoder."
        )
    lora = vllm_config.lora_config
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        raise UnsupportedError("LoRA on the vision tower counts a picture's tokens by its placeholders, which are fewer now.")


def _llava_processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, llava.LlavaProcessingInfo):
        return LlavaProcessor(info, dummy_inputs)
    _refuse(info.get_hf_config(), "its vision tower is Pixtral's")
    return llava._build_llava_or_pixtral_hf_processor(info, dummy_inputs)


class LlavaProcessor(Processor, llava.LlavaMultiModalProcessor):
    pass


class LlavaNextProcessor(Processor, llava_next.LlavaNextMultiModalProcessor):
    pass


class LlavaOnevisionProcessor(Processor, llava_onevision.LlavaOnevisionMultiModalProcessor):
    pass


class Qwen2VLProcessor(Processor, qwen2_vl.Qwen2VLMultiModalProcessor):
    pass


class Qwen25VLProcessor(Processor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _llava_processor, info=llava._build_llava_or_pixtral_hf_info, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class Llava(Model, llava.LlavaForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=llava_next.LlavaNextProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class LlavaNext(Model, llava_next.LlavaNextForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionProcessor,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LlavaOnevision(Model, llava_onevision.LlavaOnevisionForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=qwen2_vl.Qwen2VLProcessingInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class Qwen2VL(MropeModel, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=qwen2_5_vl.Qwen2_5_VLProcessingInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class Qwen25VL(MropeModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass


def _refuse(config: Any, reason: str) -> None:
    if getattr(config, KEY, None) is not None:
        raise UnsupportedError(
            f"tokenzoo does not serve '{config.model_type}' models: {reason}. Leave '{KEY}' out of --hf-overrides; docs: serving."
        )


def __getattr__(name: str) -> Any:
    """vLLM's own class of an architecture that tokenzoo does not serve, which refuses a method instead of passing over it."""
    if name not in STOCK:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    stock = STOCK[name].load_model_cls()
    factories = stock._processor_factory

    def info(context: Any) -> Any:
        _refuse(context.model_config.hf_config, "vLLM's model of it was not tried with fewer tokens")
        return factories.info(context)

    made = type(name, (stock,), {"__module__": __name__})
    return MULTIMODAL_REGISTRY.register_processor(factories.processor, info=info, dummy_inputs=factories.dummy_inputs)(made)
