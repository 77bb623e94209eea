"""What methods cost, from their declarations: who is given how many tokens and leaves how many, in the order in which they run.

One walk serves one method and several: a later one sees what the earlier ones left. All reductions inside the encoder
come first, then those before the projector, those before the LLM, and those inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenzoo.errors import UnsupportedError, UserError
from tokenzoo.method.reduction import HALVES, ActsAfter, DataDependentError
from tokenzoo.method.workload import Architecture, EncoderCut, Place, RecordedSource, Source, Workload

if TYPE_CHECKING:
    from tokenzoo.method.reducer import TokenReducer

Methods = Sequence["TokenReducer"]


@dataclass(frozen=True)
class EncoderStep:
    """One method's reduction of one image or video in an encoder layer: patches of each view before and after it."""

    method: TokenReducer
    layer: int
    after: ActsAfter
    views: tuple[int, ...]
    left: tuple[int, ...]
    free: bool = False

    @property
    def acts(self) -> bool:
        """Whether the method is asked, as in `EntryStep`."""
        return self.free or sum(self.left) < sum(self.views)


@dataclass(frozen=True)
class EntryStep:
    """One method's reduction of one image or video before the LLM.

    `views`: tokens of each view that it is given; `left`: of each view afterwards, or of all together as one number.
    `encoder`: what left inside the encoder before.
    """

    method: TokenReducer
    early: bool
    views: tuple[int, ...]
    left: tuple[int, ...]
    free: bool = False
    encoder: tuple[EncoderStep, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether it is asked: where something is to be removed, or the picture decides (`free`), even if all remain then."""
        return self.free or sum(self.left) < sum(self.views)


@dataclass(frozen=True)
class EntryAccount:
    """What becomes of one image or video before the LLM: tokens through the projector, into the LLM, the steps inside the
    encoder and behind it."""

    projected: int
    entered: int
    steps: tuple[EntryStep, ...]
    encoder: tuple[EncoderStep, ...] = ()

    def encoder_cuts(self, views: int) -> list[tuple[EncoderCut, ...]]:
        """Where how many patches of each of the `views` are left."""
        return [tuple(EncoderCut(step.layer, step.after, step.left[view]) for step in self.encoder) for view in range(views)]


def promised(method: TokenReducer, views: tuple[int, ...], source: Source, architecture: Architecture) -> tuple[int, ...] | None:
    """What `left` declares: tokens of each view, or of all together as one number; None where the picture decides.

    Raises UserError for a declaration that is impossible: counts that do not fit the views, or exceed them.
    """
    declared = method.left(views, source, architecture)
    if declared is None:
        return None
    counts = (declared,) if isinstance(declared, int) else tuple(declared)
    given = (sum(views),) if isinstance(declared, int) else views
    if len(counts) != len(given) or any(not 0 <= count <= most for count, most in zip(counts, given, strict=True)):
        raise UserError(f"'{method}' promises to leave {list(counts)} of the {list(given)} tokens of a source's views.")
    return counts


def check_whole(method: TokenReducer, untouched: bool, encoder: bool = False) -> None:
    """Raise UnsupportedError where a method that needs whole views comes after another one, be it inside the `encoder`."""
    if method.whole_views and encoder:
        raise UnsupportedError(
            f"'{method.name}' needs whole views, but another method drops or merges patches inside the encoder, which comes "
            "first whatever the order. Leave one of them out."
        )
    if method.whole_views and not untouched:
        raise UnsupportedError(
            f"'{method.name}' needs whole views, but another method was first. Write it first: '{method.name}+…'."
        )


def check_encoder(method: TokenReducer, architecture: Architecture) -> None:
    """Raise UnsupportedError where a method reads, or acts in, the encoder of a model of which only the decoder is known."""
    if architecture.encoder_layers and architecture.encoder_heads:
        return
    if method.acts_in_encoder or method.encoder_layers(architecture):
        does = "acts in" if method.acts_in_encoder else "reads"
        raise UnsupportedError(
            f"'{method.name}' {does} the vision encoder, and of '{architecture.name}' only the decoder is known. Choose an "
            "architecture with a vision tower; 'tokenzoo cost --list-architectures' lists them."
        )


def encoder_counts(method: TokenReducer, patches: int, architecture: Architecture) -> Mapping[int, int | None]:
    """What `encoder_kept` declares of a view; raises UserError for a layer or a count that cannot be."""
    declared = method.encoder_kept(patches, architecture)
    for layer, count in declared.items():
        if not 0 <= layer <= architecture.feature_layer:
            raise UserError(
                f"'{method}' would act in encoder layer {layer}, but the features that go to the projector leave the encoder "
                f"behind layer {architecture.feature_layer}. Run 'tokenzoo show {method.name}'."
            )
        if count is not None and count < min(1, patches):
            raise UserError(
                f"'{method}' promises to leave {count} of {patches} patches in encoder layer {layer}; one must remain."
            )
    return declared


def encoder_steps(
    methods: Methods, source: Source, architecture: Architecture, recorded: RecordedSource | None = None
) -> tuple[EncoderStep, ...]:
    """Follow one image or video through all methods that act inside the encoder."""
    acting = [method for method in methods if method.acts_in_encoder]
    for method in acting:
        check_encoder(method, architecture)
        if (source.merged or architecture.encoder_merge) > 1:
            raise UnsupportedError(
                f"'{method.name}' drops or merges patches inside the encoder of '{architecture.name}', which joins neighbouring "
                "patches on their grid behind it; what is left is no grid. Take a method that acts behind the encoder."
            )
    if not acting:
        return ()
    views = source.before_projector
    counts = [{patches: encoder_counts(method, patches, architecture) for patches in set(views)} for method in acting]
    remembered = iter(recorded.encoder if recorded else ())
    steps: list[EncoderStep] = []
    present = views
    for layer in range(architecture.feature_layer + 1):
        for half in HALVES:
            for method, declared in zip(acting, counts, strict=True):
                if method.encoder_acts_after != half or not views or layer not in declared[views[0]]:
                    continue
                known, free = next(remembered, None), False
                left: tuple[int, ...] = ()
                for now, patches in zip(present, views, strict=True):
                    count = declared[patches][layer]
                    if count is None:
                        count, free = known, True
                    if count is None:
                        raise DataDependentError(f"'{method.name}' keeps as many patches as the picture asks for.")
                    left += (min(now, count),)
                steps.append(EncoderStep(method, layer, half, present, left, free))
                present = left
    return tuple(steps)


def entry_account(
    methods: Methods, source: Source, architecture: Architecture, recorded: RecordedSource | None = None
) -> EntryAccount:
    """Follow one image or video through all methods that act before the LLM.

    `recorded` tells what the picture decided; without it such a count raises DataDependentError.
    """
    entering = [method for method in methods if method.enters]
    early = [method for method in entering if method.early(source, architecture)]
    remembered = iter(recorded.steps if recorded else ())
    encoder = encoder_steps(methods, source, architecture, recorded)
    views = encoder[-1].left if encoder else source.before_projector
    inside = any(step.acts for step in encoder)
    steps: list[EntryStep] = []
    for phase in (early, [method for method in entering if method not in early]):
        is_early = phase is early
        for method in phase:
            check_whole(method, not any(step.acts for step in steps), inside)
            views = _known(views, steps, method)
            known = next(remembered, None)
            left = promised(method, views, source, architecture)
            free = left is None
            if known is not None and (left is None or len(left) != len(views)):
                left = known
            if left is None:
                raise DataDependentError(f"'{method.name}' keeps as many tokens as the picture asks for.")
            steps.append(EntryStep(method, is_early, views, left, free, encoder if inside else ()))
            views = left if sum(left) < sum(views) else views
        if is_early:
            projected, cut = sum(views), inside or any(step.acts for step in steps)
            views = views if cut else source.view_tokens
    structural = structural_left(source) if cut else source.structural
    return EntryAccount(projected + source.through, sum(views) + structural, tuple(steps), encoder)


def _known(views: tuple[int, ...], steps: Sequence[EntryStep], method: TokenReducer) -> tuple[int, ...]:
    """The views a method is given; only their sum is known where the method before it chose freely among several."""
    if steps and len(views) < len(steps[-1].views):
        raise DataDependentError(
            f"'{steps[-1].method.name}' chooses freely among the views, so what '{method.name}' is given depends on the picture."
        )
    return views


def structural_left(source: Source) -> int:
    """Structural tokens (newlines) left where a source was reduced before the projector.

    Tiles and pooled frames are no grid any more then, so the newlines that end its rows are dropped. One final newline stays,
    and so do CLS tokens.
    """
    one_view = len(source.before_projector) == 1 and source.before_projector == source.view_tokens
    return source.structural if source.structural <= 1 or one_view or source.through else 0


def entry_accounts(methods: Methods, workload: Workload) -> list[EntryAccount]:
    """`entry_account` of each image and video of a workload."""
    scaling = next((method for method in methods if method.picture_scale != 1), None)
    if scaling is not None and workload.recorded is None and workload.sources:
        raise DataDependentError(f"'{scaling.name}' makes pictures smaller, and the model's processor decides their tokens.")
    recorded: Sequence[RecordedSource | None] = workload.recorded.sources if workload.recorded else [None] * len(workload.sources)
    pairs = zip(workload.sources, recorded, strict=True)
    return [entry_account(methods, source, workload.architecture, known) for source, known in pairs]


def acting_layers(method: TokenReducer, layers: int) -> tuple[int, ...]:
    """The decoder layers after which, or after whose attention, a method acts, ascending.

    Raises UserError for one behind which nothing would see fewer tokens.
    """
    inside = method.acts_after == "attention"
    acting = tuple(sorted(method.kept(0, layers)))
    for layer in acting:
        if layer < -inside:
            first = "-1 is the place before layer 0" if inside else "layers are counted from 0"
            raise UserError(f"'{method}' would act after layer {layer}; {first}.")
        if layer >= layers - 1 + inside:
            raise UserError(
                f"'{method}' would act after layer {layer}, but of the model's {layers} layers the last is {layers - 1}: no "
                f"layer would see fewer tokens. Run 'tokenzoo show {method.name}'."
            )
    return acting


def check_layers(method: TokenReducer, architecture: Architecture) -> None:
    """Raise UnsupportedError, before anything runs, where a method acts inside an LLM at layers where it cannot.

    A layer without keys of its own has no attention to read. A token must not be dropped between a layer whose keys later
    ones read and those.
    """
    layers = architecture.layers
    keyless = [index for index in range(layers) if not architecture.has_keys(index)]
    if not keyless or not method.acts_inside:
        return
    acting, sources = acting_layers(method, layers), architecture.shared_sources
    late = [layer for layer in acting if sources and layer >= sources[0]]
    if late:
        raise UnsupportedError(
            f"'{method}' drops tokens after decoder layer {late[0]}, but the last {architecture.shared_kv_layers} layers read "
            f"keys and values of layers {_listed(sources)}, which would still hold them. Methods may act after layers 0 to "
            f"{sources[0] - 1}; see 'tokenzoo show {method.name}'."
        )
    wrong = sorted(_counted().attention_read(method, architecture) & set(keyless))
    if wrong:
        able = [index for index in range(layers) if architecture.has_keys(index)]
        raise UnsupportedError(
            f"'{method}' reads the attention of decoder layer {wrong[0]}, which has no attention map. Layers with one are "
            f"{_listed(able)} of {layers}, counted from 0. Choose its layers by them ('tokenzoo show {method.name}'), or a "
            "method that acts before the LLM."
        )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _inside(methods: Methods, entered: int, layers: int) -> Iterator[tuple[int, int, int | None]]:
    """(layer, number of the method, tokens left after it) in the order in which the methods act: after a layer's attention, then
    after it."""
    kept: list[tuple[int, ActsAfter, Mapping[int, int | None]]] = []
    for number, method in enumerate(methods):
        if method.acts_inside:
            acting_layers(method, layers)
            kept.append((number, method.acts_after, method.kept(entered, layers)))
    for layer in range(-1, layers):
        for half in HALVES:
            for number, after, counts in kept:
                if after == half and layer in counts:
                    yield layer, number, counts[layer]


def _walk(methods: Methods, workload: Workload) -> Iterator[tuple[int, TokenReducer, int, int, bool]]:
    """(layer, method, tokens before, tokens after, whether the method is asked which) for every reduction inside the LLM that
    removes something, or might. It is not asked where none is to be left, unless the picture decides that."""
    layers = workload.architecture.layers
    present = entered = decoder_tokens(methods, workload)
    for layer, number, count in _inside(methods, entered, layers):
        if not present:
            return
        method, free = methods[number], count is None
        if count is None:
            count = _recorded(methods, number, layer, method.acts_after, present, workload)
        if count < present or free:
            yield layer, method, present, min(count, present), free or count > 0
            present = min(count, present)


def _recorded(methods: Methods, number: int, layer: int, where: Place, present: int, workload: Workload) -> int:
    """How many of the `present` tokens a method left where the picture decides: the recorded run tells."""
    if workload.recorded is None:
        raise DataDependentError(f"'{methods[number].name}' keeps as many tokens as the picture asks for.")
    return workload.recorded.left(number, layer, where, present)


def schedule(methods: Methods, workload: Workload) -> list[int]:
    """Visual tokens entering each decoder layer.

    Raises DataDependentError where a count depends on the picture and `workload.recorded` is None.
    """
    return _schedules(methods, workload)[0]


def mlp_schedule(methods: Methods, workload: Workload) -> list[int]:
    """Visual tokens that the MLP of each decoder layer sees; raises as `schedule`."""
    return _schedules(methods, workload)[1]


def _schedules(methods: Methods, workload: Workload) -> tuple[list[int], list[int]]:
    """Visual tokens in the attention, and in the MLP, of each decoder layer."""
    layers = workload.architecture.layers
    entered = decoder_tokens(methods, workload)
    attention, mlp = [entered] * layers, [entered] * layers
    for layer, method, _, after, _ in _walk(methods, workload):
        attention[layer + 1 :] = [after] * (layers - layer - 1)
        first = max(layer, 0) if method.acts_after == "attention" else layer + 1
        mlp[first:] = [after] * (layers - first)
    return attention, mlp


def named_layers(method: TokenReducer, layers: int, counts: Mapping[int, int | None], what: str) -> tuple[int, ...]:
    """The decoder layers of a declaration, ascending; raises UserError for one that the model has not."""
    for layer in counts:
        if not 0 <= layer < layers:
            raise UserError(
                f"'{method}' would {what} layer {layer}, but the model's {layers} layers are 0 to {layers - 1}. Run 'tokenzoo "
                f"show {method.name}'."
            )
    return tuple(sorted(counts))


def cache_layers(method: TokenReducer, layers: int) -> tuple[int, ...]:
    """The decoder layers whose KV cache a method cuts, ascending."""
    return named_layers(method, layers, method.cached(0, layers), "cut the cache of")


def read_layers(method: TokenReducer, layers: int) -> tuple[int, ...]:
    """The decoder layers that read a part of their cache only, ascending; raises UserError where one is to be read that has not
    run by then."""
    reading = named_layers(method, layers, method.read(0, layers), "choose what is read in")
    for layer in named_layers(method, layers, dict.fromkeys(method.read_layers(layers)), "read the attention of"):
        if reading and layer >= reading[0]:
            raise UserError(
                f"'{method}' chooses what layer {reading[0]} reads by the attention of layer {layer}, which has not run by then."
            )
    return reading


def cache_schedule(methods: Methods, workload: Workload) -> list[int]:
    """Visual tokens in each layer's KV cache after the prompt; raises DataDependentError as `schedule` does."""
    visual = schedule(methods, workload)
    left = list(visual)
    for cut in _cuts(methods, workload, visual):
        left[cut.layer] = cut.after
    return left


@dataclass(frozen=True)
class CacheStep:
    """One method's choice among the visual tokens in one layer's cache: how many it is given, how many it leaves.

    `asked`: whether it is asked which; not where none is to be left.
    """

    method: TokenReducer
    layer: int
    before: int
    after: int
    asked: bool


def _cuts(methods: Methods, workload: Workload, visual: Sequence[int]) -> Iterator[CacheStep]:
    """Every cut of a layer's cache after the prompt, of which `visual` tokens entered the layers."""
    present, entered = list(visual), decoder_tokens(methods, workload)
    for number, method in enumerate(methods):
        if method.caches:
            cache_layers(method, len(present))
            for layer, count in sorted(method.cached(entered, len(present)).items()):
                known = visual[-1] if count is None and not method.implements("pick_cached") else count
                yield from _choice(methods, number, layer, present, known, "cache", workload)


def _choice(
    methods: Methods, number: int, layer: int, present: list[int], count: int | None, where: Place, workload: Workload
) -> Iterator[CacheStep]:
    """A method's choice of `count` of the tokens `present` in a layer, where one is made; of a None the recorded run tells."""
    before = present[layer]
    if not before:
        return
    left = _recorded(methods, number, layer, where, before, workload) if count is None else count
    after = max(0, min(left, before))
    if count is None or after < before:
        yield CacheStep(methods[number], layer, before, after, asked=count is None or after > 0)
        present[layer] = after


def read_schedule(methods: Methods, workload: Workload) -> list[int]:
    """Visual tokens that each layer reads in a decoding step; raises DataDependentError as `schedule` does."""
    counts = cache_schedule(methods, workload)
    for choice in _reads(methods, workload, tuple(counts)):
        counts[choice.layer] = choice.after
    return counts


def _reads(methods: Methods, workload: Workload, cached: Sequence[int]) -> Iterator[CacheStep]:
    """Every choice of a decoding step, layer by layer, among the `cached` tokens of each."""
    present, reading = list(cached), [(number, method) for number, method in enumerate(methods) if method.reads]
    if not reading:
        return
    entered = decoder_tokens(methods, workload)
    counts = [(number, method.read(entered, len(present))) for number, method in reading if read_layers(method, len(present))]
    for layer in range(len(present)):
        for number, declared in counts:
            if layer in declared:
                yield from _choice(methods, number, layer, present, declared[layer], "read", workload)


def decode_overhead(methods: Methods, workload: Workload, steps: int) -> tuple[int, int]:
    """FLOPs of the methods' own matrix products in the first decoding step, and in `steps` of them.

    Where they are counted, the first step and the last one are: in between they grow with the tokens, as attention does.
    """
    if not steps or not any(method.reads for method in methods):
        return 0, 0
    cached = cache_schedule(methods, workload)
    asked = [choice for choice in _reads(methods, workload, cached) if choice.asked]
    first = total = 0
    for method in methods:
        own = tuple(choice for choice in asked if choice.method is method)
        if own:
            ends = [_read_flops(method, own, cached, workload, step) for step in (0, steps - 1)]
            first, total = first + ends[0], total + steps * sum(ends) // 2
    return first, total


def _read_flops(
    method: TokenReducer, choices: tuple[CacheStep, ...], cached: Sequence[int], workload: Workload, step: int
) -> int:
    tokens = [count + workload.text_tokens + step + 1 for count in cached]
    known = method.read_flops(tokens, workload.architecture)
    return _counted().read_flops(method, choices, tokens, step, workload) if known is None else known


def encoder_cuts(methods: Methods, workload: Workload) -> list[tuple[EncoderCut, ...]]:
    """For each view of the workload, source after source, where inside the encoder how many of its patches are left."""
    accounts = entry_accounts(methods, workload)
    pairs = zip(workload.sources, accounts, strict=True)
    return [cuts for source, account in pairs for cuts in account.encoder_cuts(len(source.before_projector))]


def projector_tokens(methods: Methods, workload: Workload) -> int:
    """Visual tokens entering the projector."""
    return sum(account.projected for account in entry_accounts(methods, workload))


def decoder_tokens(methods: Methods, workload: Workload) -> int:
    """Visual tokens entering the decoder: fewer may enter its layer 0, where methods act before that."""
    return sum(account.entered for account in entry_accounts(methods, workload))


def overhead(methods: Methods, workload: Workload) -> int:
    """FLOPs of the methods' own matrix products, as they run: each on what the methods before it left."""
    if workload.recorded is not None and workload.recorded.flops is not None:
        return workload.recorded.flops
    flops = 0
    accounts = entry_accounts(methods, workload)
    for source, account in zip(workload.sources, accounts, strict=True):
        for method in methods:
            cuts = tuple(cut for cut in account.encoder if cut.method is method and cut.acts and any(cut.views))
            flops += _counted().encoder_flops(method, cuts, source, workload) if cuts else 0
        for step in account.steps:
            if step.acts:
                flops += _reduce_flops(step, source, workload)
    entered = sum(account.entered for account in accounts)
    picks = [(method, layer, before, after) for layer, method, before, after, asked in _walk(methods, workload) if asked]
    for method in methods:
        own = [(layer, before, after) for owner, layer, before, after in picks if owner is method]
        flops += _pick_flops(method, entered, own, workload) if own else 0
    return flops + _cache_flops(methods, workload)


def _cache_flops(methods: Methods, workload: Workload) -> int:
    """Matrix products of the choices of what stays cached."""
    if not any(method.caches for method in methods):
        return 0
    visual, entered = schedule(methods, workload), decoder_tokens(methods, workload)
    flops = 0
    for cut in _cuts(methods, workload, visual):
        if cut.asked:
            cached = visual[cut.layer]  # what another method cut from the cache before is attended to all the same
            known = cut.method.cached_flops(workload.text_tokens + cached, workload.architecture)
            flops += _counted().cache_flops(cut, cached, entered, workload) if known is None else known
    return flops


def _pick_flops(method: TokenReducer, entered: int, steps: Sequence[tuple[int, int, int]], workload: Workload) -> int:
    architecture = workload.architecture
    known = [method.score_flops(workload.text_tokens + before, architecture) for _, before, _ in steps]
    if not architecture.uniform or any(flops is None for flops in known):
        return _counted().pick_flops(method, entered, tuple(steps), workload)
    return sum(flops or 0 for flops in known)


def _reduce_flops(step: EntryStep, source: Source, workload: Workload) -> int:
    known = step.method.reduce_flops(step.views, step.left, source, workload.architecture)
    if known is not None and not step.encoder:  # a closed form is told of whole encoders alone
        return known
    check_encoder(step.method, workload.architecture)
    return _counted().reduce_flops(step, source, workload)


def _counted():  # type: ignore[no-untyped-def]
    """Counting needs torch, which a closed form does not."""
    from tokenzoo.method import own_work

    return own_work


#: A picture and a video of no model in particular, to see whether a method's counts need to look at them.
_PROBE = Architecture(
    "probe", 64, 32, 4, 4, 128, 100, encoder_hidden=32, encoder_layers=24, encoder_heads=4, feature_layer=22, has_cls=True
)


def is_fixed(methods: Methods) -> bool:
    """Whether the token counts of these methods are known without seeing the picture."""
    for source in (Source("image", (576,), grids=((24, 24),)), Source("video", (196, 196), grids=((14, 14),) * 2)):
        try:
            read_schedule(methods, Workload(_PROBE, (source,), 1))
        except DataDependentError:
            return False
        except UserError:
            continue
    return True
