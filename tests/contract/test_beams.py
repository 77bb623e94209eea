"""Beam search with tokens dropped: each beam's score is what the mask oracle gives its sequence."""

from __future__ import annotations

import pytest
import torch
from selection import crossed
from tiny_clip import build

import tokenzoo
from tokenzoo import UnsupportedError
from tokenzoo.testing.case import run, sample_rows
from tokenzoo.testing.check import tiny_case
from tokenzoo.testing.inputs import words
from tokenzoo.testing.oracle import oracle_logits
from tokenzoo.testing.positions import oracle_sample
from tokenzoo.testing.recorder import watch
from tokenzoo.zoo.plugins import load_zoo

LAYERS, BEAMS, TOKENS = 12, 3, 5
METHODS = load_zoo(plugin_files=(), registry_files=()).names()
FAMILIES = ["llava", "llava-onevision", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "gemma3", "gemma4"]


@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, METHODS, every=3))
def test_beams(family: str, method: str) -> None:
    case = tiny_case(family, "left", layers=LAYERS)
    reducers = build(method)
    try:
        greedy = run(case, [watch(reducer, number) for number, reducer in enumerate(reducers)])
    except UnsupportedError:
        pytest.skip("The method says that it cannot work on this model.")
    with tokenzoo.apply(case.model, list(reducers), **words(case.inputs)) as running, torch.no_grad():
        made = case.model.generate(
            **{name: value.clone() for name, value in case.inputs.items()},
            num_beams=BEAMS,
            do_sample=False,
            max_new_tokens=TOKENS,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        trace = running.trace
    counts = [len(sample.entry) for sample in greedy.trace.samples]
    for index, sample in enumerate(greedy.trace.samples):
        assert all(trace.samples[BEAMS * index + beam] == sample for beam in range(BEAMS))
        generated = made.sequences[index, -TOKENS:]
        entered = greedy.entry[index, sample_rows(case, counts[index], max(counts))]
        logits = oracle_logits(
            case.model,
            case.decoder,
            case.prompt,
            index,
            oracle_sample(case, greedy, index, reducers, entered),
            generated[:-1],
        )[-TOKENS:]
        expected = logits.log_softmax(-1).gather(1, generated[:, None]).sum()
        assert made.sequences_scores[index].item() == pytest.approx(expected.item(), abs=1e-3)
