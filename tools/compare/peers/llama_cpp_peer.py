"""llama.cpp by llama-cpp-python's bindings of its C interface, built for this very processor."""

import time

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from llama_cpp import llama_cpp as c
from protocol import TEMPERATURE, TOP_K, serve
from transformers import GPT2LMHeadModel
from transformers_peer import logprobs

KINDS = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "int8": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
SEQUENCES, CONTEXT = 16, 256
LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


class Peer:
    def __init__(self, folder, precision, threads):
        torch.set_num_threads(threads)
        file = folder.parent / f"{folder.name}-{precision}.gguf"
        if not file.exists():
            convert(folder, file, precision)
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp could not load {file.name}")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = SEQUENCES * CONTEXT, SEQUENCES
        settings.n_batch, settings.n_ubatch = 2048, 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self.context = c.llama_init_from_model(self.model, settings)
        if not self.context:
            raise ValueError("llama.cpp could not make a context")
        self.batch = c.llama_batch_init(settings.n_batch, 0, 1)
        self.samplers = [self.sampler(seed) for seed in range(SEQUENCES)]
        info = c.llama_print_system_info().decode()
        isa = [name for name in ("AMX_INT8", "AVX512_BF16", "AVX512", "AVX2") if f"{name} = 1" in info]
        version = llama_cpp.__version__
        self.settings = f"llama-cpp-python {version}, {isa[0] if isa else 'no AVX2'}, f16 cache"

    @staticmethod
    def sampler(seed):
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(TOP_K))
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(TEMPERATURE))
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(seed))
        return chain

    def decode(self, texts, new_tokens):
        self.clear()
        self.run([text[:-1] for text in texts], 0, wanted=False)
        last = [text[-1] for text in texts]
        started = time.perf_counter()
        for place in range(new_tokens):
            self.run([[token] for token in last], len(texts[0]) - 1 + place, wanted=True)
            last = [
                c.llama_sampler_sample(self.samplers[row], self.context, row)
                for row in range(len(texts))
            ]
        return time.perf_counter() - started, new_tokens

    def score(self, texts):
        self.clear()
        length = len(texts[0]) - 1
        self.run([text[:-1] for text in texts], 0, wanted=True)
        pointer = c.llama_get_logits(self.context)
        rows = np.ctypeslib.as_array(pointer, (len(texts) * length, self.vocab))
        logits = torch.from_numpy(rows).unflatten(0, (len(texts), length))
        targets = torch.tensor([text[1:] for text in texts])
        sums = [logprobs(*row).sum().item() for row in zip(logits, targets, strict=True)]
        return sums

    def clear(self):
        c.llama_memory_clear(c.llama_get_memory(self.context), True)

    def run(self, texts, start, wanted):
        """Each text continues its own sequence at `start`."""
        batch, size = self.batch, 0
        for sequence, text in enumerate(texts):
            for place, token in enumerate(text):
                batch.token[size], batch.pos[size] = token, start + place
                batch.n_seq_id[size], batch.seq_id[size][0] = 1, sequence
                batch.logits[size] = wanted
                size += 1
        batch.n_tokens = size
        status = c.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")


def convert(folder, file, precision):
    """What llama.cpp's own converter would write, without a vocabulary."""
    kind, file_type = KINDS[precision]
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    config, weights = model.config, model.transformer.state_dict()
    partial = file.with_suffix(".partial")
    writer = GGUFWriter(partial, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(name, source, as_matrix):
        values = weights[source].numpy()
        if as_matrix:
            data = gguf.quantize(np.ascontiguousarray(values), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", "wte.weight", True)
    add("position_embd.weight", "wpe.weight", False)
    for index in range(config.n_layer):
        for ours, theirs in LAYER.items():
            source = f"h.{index}.{theirs}"
            matrix = "norm" not in ours
            if matrix:  # transformers keeps these as inputs × outputs
                weights[f"{source}.weight"] = weights[f"{source}.weight"].T
            add(f"blk.{index}.{ours}.weight", f"{source}.weight", matrix)
            add(f"blk.{index}.{ours}.bias", f"{source}.bias", False)
    add("output_norm.weight", "ln_f.weight", False)
    add("output_norm.bias", "ln_f.bias", False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)


if __name__ == "__main__":
    serve(Peer)
