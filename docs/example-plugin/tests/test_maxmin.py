"""DivPrune keeps tokenzoo's guarantees and chooses what its definition says."""

import pytest
import torch
from tokenzoo_divprune import DivPrune, farthest_first

from tokenzoo.testing import contract_tests, decide, visual_tokens

test_contract = contract_tests(DivPrune(ratio=0.25))


def by_definition(features: torch.Tensor, count: int) -> list[int]:
    """Word for word, one comparison at a time."""
    unit = features / features.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    others = [[distance[i, j].item() for j in range(len(unit)) if j != i] for i in range(len(unit))]
    chosen = [max(range(len(unit)), key=lambda i: min(others[i]))]
    while len(chosen) < count:
        left = [i for i in range(len(unit)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(distance[i, j].item() for j in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize(("tokens", "count"), [(40, 10), (9, 9), (5, 1), (30, 29)])
def test_the_greedy_choice(tokens: int, count: int) -> None:
    features = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(tokens))
    assert farthest_first(features, count).tolist() == by_definition(features, count)


def test_equal_tokens_are_kept_once() -> None:
    features = torch.eye(4).repeat(5, 1)
    kept = decide(DivPrune(ratio=0.2), visual_tokens(features, (4, 5)))
    assert len({tuple(features[i].tolist()) for i in kept}) == 4
