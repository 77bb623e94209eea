"""Stock vLLM with a method, on both embedded models and tiny Qwens, against the Hugging Face model with the same method."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from click.testing import CliRunner
from hub_checkpoints import save

import tokenzoo
from tokenzoo import FailedError
from tokenzoo.bench.tasks import builtin_tasks, task
from tokenzoo.cli import cli
from tokenzoo.models.checkpoint import load
from tokenzoo.models.inputs import prompt_text
from tokenzoo.models.question import Question
from tokenzoo.serving.plugin import REFUSED, SERVED
from tokenzoo.testing.models import FAMILIES, VOCABULARY, tiny_model
from tokenzoo.zoo.plugins import load_zoo

pytestmark = pytest.mark.vllm

#: Engines end and begin in this process: four times as quick as one process each.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

LAYERS, NEW_TOKENS = 12, 4
OPTIONS = {"max_model_len": 1024, "max_num_seqs": 8, "skip_mm_profiling": True}
#: Prompts are read in chunks that split pictures: LLaVA's have 144 tokens, LLaVA-OneVision's 300 (and must fit into a chunk).
CHUNKS = {"llava": 96, "onevision": 304}
#: AIM's merging alone: before the projector of LLaVA by the last encoder layer's keys, before the LLM of LLaVA-OneVision.
MERGING = f"aim:l1={LAYERS}"
METHODS = ["none", "random", "pool", MERGING, "divprune:retention=0.25"]
CASES = [("llava", method) for method in [*METHODS, "fastervlm"]]
CASES += [("onevision", method) for method in [*METHODS[1:], "dycoke"]]
#: Questions of which the tokens kept hang on the last digits: in transformers alone noise of 1e-6 on the pixels changes them.
CLOSE = {("onevision", "aim:l1=12"): 1}


class Served:
    """vLLM with a method, and the Hugging Face model to compare with."""

    def __init__(self, name: str, method: str, engine, checkpoint) -> None:
        self.name, self.method, self.engine, self.checkpoint = name, method, engine, checkpoint

    def ask(self, questions):
        """vLLM's (prompt tokens, answer) of each, all handed over at once."""
        from vllm import SamplingParams

        from tokenzoo.serving.check import prompt_of, until_end

        greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
        made = self.engine.generate([prompt_of(self.checkpoint, question) for question in questions], greedy)
        return [(len(one.prompt_token_ids), until_end(one.outputs[0].token_ids, self.checkpoint)) for one in made]

    @torch.inference_mode()
    def expected(self, question):
        """The same of the Hugging Face model. vLLM takes each picture of a prompt for one that stands alone."""
        from tokenzoo.serving.check import until_end

        inputs = self.checkpoint.inputs([question])
        if len(question.images) > 1:
            processor = self.checkpoint.processor
            text = prompt_text(question, processor, "<image>", "<video>")
            inputs = processor(text=[text], images=list(question.images), return_tensors="pt")
            inputs.pop("token_type_ids", None)
        with tokenzoo.apply(self.checkpoint.model, self.method) as run:
            made = self.checkpoint.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answer = made[0, inputs["input_ids"].shape[1] :].tolist()
        return len(run.trace.samples[0].entry), until_end(answer, self.checkpoint)


@pytest.fixture(scope="module")
def checkpoints():
    return {name: load(f"embedded:{name}", "float32") for name in ("llava", "onevision")}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def served(request, checkpoints):
    from tokenzoo.serving.check import engine

    name, method = request.param
    with engine(f"embedded:{name}", method, "float32", {**OPTIONS, "max_num_batched_tokens": CHUNKS[name]}) as made:
        yield Served(name, method, made, checkpoints[name])


def test_tokens_kept_prompts_and_answers_are_those_of_hugging_face(served) -> None:
    from tokenzoo.serving.check import Comparison, in_transformers, in_vllm

    kinds = ("image", "video") if served.name == "onevision" else ("image",)
    questions = [question for one in builtin_tasks() if one.modality in kinds for question in one.questions(3, 0)]
    pipeline = load_zoo().build(served.method)
    ours = in_transformers(served.checkpoint, pipeline, questions, NEW_TOKENS)
    row = Comparison(served.method, ours, in_vllm(served.engine, served.checkpoint, questions, NEW_TOKENS))
    reduced = 0 if served.method == "none" else sum(served.method != "dycoke" or bool(one.video) for one in questions)
    assert (row.prompts, row.pictures) == (len(questions), reduced)
    assert row.kept >= reduced - CLOSE.get((served.name, served.method), 0) and not row.differing


def test_prompts_of_every_sort_at_once_and_again(served) -> None:
    """Two pictures, one picture twice, one under two questions, none; the second time everything is cached."""
    first, second = (question.images[0] for question in task("attribute").questions(2, 7))
    asked = ["what color is the circle?", "which shape is red?"]
    questions = [
        Question("two", asked[0], (first, second)),
        Question("none", asked[0]),
        Question("twice", asked[0], (first, first)),
        Question("one", asked[0], (first,)),
        Question("other question", asked[1], (first,)),
        Question("the other way round", asked[0], (second, first)),
    ]
    if served.name == "onevision":
        questions += task("when").questions(2, 7)
    expected = [served.expected(question) for question in questions]
    together = served.ask(questions)
    assert [served.ask([question])[0] for question in questions] == together
    assert together == expected


@pytest.mark.parametrize(
    ("method", "reason"), [("fastv", "inside the LLM"), ("prumerge", "as the picture asks for"), ("mmtok", "reads the question")]
)
def test_what_cannot_be_served_does_not_start(method: str, reason: str) -> None:
    from tokenzoo.serving.check import engine

    with (
        pytest.raises((FailedError, tokenzoo.UnsupportedError), match=reason),
        engine("embedded:llava", method, "float32", OPTIONS),
    ):
        pass


def test_a_vllm_that_would_not_load_tokenzoo_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would serve the model without the method."""
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    done = CliRunner().invoke(cli, ["serve-check", "embedded:llava", "--method", "pool", "--limit", "1"], standalone_mode=False)
    assert "VLLM_PLUGINS=others keeps vLLM from loading tokenzoo" in str(done.exception)


def test_a_model_that_is_not_served_does_not_start_with_a_method(tmp_path) -> None:
    from tokenzoo.serving.check import engine

    folder = str(save("qwen3.5", tmp_path))
    with pytest.raises(tokenzoo.UnsupportedError, match="not tried with fewer"), engine(folder, "random", "float32", OPTIONS):
        pass


def test_every_family_that_vllm_knows_is_served_or_refuses_a_method() -> None:
    from vllm import ModelRegistry

    known = {type(tiny_model(family, layers=6)).__name__ for family in FAMILIES} & ModelRegistry.models.keys()
    assert known == (SERVED.keys() | set(REFUSED)) & known and len(known) > len(SERVED)


def test_serve_check_prints_one_table() -> None:
    arguments = ["embedded:llava", "--method", "pool", "--limit", "3", "--engine", json.dumps(OPTIONS)]
    done = CliRunner().invoke(cli, ["serve-check", *arguments], catch_exceptions=False)
    lines = [line.split() for line in done.output.splitlines()]
    assert ["none", "152.7", "3", "of", "3", "–", "3", "of", "3"] in [line[:9] for line in lines]
    assert ["pool", "44.7", "3", "of", "3", "3", "of", "3", "3", "of", "3"] in [line[:11] for line in lines]


# --- Qwen: random weights, M-RoPE, pictures of any size ----------------------------------------------------------------

#: Images are reduced by all but dycoke. Qwen3-VL adds DeepStack's features, and writes timestamps between frames.
QWEN = [("qwen2-vl", "pool"), ("qwen2.5-vl", "divprune:retention=0.25"), ("qwen2.5-vl", "vidcom2")]
QWEN += [("qwen3-vl", method) for method in ("none", "divprune:retention=0.25", "dycoke")]
#: Chunks split every prompt with a picture.
QWEN_OPTIONS = {**OPTIONS, "max_num_batched_tokens": 64, "max_logprobs": VOCABULARY}


@pytest.fixture(scope="module")
def qwens(tmp_path_factory):
    """A family's checkpoint folder and the Hugging Face model in it, made when it is first asked for."""
    made = {}

    def of(family: str):
        if family not in made:
            folder = save(family, tmp_path_factory.mktemp(family), wide_headed(family))
            made[family] = str(folder), load(str(folder), "float32")
        return made[family]

    return of


def wide_headed(family: str):
    """The tiny model with heads 32 wide, the narrowest that vLLM has a kernel for."""
    config = copy.deepcopy(tiny_model(family, layers=6).config)
    text, vision = config.text_config, config.vision_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 2, 1, 32
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 6, 6]}
    if family == "qwen2.5-vl":
        vision.tokens_per_second = 2  # a video that is wider than long: transformers 5 places text behind others elsewhere
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(tiny_model(family, layers=6))(config)


def qwen_questions() -> list[Question]:
    """Two pictures, one twice, one under two questions, videos with and without a picture, none."""
    first, second, third = (question.images[0] for question in task("attribute").questions(3, 7))
    first, second = first.resize((64, 32)), second.resize((32, 48))
    videos = [tuple(frame.resize((48, 48)) for frame in question.video[:6]) for question in task("when").questions(2, 7)]
    asked = ["what color is the circle?", "which shape is red?"]
    return [
        Question("one", asked[0], (first,)),
        Question("two", asked[0], (first, third)),
        Question("twice", asked[0], (second, second)),
        Question("video", asked[0], (), videos[0]),
        Question("none", asked[0]),
        Question("other question", asked[1], (first,)),
        Question("picture and video", asked[1], (third,), videos[1]),
    ]


@pytest.mark.parametrize(("family", "method"), QWEN)
def test_qwen_keeps_tokens_and_answers_as_in_hugging_face(family: str, method: str, qwens) -> None:
    from vllm import SamplingParams

    from tokenzoo.serving.check import Answer, Comparison, Side, engine, in_transformers, prompt_of, until_end

    folder, checkpoint = qwens(family)
    questions = qwen_questions()
    ours = in_transformers(checkpoint, load_zoo().build(method), questions, NEW_TOKENS)
    with engine(folder, method, "float32", QWEN_OPTIONS) as vllm:
        vllm.watch()
        greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=VOCABULARY)
        prompts = [prompt_of(checkpoint, question) for question in questions]
        made, again = vllm.generate(prompts, greedy), vllm.generate(prompts, greedy)
        kept = vllm.kept()
    answers = [Answer(len(one.prompt_token_ids), until_end(one.outputs[0].token_ids, checkpoint)) for one in made]
    row = Comparison(method, ours, Side(answers, kept))
    assert row.pictures == {"none": 0, "dycoke": 2}.get(method, 5)
    assert (row.prompts, row.kept, row.differing) == (len(questions), row.pictures, [])
    assert [one.outputs[0].token_ids for one in again] == [one.outputs[0].token_ids for one in made]
    for question, one in zip(questions, made, strict=True):
        with tokenzoo.apply(checkpoint.model, method), torch.inference_mode():
            expected = checkpoint.model(**checkpoint.inputs([question])).logits[0, -1].log_softmax(-1)
        first = one.outputs[0].logprobs[0]
        found = torch.tensor([first[token].logprob for token in range(VOCABULARY)])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, msg=question.id)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"video_pruning_rate": 0.5}, "Leave out --video-pruning-rate"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            "Speculative decoding",
        ),
    ],
)
def test_what_moves_positions_by_itself_does_not_start_with_a_method(options, reason: str, qwens) -> None:
    from tokenzoo.serving.check import engine

    with (
        pytest.raises((FailedError, tokenzoo.UnsupportedError), match=reason),
        engine(qwens("qwen2.5-vl")[0], "random", "float32", {**QWEN_OPTIONS, **options}),
    ):
        pass


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The OpenAI-compatible server, started as a user starts it; its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    from tokenzoo.models.names import locate

    log = tmp_path_factory.mktemp("server") / "log"
    # what `vllm serve` runs; that command itself does not start from vLLM's CPU build, which bears another name
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        locate("embedded:llava"),
        "--port",
        str(port),
    ]
    command += ["--hf-overrides", '{"tokenzoo": "divprune:retention=0.25"}', "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "8", "--skip-mm-profiling", "--served-model-name", "llava"]
    settings = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=settings)
    try:
        wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        process.terminate()
        process.wait(30)


def wait(process, address: str, log, patience: float = 900) -> None:
    """Until the server answers; what it wrote where it ends instead."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def post(address: str, question) -> tuple[int, str]:
    """(prompt tokens, answer) as the server tells them."""
    content = []
    for image in question.images:
        file = io.BytesIO()
        image.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": question.prompt})
    body = {"model": "llava", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": NEW_TOKENS}
    call = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=120) as answer:
        made = json.load(answer)
    return made["usage"]["prompt_tokens"], made["choices"][0]["message"]["content"].strip()


def test_many_clients_of_the_openai_server_get_the_same_answers(server, checkpoints) -> None:
    checkpoint = checkpoints["llava"]
    questions = [question for one in builtin_tasks() if one.modality == "image" for question in one.questions(4, 3)]
    questions = [*questions, Question("none", "what color is the circle?"), *questions[:4]]
    expected = []
    for question in questions:
        inputs = checkpoint.inputs([question])
        with tokenzoo.apply(checkpoint.model, "divprune:retention=0.25") as run, torch.inference_mode():
            made = checkpoint.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        text = checkpoint.decode(made[:, inputs["input_ids"].shape[1] :])[0]
        expected.append((len(run.trace.samples[0].entry), text))
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda question: post(server, question), questions)) == expected
