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
from torch.nn.functional import pad
from vllm.model_executor.models import llava, llava_next, llava_onevision, qwen2_5_vl, qwen2_vl, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.processing import BaseMultiModalProcessor, ProcessorInputs, PromptReplacement, PromptUpdate

from tokenzoo.errors import UnsupportedError
from tokenzoo.serving.encoding import Encoding, kind_of
from tokenzoo.serving.plugin import STOCK
from tokenzoo.serving.positions import StepPlaces, arranged, shortened, split_places, with_places
from tokenzoo.serving.served import KEY, Served, served

#: What vLLM tells of a picture that its positions depend on.
ABOUT = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "timestamps")
#: Any share of video tokens that vLLM would prune by itself.
SOME = 0.5


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
            return [placeholder] * (served.entered(source.source) + self._text_within(update, index))

        return replace(update, replacement=shortened)

    def _text_within(self, update: PromptReplacement, index: int) -> int:
        """How many tokens of text vLLM writes between a picture's placeholders."""
        return 0

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
    """The same where positions are three-dimensional: a token that is left keeps its own.

    vLLM's own interface for that, `SupportsMultiModalPruning`, is for videos of some models and not asked by its CPU runner. A
    model's `embed_input_ids` and `forward` are called in every step by all of them.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if served(vllm_config.model_config.hf_config) is None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            return
        _check_steps(vllm_config)
        with _room_for_positions(vllm_config.model_config.multimodal_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.is_multimodal_pruning_enabled = False  # that of vLLM's model itself
        self.places = StepPlaces(vllm_config.scheduler_config.max_num_batched_tokens)

    def _watch(self, served: Served) -> None:
        pass

    def embed_multimodal(self, **kwargs: Any) -> Any:
        stock = super(Model, self).embed_multimodal  # type: ignore[misc]
        if self.encoding is None or not kwargs:
            return stock(**kwargs)
        kind, hidden = kind_of(kwargs), self.config.get_text_config().hidden_size  # type: ignore[attr-defined]
        added: list[torch.Tensor] = []

        def encode(**call: Any) -> list[torch.Tensor]:
            made = stock(**call)
            added.extend(tokens[:, hidden:] for tokens in made)
            return [tokens[:, :hidden] for tokens in made]

        reduced = self.encoding(encode, kwargs)
        # DeepStack: what the decoder adds to its first layers' rows are channels here; a row that is left has its anchor's
        wide = [torch.cat([one.tokens, own[one.anchors]], dim=1) for one, own in zip(reduced, added, strict=True)]
        pictures = [{name: kwargs[name][index] for name in ABOUT if kwargs.get(name) is not None} for index in range(len(wide))]
        return [self._written(kind, *each) for each in zip(pictures, wide, (one.anchors.cpu() for one in reduced), strict=True)]

    def _written(self, kind: str, picture: Mapping[str, Any], tokens: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """What goes into the placeholders of a picture: the tokens that are left, text between them, and the places of both."""
        ids = torch.tensor(self._whole(kind, picture))
        data = {name: SimpleNamespace(data=torch.as_tensor(value).cpu()) for name, value in picture.items()}
        alone = SimpleNamespace(modality=kind, data=data, mm_position=PlaceholderRange(offset=1, length=len(ids)))
        positions, _ = super().get_mrope_input_positions([0, *ids.tolist()], [alone])  # type: ignore[misc]
        visual = ids == self._placeholder(kind)
        order, columns = arranged(visual, anchors)
        if not visual.all():
            text = self.get_language_model().embed_input_ids(ids[~visual].to(tokens.device))  # type: ignore[attr-defined]
            tokens = torch.cat([pad(text, (0, tokens.shape[1] - text.shape[1])).to(tokens), tokens])
        return with_places(tokens[order.to(tokens.device)], (positions[:, 1 + columns] - 1).to(tokens.device))

    def _placeholder(self, kind: str) -> int:
        return getattr(self.config, f"{kind}_token_id")  # type: ignore[attr-defined]

    def _whole(self, kind: str, picture: Mapping[str, Any]) -> list[int]:
        """The token ids of an unreduced picture in a prompt."""
        grid = f"{kind}_grid_thw"
        (source,) = self.encoding.served.sources({grid: picture[grid][None]}, kind)  # type: ignore[union-attr]
        return [self._placeholder(kind)] * source.source.tokens

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        stock = super().get_mrope_input_positions  # type: ignore[misc]
        if self.encoding is None:
            return stock(input_tokens, mm_features)
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        wholes = [
            self._whole(one.modality, {name: one.data[name].data for name in ABOUT if name in one.data}) for one in features
        ]
        spans = [
            (one.mm_position.offset, one.mm_position.length, len(whole)) for one, whole in zip(features, wholes, strict=True)
        ]

        def positions_of(length: int, offsets: list[int]) -> torch.Tensor:
            tokens, moved = [0] * length, []
            for feature, offset, whole in zip(features, offsets, wholes, strict=True):
                tokens[offset : offset + len(whole)] = whole
                moved.append(replace(feature, mm_position=PlaceholderRange(offset=offset, length=len(whole))))
            return stock(tokens, moved)[0]

        return shortened(len(input_tokens), spans, positions_of)

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.encoding is not None and multimodal_embeddings is not None and len(multimodal_embeddings):
            parts = [split_places(part) for part in multimodal_embeddings]
            multimodal_embeddings = [features for features, _ in parts]
            self.places.note(is_multimodal, [places for _, places in parts])  # type: ignore[arg-type]
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)  # type: ignore[misc]

    def forward(
        self, input_ids: Any, positions: torch.Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        if self.encoding is not None:
            positions = self.places.added(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]


class Qwen3Model(MropeModel):
    """The same where timestamps stand between the frames of a video.

    How many tokens of which frame are left is known once it is encoded. Until then all columns of a video are placeholders; what
    the encoder gives for them holds the timestamps too.
    """

    def _whole(self, kind: str, picture: Mapping[str, Any]) -> list[int]:
        whole = super()._whole(kind, picture)
        if kind == "image":
            return whole
        times, config = picture["timestamps"], self.config  # type: ignore[attr-defined]
        return qwen3_vl.Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[len(whole) // len(times)] * len(times),
            timestamps=times,
            tokenizer=self._tokenizer,  # type: ignore[attr-defined]
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
        ).full


@contextmanager
def _room_for_positions(multimodal: Any) -> Iterator[None]:
    """Have a decoder take positions beyond those of its prompts' tokens, as vLLM does where it prunes by itself."""
    multimodal.video_pruning_rate = SOME
    try:
        yield
    finally:
        multimodal.video_pruning_rate = None


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


def _check_steps(vllm_config: Any) -> None:
    """Ways to run the engine in which a step does not both embed its tokens and run the decoder's first layer on them."""
    if vllm_config.model_config.multimodal_config.is_multimodal_pruning_enabled():
        raise UnsupportedError(f"vLLM would prune videos by itself as well. Leave out --video-pruning-rate, or '{KEY}'.")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise UnsupportedError("With M-RoPE only the first of the pipeline's stages knows positions. Use tensor parallelism.")
    if vllm_config.speculative_config is not None:
        raise UnsupportedError("Speculative decoding was not tried with M-RoPE and a method. Leave it out.")


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


class Qwen3VLProcessor(Processor, qwen3_vl.Qwen3VLMultiModalProcessor):
    def _text_within(self, update: PromptReplacement, index: int) -> int:
        if update.modality == "image":
            return 0
        whole, placeholder = update.replacement(index).full, self.info.get_hf_config().video_token_id  # type: ignore[operator]
        return sum(token != placeholder for token in whole)


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


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=qwen3_vl.Qwen3VLProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3VL(Qwen3Model, qwen3_vl.Qwen3VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=qwen3_vl_moe.Qwen3VLMoeProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3VLMoe(Qwen3Model, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
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
