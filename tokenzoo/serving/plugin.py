"""vLLM's entry point `vllm.general_plugins`: models whose config names a method are replaced by ones that run it.

vLLM calls `register` in each of its processes. Nothing heavy is imported here: vLLM loads a model's class when it needs it.
"""

from __future__ import annotations

from typing import Any

#: Architectures of vLLM that run a method, and their classes in `tokenzoo.serving.models`.
SERVED = {
    "LlavaForConditionalGeneration": "Llava",
    "LlavaNextForConditionalGeneration": "LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "Qwen25VL",
    "Qwen3VLForConditionalGeneration": "Qwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3VLMoe",
}
#: Architectures that tokenzoo knows and cannot serve yet: they are vLLM's own, but refuse a method instead of passing over it.
REFUSED = (
    "LlavaNextVideoForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
#: What vLLM had registered for each of these.
STOCK: dict[str, Any] = {}


def register() -> None:
    """Register the models; vLLM may call this more than once in a process."""
    from vllm import ModelRegistry

    for architecture in (*SERVED, *REFUSED):
        found = ModelRegistry.models.get(architecture)
        if found is not None and architecture not in STOCK:
            STOCK[architecture] = found
            ModelRegistry.register_model(architecture, f"tokenzoo.serving.models:{SERVED.get(architecture, architecture)}")
