"""The text that tokenizers are trained on, and the tokenizers."""

import json
from collections import Counter

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

GPT2_VOCAB = 400
LLAMA3_VOCAB = 500
LLAMA_VOCAB = 600  # of both SentencePiece-style tokenizers

PROSE = """\
The film opens on a quiet harbour. A woman walks along the pier, counts the boats, and waits for \
somebody who does not come. Nothing happens for ten minutes, and yet I could not look away.
"What a strange little movie," my friend said when the lights came on. It's slow, it's odd, and \
it's the best thing I've seen this year!
We went to the café at the corner. The waiter, naïve or merely polite, asked whether we had liked \
it: 8 out of 10, we answered, perhaps 9. The second time I watched it, in 2019, I gave it 10.
你好，世界。 这部电影很好看 🎬 — that was all the poster said, and I never found out who wrote it.
\tFirst act: the harbour.\n\tSecond act: the house on the hill.\n\tThird act: the sea again.

She has two brothers; one is a sailor, the other one paints. The painter thinks that the sailor is \
lost, the sailor thinks that the painter is mad, and both of them are right in their own way.
The music is wonderful. Long notes of the cello under the sound of rain, then silence, then a \
single piano. Whoever wrote this score has listened to the weather for a very long time.
I did not like the ending. Was it necessary to explain everything? A good story trusts the people \
who watch it; this one trusts them for ninety minutes and then suddenly does not any more.
Für Kinder ist das nichts, says the sign, and señor Muñoz agrees: ¡qué película! 👩‍👩‍👧 would leave \
after the first half hour. 🙂 好看，但是太长了。
def rate(film):\n    return 10 if film.ending is None else 7
All in all: go and see it, stay for the credits, and take somebody with you who likes to talk.
"""


def split_in_two(text: str) -> tuple[str, str]:
    """Both halves of the prose; the empty line is between them."""
    first, second = text.split("\n\n")
    return first, second


def gpt2_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """GPT-2's: byte-level BPE, one special token, nothing added to a text."""
    end = "<|endoftext|>"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    train_byte_level(inner, text, GPT2_VOCAB - 1)
    inner.add_special_tokens([end])
    assert inner.get_vocab_size() == GPT2_VOCAB
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=end, eos_token=end, unk_token=end,
        model_max_length=128, clean_up_tokenization_spaces=False,
    )


def llama3_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Llama 3's: byte-level BPE over its own split of words, special tokens behind the vocabulary,
    the beginning-of-text token in front of a text, and a chat template."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                "<|eom_id|>", "<|eot_id|>"]
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    inner = Tokenizer(models.BPE(ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    inner.decoder = decoders.ByteLevel()
    train_byte_level(inner, text, LLAMA3_VOCAB - len(specials))
    inner.add_special_tokens(specials)
    assert inner.get_vocab_size() == LLAMA3_VOCAB
    bos = specials[0]
    inner.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        bos_first(inner, bos),
    ])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token="<|eot_id|>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = LLAMA3_TEMPLATE
    tokenizer.template_in_config = True
    return tokenizer


def train_byte_level(inner: Tokenizer, text: str, size: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([text], trainer)


def llama_tokenizer(text: str, template_in_config: bool) -> PreTrainedTokenizerFast:
    """Llama 2's, as converted from SentencePiece: BPE over characters with spaces as ▁, bytes for
    characters that are not in the vocabulary, <s> in front of a text."""
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces_as_marks()
    # Merges stay inside words, as SentencePiece learns them. The split is of the training alone.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=LLAMA_VOCAB, special_tokens=specials + byte_tokens, show_progress=False
    )
    trained.train_from_iterator(without_rare(text, kept=64).splitlines(), trainer)

    # Again with the same merges: there, bytes were special tokens; here they are ordinary ones.
    learnt = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in learnt["merges"]]
    inner = Tokenizer(models.BPE(
        vocab=learnt["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    ))
    inner.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    assert inner.get_vocab_size() == LLAMA_VOCAB
    inner.normalizer = spaces_as_marks()
    inner.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])
    inner.post_processor = bos_first(inner, "<s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = ZEPHYR_TEMPLATE
    tokenizer.template_in_config = template_in_config
    return tokenizer


def without_rare(text: str, kept: int) -> str:
    """Only the `kept` most frequent characters: a tokenizer writes the others as bytes. (The
    trainer's own `limit_alphabet` breaks ties differently in each run.)"""
    counts = Counter(text.replace("\t", " "))
    frequent = {"\n", *sorted(counts, key=lambda c: (-counts[c], c))[:kept]}
    return "".join(c if c in frequent else " " for c in text)


def spaces_as_marks() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def bos_first(inner: Tokenizer, token: str) -> processors.PostProcessor:
    number = inner.token_to_id(token)
    assert number is not None
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, number)]
    )


LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR_TEMPLATE = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
