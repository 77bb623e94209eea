"""CDPruner: keep tokens that are relevant to the question and unlike each other (arXiv 2506.10967, NeurIPS 2025)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import Architecture, PositionPolicy, TokenReducer, UnsupportedError, UserError, ops
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import VisualTokens

#: An instruction that is no part of a question.
FORMAT = "Answer the question using a single word or phrase."


@dataclass
class CDPruner(TokenReducer):
    """Before the LLM, keep of each view the round(retention · n) tokens most likely under a conditional DPP.

    Relevance: with CLIP's own image vectors z of the tokens (its norm and projection of the features before the projector)
    and CLIP's vector t of the question, r_i = -cos(z_i, t), scaled to (r - min + 1e-6) / (max - min) over all views (the
    minus is the paper's: patches that CLIP aligns with the text are not those that answer it). The kernel of each view
    is K_ij = r_i cos(x_i, x_j) r_j of the embeddings x, its likeliest subset is taken greedily (`ops.dpp_map`). A question
    longer than CLIP reads is cut into parts, of which the mean cosine counts. Kept tokens stay in raster order.

    It needs the CLIP model whose vision tower the multimodal model has (for LLaVA-1.5: openai/clip-vit-large-patch14-336),
    in the directory `text_tower`, as safetensors; and the question in words: `tokenzoo.apply(..., questions=)`. Encoders
    that are not CLIP have no such pair. Ours on purpose: pivots are kept from turning negative beyond the kernel's
    rank, where the released code keeps fewer tokens than asked for.
    """

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of each view's tokens kept.")] = 0.1111
    text_tower: Annotated[str | None, Field(description="Directory of the CLIP model that the vision tower is part of.")] = None
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "cdpruner"
    text_aware: ClassVar[bool] = True

    def check_model(self, architecture: Architecture) -> None:
        folder = self.folder()
        if not architecture.has_cls:
            raise UnsupportedError("'cdpruner' needs a CLIP vision tower; this model's is none, so no text tower belongs to it.")
        width = clip_sizes(folder)["vision"]
        if width != architecture.encoder_hidden:
            raise UnsupportedError(
                f"'{folder}' has a vision tower of width {width}, this model's has {architecture.encoder_hidden}: they "
                "are no pair. Give the directory of the CLIP model that the vision tower is part of."
            )

    def left(self, views: tuple[int, ...], source: Any, architecture: Any) -> list[int]:
        return [ops.share_of(tokens, self.retention) for tokens in views]

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.feature_layer,)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.architecture is not None
        if tokens.question is None:
            raise UnsupportedError("'cdpruner' needs the question in words. Pass questions=, one a sample, to tokenzoo.apply.")
        clip = load_clip(self.folder(), tokens.features.device)
        seen = tokens.encoder_features(tokens.architecture.feature_layer)
        return self.likeliest(tokens, relevance_to(clip.image_vectors(seen), clip.text_vectors(clip.ids(tokens.question))))

    def likeliest(self, tokens: VisualTokens, relevance: Tensor) -> Tensor:
        """The kept tokens, by the relevance of each [tokens]."""

        def pick(index: Tensor, count: int) -> Tensor:
            weight = relevance[index]
            kernel = weight[..., None] * ops.cosine_similarity(tokens.features[index]) * weight[..., None, :]
            return ops.dpp_map(kernel, count).sort().values

        assert tokens.left is not None
        return ops.pick_views(tokens.views(), tokens.left, pick)

    def folder(self) -> str:
        """The directory of the CLIP model; raises UnsupportedError where none was given."""
        if self.text_tower is None:
            raise UnsupportedError(
                "'cdpruner' reads the question with the CLIP model that the vision tower is part of. Give its directory: "
                "cdpruner:text_tower=DIRECTORY (LLaVA-1.5: openai/clip-vit-large-patch14-336, saved as safetensors)."
            )
        return self.text_tower

    def reduce_flops(self, views: tuple[int, ...], left: tuple[int, ...], source: Any, architecture: Architecture) -> int:
        """The text tower on one part, CLIP's vectors and their cosines; each view's kernel and the factor's rows."""
        clip = clip_sizes(self.text_tower)
        length, width = clip["length"], clip["width"]
        flops = clip["layers"] * (4 * length * width * (2 * width + clip["inner"]) + 4 * length * length * width)
        flops += 2 * width * clip["shared"] + 2 * sum(views) * clip["shared"] * (clip["vision"] + 1)
        for tokens, kept in zip(views, left, strict=True):
            flops += 2 * tokens * tokens * architecture.hidden + tokens * kept * (kept - 1)
        return flops


def relevance_to(image: Tensor, text: Tensor) -> Tensor:
    """r of image vectors [tokens, c] to text vectors [parts, c], scaled: [tokens]."""
    image, text = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (image, text))
    relevance = -(image @ text.T).mean(-1)
    least, most = relevance.min(), relevance.max()
    return (relevance - least + 1e-6) / (most - least).clamp(min=1e-6)


class Clip:
    """The parts of a CLIP model that are used, in float32; `tokenizer` is the model's."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def ids(self, question: str) -> Tensor:
        """The question's token ids, begin and end included, however many there are."""
        ids = self.tokenizer(question.replace(FORMAT, "").strip(), truncation=False, return_tensors="pt")["input_ids"][0]
        return ids.to(self.model.device)

    def text_vectors(self, ids: Tensor) -> Tensor:
        """CLIP's vectors [parts, c] of a text's token ids [n], cut to what CLIP reads, the last part padded with 0."""
        length = self.model.config.text_config.max_position_embeddings
        parts = -(-len(ids) // length)
        padded = torch.nn.functional.pad(torch.stack([ids, torch.ones_like(ids)]), (0, parts * length - len(ids)))
        ids, mask = padded.view(2, parts, length)
        states = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return self.model.text_projection(states)

    def image_vectors(self, features: Tensor) -> Tensor:
        """CLIP's vectors [tokens, c] of features [tokens, width] before the projector."""
        return self.model.visual_projection(self.model.vision_model.post_layernorm(features.float()))


@lru_cache(maxsize=1)
def load_clip(folder: str, device: Any) -> Clip:
    """The CLIP model in a directory; nothing is downloaded, and pickles are not read."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        # eager, so that all of it is counted
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "attn_implementation": "eager"}
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder}' holds no CLIP model with its tokenizer: {str(error).splitlines()[0]}") from None
    return Clip(model.eval().requires_grad_(False).to(device), tokenizer)


def clip_sizes(folder: str | None) -> dict[str, int]:
    """The dimensions of the CLIP model in a directory; where there is none, of CLIP-L/14-336, LLaVA-1.5's."""
    if folder is None:
        return {"vision": 1024, "shared": 768, "width": 768, "inner": 3072, "layers": 12, "length": 77}
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"text_tower='{folder}' is no directory of a CLIP model: {error}.") from None
    if config.get("model_type") != "clip":
        raise UserError(f"text_tower='{folder}' holds a model of type {config.get('model_type')!r}, not CLIP.")
    text = config.get("text_config") or {}
    return {
        "vision": (config.get("vision_config") or {}).get("hidden_size", 768),
        "shared": config.get("projection_dim", 512),
        "width": text.get("hidden_size", 512),
        "inner": text.get("intermediate_size", 2048),
        "layers": text.get("num_hidden_layers", 12),
        "length": text.get("max_position_embeddings", 77),
    }
