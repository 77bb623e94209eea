"""The model families that ship with tokenzoo."""

from __future__ import annotations

from tokenzoo.host.families.decoder import DecoderOnly
from tokenzoo.host.families.gemma3 import Gemma3
from tokenzoo.host.families.gemma4 import Gemma4
from tokenzoo.host.families.idefics import Idefics2, Idefics3
from tokenzoo.host.families.internvl import InternVL
from tokenzoo.host.families.llava import Llava
from tokenzoo.host.families.llava_next import LlavaNext
from tokenzoo.host.families.llava_next_video import LlavaNextVideo
from tokenzoo.host.families.llava_onevision import LlavaOnevision
from tokenzoo.host.families.qwen2_vl import Qwen2VL
from tokenzoo.host.families.qwen3_5 import Qwen35
from tokenzoo.host.families.qwen3_vl import Qwen3VL
from tokenzoo.host.families.video_llava import VideoLlava
from tokenzoo.host.family import Family

BUILT_IN: tuple[Family, ...] = (
    Llava(),
    LlavaNext(),
    LlavaNextVideo(),
    LlavaOnevision(),
    VideoLlava(),
    Qwen2VL(),
    Qwen3VL(),
    Qwen35(),
    InternVL(),
    Gemma3(),
    Gemma4(),
    Idefics3(),
    Idefics2(),
    DecoderOnly(),
)
