"""Requests per second of vLLM with a method against without, in one run: `python benchmarks/serving.py divprune:retention=0.25`.

The embedded LLaVA's encoder and a decoder of 12 layers, 1024 wide, with random weights: the LLM does the work then, as in models
that are served. Processor seconds of the engine in this process, so that other programs do not count.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

REQUESTS, ROUNDS = 16, 2
DECODER = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}


def main(methods: list[str]) -> None:
    from tokenzoo.bench.tasks import task
    from tokenzoo.models.names import locate
    from tokenzoo.serving.check import anew, engine

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(locate("embedded:llava"), model)
        config = json.loads((model / "config.json").read_text())
        config["text_config"] |= DECODER
        (model / "config.json").write_text(json.dumps(config))
        from vllm import SamplingParams

        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        prompts = [
            {"prompt": f"<s>user <image>\n{question.prompt} assistant", "multi_modal_data": {"image": list(question.images)}}
            for question in task("attribute").questions(REQUESTS, 0)
        ]
        options = {"load_format": "dummy", "skip_mm_profiling": True, "max_model_len": 1024, "max_num_seqs": 8}
        base = 0.0
        for method in ["none", *methods]:
            with engine(str(model), method, "float32", options) as made:
                made.generate([anew(prompts[0], "first")], one)
                seconds = []
                for index in range(ROUNDS):
                    start = time.process_time()
                    made.generate([anew(prompt, f"{index}-{number}") for number, prompt in enumerate(prompts)], one)
                    seconds.append(time.process_time() - start)
            rate = REQUESTS / min(seconds)
            base = base or rate
            print(f"{method}: {rate:.2f} requests a processor second, {rate / base:.2f} of none's", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["divprune:retention=0.25"])
