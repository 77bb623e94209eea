"""The model families that ship with tokenzoo."""

from __future__ import annotations

from tokenzoo.host.families.decoder import DecoderOnly
from tokenzoo.host.families.llava import Llava
from tokenzoo.host.families.llava_next import LlavaNext
from tokenzoo.host.families.llava_onevision import LlavaOnevision
from tokenzoo.host.families.qwen2_vl import Qwen2VL
from tokenzoo.host.family import Family

BUILT_IN: tuple[Family, ...] = (Llava(), LlavaNext(), LlavaOnevision(), Qwen2VL(), DecoderOnly())
