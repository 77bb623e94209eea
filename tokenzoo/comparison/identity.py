"""What a cell's result depends on: its key in the store. Whatever changes here is measured anew."""

from __future__ import annotations

import hashlib
import inspect
import json
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import tokenzoo
from tokenzoo.bench.timing import environment
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.models.checkpoint import Checkpoint
from tokenzoo.models.question import Question

#: The modules of `bench` that a result depends on; tasks are in the questions' digest.
_BENCH = ("evaluate", "timing", "memory", "task")
_FINGERPRINTS: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()


class Questions(list[Question]):
    """Questions as they are asked, with a digest of them and of their pictures' pixels.

    Every picture is read once for it, so what cannot be read is said (UserError) before anything is measured.
    """

    def __init__(self, questions: Iterable[Question] = ()) -> None:
        super().__init__(questions)
        digest = hashlib.sha256()
        for question in self:
            digest.update(repr((question.id, question.prompt, question.choices, question.answer)).encode())
            for picture in (*question.images, *question.video):
                digest.update(repr((picture.size, picture.mode)).encode())
                digest.update(picture.tobytes())
        self.digest = digest.hexdigest()[:16]


def accuracy_identity(
    checkpoint: Checkpoint, method: Pipeline, task: str, questions: Questions, seed: int, batch_size: int
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
        "labels": list(methods),
        "questions_digest": Questions([question]).digest,
        "rounds": rounds,
        "new_tokens": new_tokens,
        "environment": environment(checkpoint.model),
        **_common(checkpoint, list(methods.values())),
    }


def _common(checkpoint: Checkpoint, methods: Sequence[Pipeline]) -> dict[str, Any]:
    settings = [[str(reducer), reducer.parameters] for method in methods for reducer in method.reducers]
    return {
        "weights": fingerprint(checkpoint.model),
        "processing": _processing_digest(checkpoint),
        "dtype": str(checkpoint.model.dtype),
        "device": checkpoint.model.device.type,
        "attention": str(getattr(checkpoint.model.config.get_text_config(), "_attn_implementation", "")),
        "settings": json.loads(json.dumps(settings, default=str)),
        "method_code": [_source_digest(type(reducer)) for method in methods for reducer in method.reducers],
        "host_code": _host_digest(),
        "versions": {
            "tokenzoo": tokenzoo.__version__, "torch": torch.__version__, "transformers": transformers.__version__
        },
    }  # fmt: skip


def fingerprint(model: Any) -> str:
    """A digest of a model: its config, and of every weight the name, the shape and 64 values spread over it."""
    if model not in _FINGERPRINTS:
        digest = hashlib.sha256(model.config.to_json_string().encode())
        for name, weight in model.named_parameters():
            flat = weight.detach().reshape(-1)
            sample = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            digest.update(sample.tobytes())
        _FINGERPRINTS[model] = digest.hexdigest()[:16]
    return _FINGERPRINTS[model]


def _processing_digest(checkpoint: Checkpoint) -> str:
    """A digest of what makes a question into inputs, and logits into an answer, besides the weights."""
    parts = (checkpoint.processor, checkpoint.image_processor, checkpoint.model.generation_config)
    said = [part.to_json_string() for part in parts if part is not None]
    return hashlib.sha256(repr((said, checkpoint.tokenizer.chat_template)).encode()).hexdigest()[:16]


def _source_digest(method: type) -> str:
    """A digest of the files a method and what it inherits from are written in: an edited method is measured anew."""
    digest = hashlib.sha256()
    for ancestor in method.__mro__:
        try:
            digest.update(Path(inspect.getfile(ancestor)).read_bytes())
        except (OSError, TypeError):
            continue  # typed into an interpreter, or built in
    return digest.hexdigest()[:16]


@cache
def _host_digest() -> str:
    """A digest of the code that runs and scores methods: all of tokenzoo but what only prints."""
    package = Path(tokenzoo.__file__).parent
    digest = hashlib.sha256()
    names = ["host/**/*.py", "cost/**/*.py", "comparison/cells.py", *(f"bench/{name}.py" for name in _BENCH)]
    names += [f"{name}.py" for name in ("ops", "reducer", "pipeline", "processing", "models", "trace", "workload")]
    for path in sorted({path for name in names for path in package.glob(name)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
