"""The interface every method implements: how many tokens are left, and which. Everything else is derived from that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tokenzoo.errors import UnsupportedError
from tokenzoo.method import accounting, ops, parameters
from tokenzoo.method.reduction import ActsAfter, PositionPolicy, Reduction, UnreachableError
from tokenzoo.method.validation import InvalidReductionError
from tokenzoo.method.workload import Architecture, EncoderCut, Source, Workload

if TYPE_CHECKING:
    import torch

    from tokenzoo.method.cached_layer import CachedLayer, CacheRead
    from tokenzoo.method.decoder_layer import DecoderLayer
    from tokenzoo.method.encoder_layer import EncoderLayer
    from tokenzoo.method.visual_tokens import VisualTokens


@dataclass
class TokenReducer:
    """A training-free method that reduces visual tokens.

    Subclass it as a dataclass; the fields are the parameters, checked against their type hints (pydantic's rules,
    so `Annotated[int, Field(ge=1)]` bounds a value).

    **Inside the vision encoder**: `encoder_kept` declares in which layers how many patches remain, `encoder_pick` decides which.
    **Before the LLM**: `left` declares how many tokens of an image or video remain, `reduce` decides which.
    **Inside the LLM**: `kept` declares after which decoder layers how many remain, `score` (or `pick`) decides which. With
    `acts_after = "attention"` that is between the attention of those layers and their MLP, and before layer 0.
    **The KV cache**: `cached` declares how many visual tokens layers keep cached after the prompt, `pick_cached` decides which;
    `read` declares how many of them layers read in each decoding step, `pick_read` decides which.
    A method implements any of these pairs. What it leaves out costs nothing.

    From the declaration follow the schedule, the FLOPs, the hooks, the checks (a method that promises n keeps n) and
    the refusals. A count of None means that the picture decides it; costs then come from a recorded run.

    The decisions are made for one sample at a time (and, before the LLM, for one image or video at a time), so a
    method never sees batches or padding. Keep no state on `self`: what one call wants to tell a later one goes into
    `tokens.memory` or `layer.memory`, fresh for every sample.
    """

    name: ClassVar[str] = ""
    #: The field that sets how much is kept (0..1]; "" where there is none (see `at_retention`).
    knob: ClassVar[str] = "retention"
    #: True where `reduce` needs the picture as the model made it: no other method may have reduced it before.
    whole_views: ClassVar[bool] = False
    #: True where the prompt's text has a say in which tokens are kept; what `tokenzoo list` says of it.
    text_aware: ClassVar[bool] = False
    #: What of a layer named by `kept` has run when tokens leave: all of it, or "attention" alone, so that its own MLP
    #: already works on what is left.
    acts_after: ClassVar[ActsAfter] = "layer"
    #: The same of an encoder layer named by `encoder_kept`: its attention alone, or the whole "layer".
    encoder_acts_after: ClassVar[ActsAfter] = "attention"
    #: True where later encoder layers add log(size) to the logits of each token's key: ToMe's proportional attention.
    proportional_attention: ClassVar[bool] = False

    def __post_init__(self) -> None:
        parameters.validate(self)
        self.check()

    def check(self) -> None:
        """Raise UserError where parameters contradict each other. Types and bounds were checked before."""

    def check_model(self, architecture: Architecture) -> None:
        """Raise UnsupportedError, before anything runs, where this method cannot work on this model."""

    # --- before the encoder -------------------------------------------------------------------------------------

    @property
    def picture_scale(self) -> float:
        """What each side of a picture or frame is multiplied by before the model's processor sees it; 1 leaves it as it is.

        Inputs are made outside the model, so a method that scales is applied with `tokenzoo.apply(..., scaled=True)` to inputs
        that were made so. The processor then decides how many tokens there are.
        """
        return 1.0

    # --- inside the vision encoder ------------------------------------------------------------------------------

    def encoder_kept(self, patches: int, architecture: Architecture) -> Mapping[int, int | None]:
        """In which encoder layers how many of a view's `patches` remain; CLS is in no count.

        The layers (from 0, up to `architecture.feature_layer`) must not depend on `patches`. None: the picture decides, for
        all views of an image or video alike. Encoders whose patches are joined on their grid behind them are refused.
        """
        return {}

    def encoder_pick(self, layer: EncoderLayer, count: int | None) -> torch.Tensor | Reduction:
        """Choose `count` tokens of each view: kept indices [views, count] in their new order, or a Reduction of them, whose
        tensors have a leading dimension for the views.

        They go on in this order, behind the CLS token. Not asked for where every token remains.
        """
        raise NotImplementedError

    # --- before the LLM -----------------------------------------------------------------------------------------

    def early(self, source: Source, architecture: Architecture) -> bool:
        """Whether `reduce` acts before the projector (on encoder features) rather than before the LLM (on embeddings)."""
        return False

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> Sequence[int] | int | None:
        """How many of the tokens in `views` remain: one number for each view, or one for all together.

        `views` are the tokens of each view (frame, or base view and tiles) at that moment, without structural ones
        (newlines), which the host keeps. None: the picture decides.
        """
        raise NotImplementedError

    def reduce(self, tokens: VisualTokens) -> torch.Tensor | Reduction:
        """Choose `tokens.left` of the tokens of one image or video: kept indices in their new order, or a Reduction.

        Called only where something is to be removed (or the picture decides).
        """
        raise NotImplementedError

    def encoder_layers(self, architecture: Architecture) -> Sequence[int]:
        """The encoder layers (from 0) whose attention, keys or features `reduce` reads; only these are recorded."""
        return ()

    # --- inside the LLM -----------------------------------------------------------------------------------------

    def kept(self, entered: int, layers: int) -> Mapping[int, int | None]:
        """After which decoder layers how many visual tokens remain, of `entered` that entered the LLM with `layers` layers.

        The layers (from 0) must not depend on `entered`. None: the picture decides. With `acts_after = "attention"` the last
        layer may be named too, and -1 is the place before layer 0.
        """
        return {}

    def score(self, layer: DecoderLayer) -> torch.Tensor:
        """How much each token is worth after this layer: one number for each token of the sequence, or each visual one.

        With `acts_after = "attention"` the layer's `hidden_states` are the residual stream between attention and MLP.
        The highest remain, in their order; of equal ones the first. Not asked for where no token, or every token, remains.
        """
        raise NotImplementedError

    def pick(self, layer: DecoderLayer, count: int | None) -> torch.Tensor | Reduction:
        """Choose `count` of the visual tokens after this layer: indices into them [count], or a Reduction of them.

        Override it instead of `score` where tokens are merged, or where `kept` says None.
        """
        if count is None:
            raise NotImplementedError(f"'{self.name}' leaves the count to the picture, so it must implement pick().")
        score = self.score(layer)
        if score.ndim != 1 or len(score) not in (len(layer.visual), len(layer.hidden_states)):
            total, visual = len(layer.hidden_states), len(layer.visual)
            raise InvalidReductionError(
                f"Method '{self.name}' ({layer.where}): score() gave numbers of shape {list(score.shape)}; it must "
                f"give one for each of the {total} tokens of the sequence, or for each of the {visual} visual ones."
            )
        return ops.top_indices(score if len(score) == len(layer.visual) else score[layer.visual], count)

    # --- the KV cache -------------------------------------------------------------------------------------------

    def cached(self, entered: int, layers: int) -> Mapping[int, int | None]:
        """How many visual tokens stay in the KV caches of decoder layers once the prompt is through: {layer: how many}.

        Text stays cached, and so does everything in a layer that is not named. `entered` and `layers` as in `kept`; the
        layers must not depend on `entered`. None: the picture decides, or the tokens that are left in the last layer.
        """
        return {}

    def pick_cached(self, layer: CachedLayer, count: int | None) -> torch.Tensor:
        """Choose `count` of the visual tokens in a layer's cache: indices into them [count].

        Not overridden, and where `cached` says None: those that are left in the last layer (`layer.alive()`).
        """
        if count is not None:
            raise NotImplementedError(f"'{self.name}' declares how many tokens stay cached, so it must implement pick_cached().")
        return layer.alive()

    def query_rows(self) -> int:
        """Of how many of the prompt's last tokens `pick_cached` reads the attention; only their queries are recorded."""
        return 0

    def read(self, entered: int, layers: int) -> Mapping[int, int | None]:
        """How many of their cached visual tokens decoder layers read in a decoding step: {layer: how many}.

        Nothing is deleted: the next step chooses anew. Text and what was generated is always read. None: the picture decides.
        """
        return {}

    def pick_read(self, step: CacheRead, count: int | None) -> torch.Tensor:
        """Choose `count` of the visual tokens that a layer would read in this step: indices into them [count].

        Asked before the layer runs, layer by layer. Wait for no value of a tensor here: it would slow every step.
        """
        raise NotImplementedError

    def read_layers(self, layers: int) -> Sequence[int]:
        """The decoder layers whose attention `pick_read` reads (`step.attention`); only their queries are recorded."""
        return ()

    # --- positions, knob, price ---------------------------------------------------------------------------------

    @property
    def entry_positions(self) -> PositionPolicy:
        """Position ids after the reductions ahead of the LLM: the parameter `position` where there is one, else renumbered."""
        return getattr(self, "position", "renumber")

    @property
    def layer_positions(self) -> PositionPolicy:
        """Position ids after a reduction inside the LLM: kept, or by `position` of a method that acts only there."""
        return "keep" if self.enters or self.acts_in_encoder else getattr(self, "position", "keep")

    @property
    def cache_positions(self) -> PositionPolicy:
        """Position ids of generated tokens in a layer whose cache was cut: "keep": they go on as if it had not been; "renumber":
        from the number of tokens that are left in it."""
        return "keep"

    def at_retention(self, retention: float, layers: int) -> TokenReducer:
        """Return this method set so that it keeps about `retention` (0..1] of the visual tokens by its own knob.

        `layers`: the model's decoder layers. Raises UnreachableError where no setting does.
        """
        if self.knob not in self.parameters:
            raise UnreachableError(f"'{self.name}' has no retention knob.")
        return self.replace(**{self.knob: retention})

    def calibrate(
        self,
        model: Any,
        calls: Sequence[Mapping[str, Any]],
        budget: float | None = None,
        visual: Sequence[Any] | None = None,
    ) -> TokenReducer:
        """Return this method fitted to a model, with the parameters that it finds on forward passes of it.

        `calls` are the keyword arguments of calls of `model`; `budget` is the share of the FLOPs to leave, where the method
        wants one; `visual` are the spans of a bare decoder, as in `tokenzoo.apply`. 'tokenzoo calibrate' makes a preset of it.
        """
        raise UnsupportedError(f"'{self.name}' has nothing to calibrate. Set its parameters, or search them: 'tokenzoo tune'.")

    def reduce_flops(
        self, views: tuple[int, ...], left: tuple[int, ...], source: Source, architecture: Architecture
    ) -> int | None:
        """Matrix products (2 per multiply-add) of one `reduce` in closed form, kept for speed.

        None, the default: they are counted on stand-ins of these shapes, which needs torch.
        """
        return None

    def score_flops(self, tokens: int, architecture: Architecture) -> int | None:
        """Matrix products of one `pick` (or `score`) over a sequence of `tokens`, text included; None as in `reduce_flops`."""
        return None

    def cached_flops(self, tokens: int, architecture: Architecture) -> int | None:
        """Matrix products of one `pick_cached` in a layer with `tokens` cached, text included; None as in `reduce_flops`."""
        return None if self.implements("pick_cached") else 0

    def read_flops(self, tokens: Sequence[int], architecture: Architecture) -> int | None:
        """Matrix products of all `pick_read` of one decoding step; `tokens`: cached in each layer, text and the new one included.

        None as in `reduce_flops`.
        """
        return None

    # --- derived ------------------------------------------------------------------------------------------------

    def implements(self, name: str) -> bool:
        """Whether this method defines `name` itself."""
        return getattr(type(self), name) is not getattr(TokenReducer, name)

    @property
    def acts(self) -> bool:
        """Whether it acts anywhere."""
        return self.acts_in_encoder or self.enters or self.acts_inside or self.caches or self.reads

    @property
    def acts_in_encoder(self) -> bool:
        """Whether it acts inside the vision encoder."""
        return self.implements("encoder_kept")

    @property
    def enters(self) -> bool:
        """Whether it acts between the encoder and the LLM."""
        return self.implements("reduce")

    @property
    def acts_inside(self) -> bool:
        """Whether it acts inside the LLM."""
        return self.implements("kept")

    @property
    def caches(self) -> bool:
        """Whether it decides what stays in the KV cache."""
        return self.implements("cached")

    @property
    def reads(self) -> bool:
        """Whether it decides what a decoding step reads."""
        return self.implements("read")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers after which, or after whose attention, it acts (-1: before layer 0).

        Raises UserError where nothing behind one of them would see fewer tokens.
        """
        return accounting.acting_layers(self, num_layers)

    @property
    def fixed_schedule(self) -> bool:
        """Whether the token counts are known without seeing the picture."""
        return accounting.is_fixed([self])

    def schedule(self, workload: Workload) -> list[int]:
        """Visual tokens entering each decoder layer; raises DataDependentError where the picture decides and none is recorded."""
        return accounting.schedule([self], workload)

    def mlp_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens that each decoder layer's MLP sees: fewer than enter the layer where they leave after its attention."""
        return accounting.mlp_schedule([self], workload)

    def cache_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens in each layer's KV cache after the prompt; raises DataDependentError as `schedule` does."""
        return accounting.cache_schedule([self], workload)

    def read_schedule(self, workload: Workload) -> list[int]:
        """Visual tokens that each layer reads in a decoding step; raises DataDependentError as `schedule` does."""
        return accounting.read_schedule([self], workload)

    def decode_overhead(self, workload: Workload, steps: int) -> tuple[int, int]:
        """FLOPs of the method's own matrix products in the first decoding step, and in `steps` of them."""
        return accounting.decode_overhead([self], workload, steps)

    def encoder_cuts(self, workload: Workload) -> list[tuple[EncoderCut, ...]]:
        """For each view of the workload where inside the encoder how many of its patches are left."""
        return accounting.encoder_cuts([self], workload)

    def projector_tokens(self, workload: Workload) -> int:
        """Visual tokens entering the projector."""
        return accounting.projector_tokens([self], workload)

    def decoder_tokens(self, workload: Workload) -> int:
        """Visual tokens entering the decoder: fewer may enter its layer 0, where the method acts before that."""
        return accounting.decoder_tokens([self], workload)

    def overhead(self, workload: Workload) -> int:
        """FLOPs of the method's own matrix products (2 per multiply-add)."""
        return accounting.overhead([self], workload)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with their values, in the order they are declared."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def replace(self, **changes: Any) -> TokenReducer:
        """Return a copy with some parameters changed, checked anew."""
        parameters.check_names(type(self), changes)
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        """The method with the parameters that differ from their defaults, as a spec: `fastv:K=3,R=0.75`."""
        return parameters.as_specification(self)
