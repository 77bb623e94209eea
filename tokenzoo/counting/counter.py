"""Count a real forward with fvcore: a handler for everything that costs, an error for what has none.

fvcore by itself counts a fused multiply-add as 1, has no handler for `scaled_dot_product_attention` and only logs the
operators it does not know; numbers built on it silently lack the attention. Here matrix products and convolutions
count 2 per multiply-add, element-wise work is a column of its own, and an operator that is in none of the lists below
raises `UncountedOperationError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import nn

from tokenzoo.errors import FailedError

#: Name of the scope in which a method's own work is traced.
METHOD = "method"

#: Operators that move, select or describe numbers, or make masks and positions; they compute nothing.
FREE = frozenset(
    """
    Int Bool Float IntImplicit ScalarImplicit FloatImplicit Size __getitem__ __contains__ __is__ __isnot__ __not__
    alias arange argsort argwhere as_strided bincount bucketize broadcast_tensors cat chunk clone complex constant_pad_nd
    contiguous copy copy_ cpu detach device diagonal dropout embedding empty empty_like empty_strided equal expand
    expand_as eye feature_dropout fill fill_ flatten flip floor_divide full full_like gather hstack index index_copy index_fill
    index_copy_ index_put index_put_ index_select is_floating_point is_nonzero isin item len lift_fresh lift linspace
    masked_fill masked_fill_ masked_scatter masked_scatter_ masked_select meshgrid movedim narrow new_empty new_full
    new_ones new_zeros nonzero nonzero_numpy numel one_hot ones ones_like pad permute pin_memory pixel_shuffle
    rand rand_like randint randn randn_like randperm ravel reflect repeat repeat_interleave requires_grad_ reshape
    resolve_conj resolve_neg roll rot90 scalar_tensor scatter scatter_ searchsorted select select_scatter size slice
    slice_scatter sort split split_with_sizes squeeze squeeze_ stack stride sym_size t take take_along_dim tensor
    tensor_split tile to topk transpose tril tril_indices triu triu_indices type_as unbind unflatten unfold
    unique unique_consecutive unique_dim _unique2 unsafe_chunk unsafe_split unsqueeze unsqueeze_ view view_as vstack
    adjoint atleast_1d atleast_2d block_diag chunk column_stack diag diag_embed dsplit fill_diagonal_ hsplit mH mT
    matrix_H moveaxis numpy_T positive put_ select_copy swapaxes swapdims vsplit view_as_complex view_as_real
    warn where zero zero_ zeros zeros_like _local_scalar_dense _shape_as_tensor _to_copy _unsafe_view scatter_reduce_
    """.split()  # noqa: SIM905
)

#: Factorisations of thin matrices are no matrix products and count as element-wise work, far too low: a QR of [m, n] takes
#: about 2 m n^2 operations. Next to the products they stand between they are few.
_FACTORISATIONS = dict.fromkeys(("linalg_qr", "linalg_svd"), 1)

#: Element-wise work and reductions: operations per element of the larger of input and output.
ELEMENTWISE: dict[str, int] = {
    **dict.fromkeys(
        """
        abs abs_ acos add add_ addcdiv addcmul all amax amin any aminmax argmax argmin atan atan2 bitwise_and
        bitwise_and_ bitwise_not bitwise_or bitwise_xor __and__ __or__ __ior__ __iand__ __xor__ __rshift__ __lshift__ ceil ceil_
        clamp
        clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ cos count_nonzero cummax cumprod cumsum diff div div_
        eq exp exp_ fmod frac floor floor_ ge gt histc index_add index_add_ isfinite isinf isnan kthvalue le lerp log log1p
        log2 logical_and logical_not logical_or logical_xor lt max maximum mean median min minimum mul mul_ neg ne
        nan_to_num norm linalg_vector_norm pow pow_ prod quantile reciprocal relu relu_ remainder remainder_ round rsqrt
        rsub rsub_ scatter_add scatter_add_ scatter_reduce segment_reduce sigmoid sign sin sqrt sqrt_ square std sub
        sub_ sum tan tanh true_divide trunc var var_mean std_mean bernoulli exponential exponential_ multinomial
        avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d max_pool1d max_pool2d
        upsample_nearest2d
        """.split(),  # noqa: SIM905
        1,
    ),
    **{"softmax": 5, "_softmax": 5, "log_softmax": 5, "logsumexp": 4, "cosine_similarity": 6, "normalize": 4},
    **{"silu": 4, "silu_": 4, "gelu": 8, "quick_gelu": 4, "softplus": 4, "erf": 4, "mish": 6, "hardswish": 4},
    **_FACTORISATIONS,
    **{"layer_norm": 7, "native_layer_norm": 7, "rms_norm": 4, "group_norm": 7, "batch_norm": 2},
    **{"upsample_bilinear2d": 7, "upsample_bicubic2d": 31, "grid_sampler": 7, "cdist": 3, "pdist": 3},
}


class UncountedOperationError(FailedError):
    """An operator ran for which nobody has said what it costs."""


def shape(value: Any) -> list[int]:
    """The shape of a traced tensor; raises UncountedOperationError where the trace does not know it."""
    if not value.isCompleteTensor():
        raise UncountedOperationError(f"The trace does not know the shape of '{value.debugName()}'.")
    return [int(size) for size in value.type().sizes()]


def _products(out: list[int], inner: int) -> int:
    return 2 * math.prod(out) * inner


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return _products(shape(outputs[0]), shape(inputs[0])[-1])


def _addmm(inputs: list[Any], outputs: list[Any]) -> int:
    return _products(shape(outputs[0]), shape(inputs[1])[-1])


def _triangular(inputs: list[Any], outputs: list[Any]) -> int:
    """n² m for a triangle [..., n, n] and m right-hand sides."""
    return math.prod(shape(outputs[0])) * shape(inputs[0])[-1]


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    return _products(shape(outputs[0]), math.prod(shape(inputs[2])[1:]))


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Weight [out, in / groups, *kernel]; for a transposed one the products are per input element."""
    transposed = outputs[0].node().kind() in ("aten::_convolution", "aten::convolution") and inputs[6].toIValue()
    weight = shape(inputs[1])
    return _products(shape(inputs[0] if transposed else outputs[0]), math.prod(weight[1:]))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products over the full square, whatever the mask: q [..., m, d], k [..., n, d], v [..., n, e]."""
    query, key, value = (shape(tensor) for tensor in inputs[:3])
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Two operands: 2 per multiply-add over every distinct index; one operand: no product."""
    tensors = [shape(tensor) for tensor in inputs[1].node().inputs()]
    if len(tensors) == 1:
        return 0
    terms = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    if len(tensors) != 2 or "." in "".join(terms):
        raise UncountedOperationError(f"einsum '{inputs[0].toIValue()}' has no handler: write it as matmul.")
    return 2 * math.prod(
        {
            index: size for term, sizes in zip(terms, tensors, strict=True) for index, size in zip(term, sizes, strict=True)
        }.values()
    )


#: Operators of matrix products and convolutions, as in the definition of convention `exact`.
PRODUCTS = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot", "inner", "vdot", "linalg_matmul", "_grouped_mm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), _addmm),
    **dict.fromkeys(("_convolution", "convolution", "_convolution_mode", "conv1d", "conv2d", "conv3d"), _convolution),
    "linalg_solve_triangular": _triangular,
    "bilinear": _bilinear,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}


def _in_method(outputs: list[Any]) -> bool:
    return METHOD in outputs[0].node().scopeName().split("/")


def _product_handle(name: str) -> Any:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter({f"{METHOD if _in_method(outputs) else 'model'} {name}": PRODUCTS[name](inputs, outputs)})

    return handle


def _elementwise_handle(name: str) -> Any:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        sizes = [math.prod(shape(value)) for value in (*inputs[:1], *outputs) if value.isCompleteTensor()]
        return Counter({f"elementwise {name}": ELEMENTWISE[name] * max(sizes, default=1)})

    return handle


@contextmanager
def method_scope() -> Iterator[None]:
    """Whatever is traced inside belongs to the method, not to the module in whose hook it runs."""
    state = torch._C._get_tracing_state()
    if state:
        state.push_scope(METHOD)
    try:
        yield
    finally:
        if state:
            state.pop_scope()


class FlopCounter(JitModelAnalysis):
    """fvcore's analysis with tokenzoo's handlers: `products()` are FLOPs (2 per multiply-add) by module."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__(model, inputs)
        self.set_op_handle(**{f"aten::{name}": _product_handle(name) for name in PRODUCTS})
        self.set_op_handle(**{f"aten::{name}": _elementwise_handle(name) for name in ELEMENTWISE})
        self.set_op_handle(**{f"aten::{name}": None for name in FREE})
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")

    def counts(self) -> dict[str, Counter[str]]:
        """Counts by module and operator, each prefixed with "model", "method" or "elementwise".

        Raises UncountedOperationError where an operator ran that has no handler.
        """
        with torch.no_grad():
            counts = self.by_module_and_operator()
        unknown = self.unsupported_ops()
        if unknown:
            names = ", ".join(f"{name} ({times} times)" for name, times in sorted(unknown.items()))
            raise UncountedOperationError(
                f"No handler for {names}: the count would be wrong. Add it to PRODUCTS, ELEMENTWISE or FREE in "
                f"tokenzoo/cost/counter.py."
            )
        return counts
