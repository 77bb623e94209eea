"""Where the parts of a model are: one small adapter per model family, chosen by the model's config.model_type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokenzoo.errors import UnsupportedError
from tokenzoo.method import ops
from tokenzoo.method.workload import Architecture, Source

if TYPE_CHECKING:
    from tokenzoo.host.encoder import LayerRecord

#: A torch module of which a family knows the attributes; torch types every attribute of a module as tensor or module.
Module = Any


@dataclass(frozen=True)
class VisualSource:
    """One image or video of a call, as the adapter reads it off the call's arguments.

    `view_of_token` [placeholder tokens]: the view of each token as it enters the LLM, -1 for structural tokens
    (newlines). `encoder_grids` are the (height, width) of the views before the projector. `one_to_one`: whether token k
    before the projector is (non-structural) token k in the LLM. `pack`: where they are not one to one, the model's own
    tiling or pooling of values [views, tokens, channels] into those of the LLM's tokens [tokens, channels], structural
    ones left out. `whole`: False where tokens of this source cannot be dropped before the projector. `tiles`: (rows,
    columns) of an anyres image's tiles, the encoder's views behind the first one.
    """

    source: Source
    view_of_token: torch.Tensor
    encoder_grids: tuple[tuple[int, int], ...]
    one_to_one: bool
    pack: Callable[[torch.Tensor], torch.Tensor] | None = None
    whole: bool = True
    tiles: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each view as it enters the LLM."""
        return self.source.grids


class Family(ABC):
    """How to find the decoder, the projector and the visual tokens of one family of models.

    `model_types` are the values of `config.model_type` it serves. A new family is one subclass, registered with the
    hook `tokenzoo_families` (docs: model families).
    """

    name: str
    model_types: tuple[str, ...]
    #: whether positions are three-dimensional (M-RoPE); such models always keep positions
    mrope: bool = False

    @abstractmethod
    def decoder(self, model: Module) -> Module:
        """The stack of decoder layers: has `.layers`, `.rotary_emb`, `.config`, is called with `inputs_embeds`."""

    @abstractmethod
    def root(self, model: Module) -> Module | None:
        """The module whose forward gets `input_ids` and the pixels; None where there are no pixels."""

    @abstractmethod
    def projector(self, model: Module) -> Module:
        """The module between encoder and LLM."""

    @abstractmethod
    def encoder_layers(self, model: Module) -> Sequence[Module]:
        """The encoder's layers."""

    @abstractmethod
    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        """The images ("image") or videos ("video") of one forward call, in order."""

    def token_id(self, model: Module, kind: str) -> int | None:
        """The placeholder's token id for "image" or "video"; None where the model has no such input."""
        return getattr(model.config, f"{kind}_token_id", None)

    def has_cls(self, model: Module) -> bool:
        """Whether the encoder has a CLS token whose attention methods may read."""
        return False

    def encoder_heads(self, model: Module) -> int:
        return model.config.vision_config.num_attention_heads

    def feature_layer(self, model: Module) -> int:
        """The encoder layer (from 0) whose output goes to the projector."""
        wanted = getattr(model.config, "vision_feature_layer", -1)
        wanted = wanted if isinstance(wanted, int) else wanted[-1]
        layers = len(self.encoder_layers(model))
        return wanted + layers if wanted < 0 else wanted - 1

    def pooling_head(self, model: Module) -> Module | None:
        """The encoder's attention-pooling head (with `.attention`), where it runs one."""
        return None

    def encoder_projections(self, layer: Module) -> tuple[Module, ...]:
        """The modules of an encoder layer whose outputs are its q and k: (q, k), or one fused (qkv,)."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def decoder_projections(self, layer: Module) -> tuple[Module, Module]:
        """The modules whose outputs are the q and k of a decoder layer before the rotary embedding."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def rotate(self, layer: Module, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Apply the rotary embedding cos, sin [tokens, head dim] to q or k [heads, tokens, head dim]."""
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    # --- the projector ------------------------------------------------------------------------------------------

    def split_features(self, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Split the projector's input [views, tokens, width] into [tokens, width] per source."""
        counts = [len(source.encoder_grids) for source in sources]
        return [part.flatten(0, 1) for part in features.split(counts)]

    def split_recorded(
        self, model: Module, recorded: Sequence[torch.Tensor], sources: Sequence[VisualSource]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Split the recorded outputs of `encoder_projections` into (q, k) [views, tokens, width] per source."""
        counts = [len(source.encoder_grids) for source in sources]
        query, key = recorded
        return list(zip(query.split(counts), key.split(counts), strict=True))

    def split_outputs(self, model: Module, output: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Split an encoder layer's output into [views, (1 +) tokens, width] per source."""
        return list(output.split([len(source.encoder_grids) for source in sources]))

    def encoder_attention(
        self, model: Module, record: LayerRecord, sources: Sequence[VisualSource], number: int, queries: str
    ) -> torch.Tensor:
        """Attention of a recorded encoder layer on the tokens of source `number`, [views, tokens, heads], float32."""
        query, key = (
            states.unflatten(-1, (self.encoder_heads(model), -1)).transpose(1, 2)
            for states in self.split_recorded(model, record.projections, sources)[number]
        )
        weights = ops.encoder_attention(query, key, query.shape[-1] ** -0.5, queries)
        return weights[..., int(self.has_cls(model)) :].transpose(1, 2)

    def projector_input(self, model: Module, features: torch.Tensor) -> torch.Tensor:
        """Shape reduced features [tokens, width] as the projector takes them."""
        return features[None]

    def projector_output(self, output: torch.Tensor) -> torch.Tensor:
        """The projected tokens [tokens, hidden] of `projector_input`."""
        return output[0]

    def placeholder_output(self, model: Module, features: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """A stand-in with the shape the unreduced projector would have returned (it costs no memory)."""
        return output.new_zeros(1).expand(*features.shape[:-1], output.shape[-1])

    def with_projected(
        self,
        stand_in: torch.Tensor,
        parts: Sequence[torch.Tensor],
        alone: Sequence[bool],
        sources: Sequence[VisualSource],
    ) -> torch.Tensor:
        """Write the projected tokens [tokens, hidden] of the sources that were left `alone` (none is one-to-one) into the
        stand-in."""
        counts = [len(source.encoder_grids) for source in sources]
        for place, part, untouched in zip(stand_in.split(counts), parts, alone, strict=True):
            if untouched:
                place.copy_(part.view_as(place))
        return stand_in

    # --- numbers ------------------------------------------------------------------------------------------------

    def architecture(self, model: Module) -> Architecture:
        """The dimensions of this model."""
        config = self.decoder(model).config
        vision = getattr(model.config, "vision_config", None)
        return Architecture(
            name=type(model).__name__,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            head_dim=getattr(config, "head_dim", None) or 0,
            **(self._encoder_dimensions(model, vision) if vision is not None else {}),
        )

    def _encoder_dimensions(self, model: Module, vision: Any) -> dict[str, Any]:
        return {
            "has_cls": self.has_cls(model),
            "encoder_heads": self.encoder_heads(model),
            "feature_layer": self.feature_layer(model),
            "pooling_head": self.pooling_head(model) is not None,
            **self.vision_dimensions(vision),
        }

    def vision_dimensions(self, vision: Any) -> dict[str, int]:
        return {
            "vision_hidden": vision.hidden_size,
            "encoder_hidden": vision.hidden_size,
            "encoder_layers": vision.num_hidden_layers,
        }


def find_family(model: Module, families: Sequence[Family]) -> Family:
    """Return the adapter for a model; raises UnsupportedError naming the supported families."""
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for family in families:
        if model_type in family.model_types:
            return family
    supported = ", ".join(sorted(kind for family in families for kind in family.model_types))
    raise UnsupportedError(
        f"No adapter for model type '{model_type}'. Supported: {supported}. "
        "To add one, see docs/model-families.md (one small Family subclass, hook tokenzoo_families)."
    )
