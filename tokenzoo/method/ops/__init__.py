"""Pure tensor maths that methods share. Nothing here knows models, hooks or methods.

Functions named `*_flops` are the closed forms of the matrix products (2 per multiply-add) that their partner executes;
they need no torch.
"""

from tokenzoo.method.ops.attention import (
    attention_flops,
    attention_weights,
    encoder_attention,
    encoder_attention_flops,
    pagerank,
    pagerank_flops,
    rows_at_once,
)
from tokenzoo.method.ops.clustering import Clusters, density_peaks, dpc_knn, squared_distances
from tokenzoo.method.ops.directions import principal_directions, principal_directions_flops
from tokenzoo.method.ops.dpp import dpp_map
from tokenzoo.method.ops.greedy import cosine_similarity, farthest_first, max_coverage
from tokenzoo.method.ops.groups import apportion, top_of_groups
from tokenzoo.method.ops.merging import Match, bipartite_match, mean_by_assignment, merge_flops, merge_views
from tokenzoo.method.ops.picking import alike, average_pool, pick_views, share_of, top_indices, uniform_indices
from tokenzoo.method.ops.video import frame_segments, frame_similarity, static_windows

__all__ = [
    "Clusters",
    "Match",
    "alike",
    "apportion",
    "attention_flops",
    "attention_weights",
    "average_pool",
    "bipartite_match",
    "cosine_similarity",
    "density_peaks",
    "dpc_knn",
    "dpp_map",
    "encoder_attention",
    "encoder_attention_flops",
    "farthest_first",
    "frame_segments",
    "frame_similarity",
    "max_coverage",
    "mean_by_assignment",
    "merge_flops",
    "merge_views",
    "pagerank",
    "pagerank_flops",
    "pick_views",
    "principal_directions",
    "principal_directions_flops",
    "rows_at_once",
    "share_of",
    "squared_distances",
    "static_windows",
    "top_indices",
    "top_of_groups",
    "uniform_indices",
]
