"""Where the parts of a model are: one small adapter per model family, chosen by the model's config.model_type."""

from __future__ import annotations

import inspect
import math
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

#: The type of layers that attend to everything before them.
FULL = "full_attention"
#: The type of layers that keep a state in place of keys and values; their mask is the padding, and rows follow each other.
LINEAR = "linear_attention"

#: What models call the pixels of images. The second is the name of Video-LLaVA's processor, and before transformers 5.21 the
#: only one that the model knows.
IMAGES = ("pixel_values", "pixel_values_images")

#: A torch module of which a family knows the attributes; torch types every attribute of a module as tensor or module.
Module = Any


@dataclass(frozen=True)
class VisualSource:
    """One image or video of a call, as the adapter reads it off the call's arguments.

    `view_of_token` [placeholder tokens]: the view of each token as it enters the LLM, -1 for structural tokens
    (newlines). `encoder_grids` are the (height, width) of the views before the projector. `one_to_one`: whether token k
    before the projector is (non-structural) token k in the LLM. `pack`: where they are not one to one, the model's own
    tiling or pooling of values [views, tokens, channels] into those of the LLM's tokens [tokens, channels], structural
    ones left out. `tiles`: (rows, columns) of an anyres image's tiles, the encoder's views behind the first one.
    """

    source: Source
    view_of_token: torch.Tensor
    encoder_grids: tuple[tuple[int, int], ...]
    one_to_one: bool
    pack: Callable[[torch.Tensor], torch.Tensor] | None = None
    tiles: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        return self.source.kind

    def through(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Its own tokens before the projector, and the structural ones (CLS) that pass it among them, as indices; None where
        none does."""
        if not self.source.through:
            return None
        structural = self.view_of_token < 0
        return (~structural).nonzero()[:, 0].to(device), structural.nonzero()[:, 0].to(device)

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
    #: whether the decoder is handed a mask and a rotary embedding for each of `config.layer_types`; the host makes them then
    per_layer_type: bool = False
    #: arguments of the decoder with an entry for each row, [batch, length, ...], and of its layers; reduced with the rows
    row_arguments: tuple[str, ...] = ()
    layer_arguments: tuple[str, ...] = ()

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

    def encoder_stacks(self, model: Module) -> list[Sequence[Module]]:
        """The layers of every encoder, where pictures of one kind have another one than the rest; equal in depth."""
        return [self.encoder_layers(model)]

    @abstractmethod
    def sources(self, model: Module, call: Mapping[str, Any], kind: str) -> list[VisualSource]:
        """The images ("image") or videos ("video") of one forward call, in order."""

    def takes_smaller_pictures(self, model: Module) -> bool:
        """Whether a smaller picture gives fewer tokens."""
        return False

    def position_table(self, model: Module) -> Module | None:
        """The encoder's embeddings, whose forward takes `interpolate_pos_encoding`, where smaller pictures need it; else None."""
        return None

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

    def encoder_mlp(self, layer: Module) -> tuple[Module, Module] | None:
        """The norm before an encoder layer's MLP, and the MLP, where the layer ends in hidden + mlp(norm(hidden)) on rows
        [views, rows, width] and takes an additive attention mask; None, the default: nothing can leave inside this encoder."""
        return None

    def decoder_projections(self, layer: Module) -> tuple[Module, Module] | None:
        """The modules whose outputs are the q and k of a decoder layer before the rotary embedding; None where a layer makes
        no keys of its own, so that no method can read its attention."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def mlp_branch(self, layer: Module) -> tuple[Module, Module]:
        """The modules between which a decoder layer's MLP half runs: the first is given the residual stream after attention, and
        what the last returns is all that the layer adds to it.

        Raises UnsupportedError for a layer made of other parts than Llama's: nothing can leave inside it then.
        """
        parts = {name for name, _ in layer.named_children()}
        if parts != {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}:
            raise UnsupportedError(
                f"Family '{self.name}' does not say where the MLP half of {type(layer).__name__} begins and ends, so no token "
                "can leave between attention and MLP. Choose another method, or override mlp_branch (docs: model families)."
            )
        return layer.post_attention_layernorm, layer.mlp

    def query_heads(self, layer: Module, states: torch.Tensor) -> torch.Tensor:
        """The query projection's output [tokens, width] as heads [tokens, heads, head dim]."""
        return states.unflatten(-1, (-1, layer.self_attn.head_dim))

    def layer_type(self, decoder: Module, index: int) -> str:
        """The type of a decoder layer: by it masks differ, and with `per_layer_type` rotary embeddings too."""
        return decoder.config.layer_types[index] if self.per_layer_type else FULL

    def opens_images(self, layer_type: str) -> bool:
        """Whether the tokens of an image see each other in layers of this type, where they do in any."""
        return True

    def has_mrope(self, decoder: Module) -> bool:
        """Whether positions are three-dimensional, by the family or by the decoder's config."""
        return self.mrope or "mrope_section" in (getattr(decoder.config, "rope_parameters", None) or {})

    def rotary(
        self, decoder: Module, hidden: torch.Tensor, positions: torch.Tensor, layer_type: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of a layer type at positions [batch, length]; `hidden` tells device and number format."""
        return decoder.rotary_emb(hidden, positions, *[layer_type] * self.per_layer_type)

    def frequencies(self, decoder: Module, layer_type: str) -> torch.Tensor | None:
        """The angle per position of each pair of channels, [head dim / 2]; None where the rotary embedding has none."""
        return getattr(decoder.rotary_emb, f"{layer_type}_inv_freq" if self.per_layer_type else "inv_freq", None)

    def head_norms(self, layer: Module) -> tuple[Module | None, Module | None]:
        """The norms that a decoder layer applies to each head of q and of k before the rotary embedding, where it has any."""
        return getattr(layer.self_attn, "q_norm", None), getattr(layer.self_attn, "k_norm", None)

    def rotate(self, layer: Module, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Apply the rotary embedding cos, sin [tokens, turned channels] to q or k [heads, tokens, head dim]."""
        turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
        return torch.cat((rotated(turned, cos, sin), rest), dim=-1)

    def added_layers(self, model: Module) -> int:
        """After how many of its first layers the decoder adds features of its own to the rows (DeepStack)."""
        return 0

    def additions(self, model: Module, call: Mapping[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """What the decoder adds, [batch, length, hidden] after each of those layers, and which arguments of its call to
        replace so that it leaves this to the host, which knows the rows that are left."""
        return [], {}

    # --- the projector ------------------------------------------------------------------------------------------

    def split_features(self, model: Module, features: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Split the projector's input [views, tokens, width] into [tokens, width] per source."""
        counts = [len(source.encoder_grids) for source in sources]
        return [part.flatten(0, 1) for part in features.split(counts)]

    def patches_per_side(self, model: Module, kind: str) -> int:
        """Tokens before the projector are this many patches high and wide: pooled or shuffled together behind the encoder."""
        return 1

    def split_recorded(
        self, model: Module, recorded: Sequence[torch.Tensor], sources: Sequence[VisualSource]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Split the recorded outputs of `encoder_projections` into (q, k) [views, (1 +) tokens, width] per source."""
        query, key = (self.split_outputs(model, states, sources) for states in recorded)
        return list(zip(query, key, strict=True))

    def split_outputs(self, model: Module, output: torch.Tensor, sources: Sequence[VisualSource]) -> list[torch.Tensor]:
        """Split an encoder layer's output into [views, (1 +) tokens, width] per source; a token is its patches' mean."""
        parts = output.split([len(source.encoder_grids) for source in sources])
        cls = int(self.has_cls(model))
        return [
            join_patches(part, self.patches_per_side(model, source.kind), cls)
            for part, source in zip(parts, sources, strict=True)
        ]

    def encoder_attention(
        self, model: Module, record: LayerRecord, sources: Sequence[VisualSource], number: int, queries: str
    ) -> torch.Tensor:
        """Attention of a recorded encoder layer on the tokens of source `number`, [views, tokens, heads], float32."""
        counts = [len(source.encoder_grids) for source in sources]
        weighed = record.weights
        rows, bias = (None, None) if weighed is None else (weighed.rows[number], weighed.bias.split(counts)[number])
        query, key = (
            states.split(counts)[number][:, :rows].unflatten(-1, (self.encoder_heads(model), -1)).transpose(1, 2)
            for states in record.projections
        )
        bias = None if bias is None else bias[:, 0, 0, :rows].to(query.device)
        weights = ops.encoder_attention(query, key, query.shape[-1] ** -0.5, queries, bias=bias)[..., int(self.has_cls(model)) :]
        return join_patches(weights.transpose(1, 2), self.patches_per_side(model, sources[number].kind))

    def projector_input(self, model: Module, features: torch.Tensor) -> torch.Tensor:
        """Shape reduced features [tokens, width] as the projector takes them."""
        return features[None]

    def projector_output(self, model: Module, output: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The projected tokens [tokens, hidden]: of the projector's output for the `projector_input` of `features`."""
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

    def decoder_config(self, model: Module) -> Any:
        """The config from which the decoder's dimensions are read; where heads differ, that of the layers which most are like."""
        return self.decoder(model).config

    def architecture(self, model: Module) -> Architecture:
        """The dimensions of this model."""
        config = self.decoder_config(model)
        vision = getattr(model.config, "vision_config", None)
        return Architecture(
            name=type(model).__name__,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            intermediate=getattr(config, "intermediate_size", None) or config.moe_intermediate_size,
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
            **self.vision_dimensions(model, vision),
        }

    def vision_dimensions(self, model: Module, vision: Any) -> dict[str, int]:
        return {
            "vision_hidden": vision.hidden_size,
            "encoder_hidden": vision.hidden_size,
            "encoder_layers": vision.num_hidden_layers,
        }


def numbers_of(*given: Any) -> Any:
    """Whole numbers of a call (tensors, or sequences of them) as nested lists; read in one go, so that a GPU is waited for once.

    One argument gives its list, several a list of lists.
    """
    made = [value if isinstance(value, torch.Tensor) else torch.as_tensor(value) for value in given]
    together = torch.cat([value.flatten().to(made[0].device, torch.long) for value in made]).cpu()
    parts = together.split([value.numel() for value in made])
    lists = [part.view(value.shape).tolist() for part, value in zip(parts, made, strict=True)]
    return lists[0] if len(lists) == 1 else lists


def image_argument(model: Module) -> str:
    """Under which name the installed class of a model takes the pixels of images."""
    taken = inspect.signature(type(model).forward).parameters
    return next(name for name in IMAGES if name in taken)


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """States [..., channels] with each pair of channels, one from each half, turned by its angle."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def join_patches(states: torch.Tensor, side: int, first: int = 0) -> torch.Tensor:
    """The means of side x side patches of square views [views, first + patches, width]; the first rows (CLS) stay."""
    if side == 1:
        return states
    patches = states[:, first:]
    rows = math.isqrt(patches.shape[1])
    tokens = rows // side
    square = patches.unflatten(1, (rows, rows))[:, : tokens * side, : tokens * side]
    means = square.unflatten(2, (tokens, side)).unflatten(1, (tokens, side)).mean((2, 4)).flatten(1, 2)
    return torch.cat([states[:, :first], means], dim=1)


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
