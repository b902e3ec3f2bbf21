"""CTranslate2: its own converter, generator and scorer."""

import time

import ctranslate2
from ctranslate2.converters import TransformersConverter
from protocol import TEMPERATURE, TOP_K, serve

COMPUTE = {"f32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}


class Peer:
    def __init__(self, folder, precision, threads):
        compute = COMPUTE[precision]
        supported = ctranslate2.get_supported_compute_types("cpu")
        if compute not in supported:
            raise ValueError(f"CTranslate2 has no {precision} on this CPU ({', '.join(sorted(supported))})")
        converted = folder.parent / f"{folder.name}-ctranslate2"
        if not (converted / "config.json").exists():
            TransformersConverter(str(folder)).convert(str(converted), force=True)
        self.generator = ctranslate2.Generator(
            str(converted), device="cpu", compute_type=compute, inter_threads=1, intra_threads=threads
        )
        self.settings = f"CTranslate2 {ctranslate2.__version__}, {self.generator.compute_type}"

    def decode(self, texts, new_tokens):
        """The generator does not say how long the prompts took, so a run with one token is taken off."""
        first = self.generate(texts, 1)
        return self.generate(texts, new_tokens + 1) - first, new_tokens

    def generate(self, texts, count):
        started = time.perf_counter()
        results = self.generator.generate_batch(
            [words(text) for text in texts],
            min_length=count,
            max_length=count,
            sampling_topk=TOP_K,
            sampling_temperature=TEMPERATURE,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - started
        assert all(len(result.sequences_ids[0]) == count for result in results)
        return seconds

    def score(self, texts):
        results = self.generator.score_batch([words(text) for text in texts])
        return [sum(result.log_probs) for result in results]


def words(text):
    return [f"t{token}" for token in text]


if __name__ == "__main__":
    serve(Peer)
