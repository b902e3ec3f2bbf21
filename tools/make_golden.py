#!/usr/bin/env python3
"""Writes the tiny random checkpoints in tests/golden, and what transformers computes with them.

    python3 -m venv .venv && .venv/bin/pip install torch transformers tokenizers safetensors numpy jinja2
    .venv/bin/pip install --no-deps peft
    .venv/bin/python tools/make_golden.py --out tests/golden

Nothing is downloaded: tokenizers are trained on the text in golden/vocabularies.py, weights are
drawn. Written are

    NAME/            a checkpoint as save_pretrained writes it, and golden.json: logits, log-probs
    text.json        what the tokenizers and chat templates make of difficult texts
    templates.json   what the chat templates in templates/ make of conversations
    jinja.json       what Jinja2 makes of small templates
    settings.json    the settings that a checkpoint's files can have
    variants.json    models that are easy to read wrongly, as changes to the checkpoints
    side_files.json  tokenizers that are, likewise
    gains.json       the gain of whole texts for a tuned and an untuned model
    README.md        what there is, with the versions that it was made with

All weights are bf16 numbers, whatever dtype a file has, and the golden values are computed in
float64. So whoever loads the files as bf16 has the very same model, and differs by the rounding of
his own arithmetic alone. The same seed and versions give the same files, byte for byte.
"""

import argparse
import os
import textwrap
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers

from golden.checkpoints import (
    GPT2_TUNED,
    LLAMA_TUNED,
    Draw,
    save_gpt2,
    save_gpt2_bare,
    save_llama,
    save_llama3,
    save_mistral,
    save_tuned,
)
from golden.checks import check_files, check_scaling_matters, check_window_matters
from golden.files import versions, write_json
from golden.jinja import write_jinja
from golden.settings import write_settings
from golden.templates import origins_table, write_templates
from golden.values import chat_cases, gain_cases, golden_values, text_cases
from golden.variants import write_variants
from golden.vocabularies import (
    LLAMA_VOCAB,
    PROSE,
    gpt2_tokenizer,
    llama3_tokenizer,
    llama_tokenizer,
    split_in_two,
)

PAIRS = [("gpt2_tuned", "gpt2"), ("llama_tuned", "llama")]


def main() -> None:
    args = parse_args()
    quiet_and_deterministic()
    args.out.mkdir(parents=True, exist_ok=True)
    draw = Draw(args.seed)

    first, second = split_in_two(PROSE)
    gpt2 = gpt2_tokenizer(PROSE)
    llama3 = llama3_tokenizer(PROSE)
    llama = llama_tokenizer(first, template_in_config=True)
    mistral = llama_tokenizer(second, template_in_config=False)
    assert llama.vocab != mistral.vocab and len(llama.vocab) == len(mistral.vocab) == LLAMA_VOCAB

    made = [
        save_gpt2(args.out / "gpt2", gpt2, draw),
        save_tuned(args.out / "gpt2", args.out / "gpt2_tuned", gpt2, GPT2_TUNED, draw),
        save_gpt2_bare(args.out / "gpt2", args.out / "gpt2_bare", gpt2),
        save_llama3(args.out / "llama3", llama3, draw),
        save_llama(args.out / "llama", llama, draw),
        save_tuned(args.out / "llama", args.out / "llama_tuned", llama, LLAMA_TUNED, draw),
        save_mistral(args.out / "mistral", mistral, draw),
    ]
    for saved in made:
        check_files(saved, draw)
        golden = golden_values(saved, draw)
        write_json(saved.folder / "golden.json", golden)
    check_scaling_matters(args.out / "llama3")
    check_window_matters(args.out / "mistral")

    chat = ["llama3", "llama", "mistral"]
    texts = [case for name in ["gpt2", *chat] for case in text_cases(args.out, name)]
    chats = [case for name in chat for case in chat_cases(args.out, name)]
    write_json(args.out / "text.json", texts + chats)
    write_json(args.out / "gains.json", [c for pair in PAIRS for c in gain_cases(args.out, *pair)])
    write_variants(args.out)
    write_templates(args.out)
    write_jinja(args.out)
    write_settings(args.out)
    write_readme(args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def quiet_and_deterministic() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)


def write_readme(out: Path) -> None:
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    readme = README.format(made_with=made_with, origins=origins_table())
    (out / "README.md").write_text(readme, "utf-8")


README = textwrap.dedent("""\
    # Golden values

    Tiny checkpoints with random weights, and what transformers computes with them in float64.
    Written by

        python3 -m venv .venv && .venv/bin/pip install torch transformers tokenizers safetensors numpy jinja2
        .venv/bin/pip install --no-deps peft
        .venv/bin/python tools/make_golden.py --out tests/golden

    with {made_with}.
    Nothing here is edited by hand, this file neither; `templates/` is as it was found.

    | folder | model | file | what is special |
    |---|---|---|---|
    | `gpt2` | GPT-2 | f32 | names begin with `transformer.`; `n_inner` is given |
    | `gpt2_bare` | GPT-2, the same weights | f16 | names without prefix, mask buffers `h.N.attn.bias`, `torch_dtype` |
    | `gpt2_tuned` | `gpt2`, 4 tensors changed | f32 | the rest is byte-identical |
    | `llama3` | Llama 3.1 | bf16, shards | grouped queries, `head_dim` × heads ≠ `hidden_size`, all biases, llama3 positions, 3 end tokens; old spelling of `config.json` |
    | `llama` | Llama 1 | f32 | tied head, 3 heads; a SentencePiece-style tokenizer |
    | `llama_tuned` | `llama`, 3 tensors changed | f32 | of queries, keys and values only the queries changed |
    | `mistral` | Mistral | bf16 | grouped queries, a window of 24; another vocabulary of `llama`'s size; chat template in `chat_template.jinja` |

    All weights are bf16 numbers, also in f32 and f16 files: loading them as bf16 loses nothing.

    - `NAME/golden.json`: `tokens`; `logits_first` and `logits_last`, the whole vocabulary after the
      first and the last token; `logprobs[i]`, of `tokens[i + 1]` given all before it; `argmax` of
      the logits after each token. Norms and softmax are float64 too; only the angles of rotary
      positions are float32, as everywhere. transformers in float32 is within 2e-5 of all values.
    - `text.json`: `ids_without_special` and `ids_with_special` of a text, `decoded` from the
      former (special tokens written out); `rendered`, the chat template's text for `messages`, with
      the beginning of the answer.
    - `gains.json`: Σ log p of the response's tokens by the tuned and by the untuned model, and
      their difference. Prompt, and prompt and response together, are tokenised by `untuned`'s
      tokenizer without special tokens; behind the latter comes the end token where `eos` is true.
      Scored are the `tokens` behind the longest common beginning of both; never the very first
      token, which nothing predicts (see the cases with an empty prompt).

    - `variants.json`, `side_files.json`: changes to a checkpoint's `config`, tensors (`tensors` names a
      change in tools/golden/variants.py), `tokenizer` (by path) and side `files`, and what transformers makes
      of the result: `logprobs` of the model's golden tokens, `ids` of `texts`.
    - `templates.json`: what transformers' `apply_chat_template` makes of `messages` on 2024-07-26,
      with a generation prompt and without tools: `rendered`, or the `error` that it raises. A
      message of the role `developer` is one of `system` where the template has no such string.
      `left_out` is the index of a message that the text does not depend on: the last one, or one
      of another role than `user` and `assistant`.
    - `jinja.json`: small templates as jinja2 renders them in transformers' environment, each behind
      the `prefix` in the first line.
    - `settings.json`: by file and class, every field that transformers reads, and peft's
      `LoraConfig`, with its default; `legacy` has names that only older versions wrote.

    The chat templates in `templates/` are models' own, byte for byte as a package carries them. The
    licence is that package's; a model's own licence may say more about its template.

    {origins}

    How transformers 5 spells what older versions wrote, both of which are in use:

    | new (`mistral`, `llama`) | old (`llama3`) |
    |---|---|
    | `"rope_parameters": {{"rope_type": …, "rope_theta": …, …}}` | `"rope_theta": …, "rope_scaling": {{"rope_type": …, …}}`, `"rope_scaling": null` without scaling; still older: `"type"` for `"rope_type"` |
    | `"dtype": "bfloat16"` | `"torch_dtype": "bfloat16"` |
    | `chat_template.jinja` (`mistral`) | `chat_template` in `tokenizer_config.json` (`llama3`, `llama`) |
    """)


if __name__ == "__main__":
    main()
