"""What a cell's result depends on: its key in the store. Whatever changes here is measured anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
import transformers

import tokenzoo
from tokenzoo.bench.evaluate import MAX_NEW_TOKENS
from tokenzoo.bench.task import Task
from tokenzoo.bench.timing import environment
from tokenzoo.comparison.code import code_of, running_code
from tokenzoo.lmms.benchmark import Benchmark
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.files import folder_digest
from tokenzoo.models.question import Question

# Read once: what was imported goes on running, whatever becomes of its files.
_code_behind = cache(code_of)
_host_code = cache(running_code)


class Questions(list[Question]):
    """Questions as they are asked, with a digest of them, of their pictures' pixels and of the task's code.

    Every picture is read once for it, so what cannot be read is said (UserError) before anything is measured. `total` is
    how many will be asked: more than are here where a benchmark asks them itself.
    """

    def __init__(self, questions: Iterable[Question] = (), task: Task | None = None) -> None:
        super().__init__(questions)
        digest = hashlib.sha256(_code_behind(type(task)).encode() if task is not None else b"")
        for question in self:
            digest.update(repr((question.id, question.prompt, question.choices, question.answer)).encode())
            for picture in (*question.images, *question.video):
                digest.update(repr((picture.size, picture.mode)).encode())
                digest.update(picture.tobytes())
        self.digest = digest.hexdigest()[:16]
        self.benchmark = task if isinstance(task, Benchmark) else None
        self.total = len(self)


def accuracy_identity(
    checkpoint: Checkpoint,
    method: Pipeline,
    task: str,
    questions: Questions,
    seed: int,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, Any]:
    """Everything an accuracy cell's result depends on."""
    return {
        "kind": "accuracy",
        "model": checkpoint.name,
        "method": str(method),
        "task": task,
        "seed": seed,
        "questions": len(questions),
        "questions_digest": questions.digest,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        **_common(checkpoint, [method]),
    }


def timing_identity(
    checkpoint: Checkpoint, methods: dict[str, Pipeline], task: str, question: Question, rounds: int, new_tokens: int
) -> dict[str, Any]:
    """Everything a timing cell's result depends on, the machine included."""
    return {
        "kind": "timing",
        "model": checkpoint.name,
        "method": ", ".join(str(method) for method in methods.values()),
        "task": task,
        "seed": 0,
        "questions_digest": Questions([question]).digest,
        "rounds": rounds,
        "new_tokens": new_tokens,
        "environment": environment_of(checkpoint),
        **_common(checkpoint, list(methods.values())),
    }


def _common(checkpoint: Checkpoint, methods: Sequence[Pipeline]) -> dict[str, Any]:
    return {**model_facts(checkpoint), **code_facts(methods)}


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What results depend on of a model and of how it is run; of one that runs elsewhere, what was told of it there."""
    if checkpoint.elsewhere is not None:
        return dict(checkpoint.elsewhere["model"])
    return {
        "weights": _weights_digest(checkpoint),
        "processing": _processing_digest(checkpoint),
        "dtype": str(checkpoint.model.dtype),
        "device": checkpoint.model.device.type,
        "attention": str(getattr(checkpoint.model.config.get_text_config(), "_attn_implementation", "")),
    }


def environment_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What times depend on where the model runs."""
    return environment(checkpoint.model) if checkpoint.elsewhere is None else dict(checkpoint.elsewhere["environment"])


def code_facts(methods: Sequence[Pipeline]) -> dict[str, Any]:
    """What results depend on of the methods, of all code that runs and of the versions it stands on."""
    settings = [[str(reducer), reducer.parameters] for method in methods for reducer in method.reducers]
    classes: list[type] = [type(reducer) for method in methods for reducer in method.reducers]
    return {
        "settings": json.loads(json.dumps(settings, default=str)),
        "method_code": [_code_behind(cls) for cls in classes],
        "host_code": _host_code(),
        "versions": _versions(frozenset(cls.__module__ for cls in classes)),
    }


def _processing_digest(checkpoint: Checkpoint) -> str:
    """A digest of what makes a question into inputs, and logits into an answer, besides the weights."""
    parts = (checkpoint.processor, checkpoint.image_processor, checkpoint.model.generation_config)
    said = [part.to_json_string() for part in parts if part is not None]
    tokenizer = checkpoint.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = json.loads(backend.to_str()) if backend is not None else {"vocab": sorted(tokenizer.get_vocab().items())}
    words |= {"padding": None, "truncation": None}  # what the last call left there; the next sets its own
    said += [json.dumps(words), repr(tokenizer.special_tokens_map), repr(tokenizer.chat_template)]
    said.append(repr(getattr(checkpoint.processor, "chat_template", None)))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _weights_digest(checkpoint: Checkpoint) -> str:
    """A digest of the checkpoint's files; of a model that was not loaded from files, of every number it holds."""
    if checkpoint.folder is not None:
        return folder_digest(checkpoint.folder)
    digest = hashlib.sha256(checkpoint.model.config.to_json_string().encode())
    for name, weight in checkpoint.model.state_dict().items():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def _versions(modules: frozenset[str]) -> dict[str, str]:
    """The versions that a result depends on: ours, torch's, transformers', and those of the plugins' distributions."""
    versions = {"tokenzoo": tokenzoo.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    for module in modules:
        for name in _distributions().get(module.partition(".")[0], ()):
            versions[name] = version(name)
    return versions


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The installed distributions of each top-level package; reading them takes a second where many are installed."""
    return packages_distributions()
