"""OpenVINO: the transformers model's layers, converted, with the cache as state inside the model.

The graph is what optimum-intel exports for text generation: past keys and values, reordered by
`beam_idx`, as variables, which the CPU plugin fuses with the attention. It also picks the 50 best
logits and, for scoring, the targets' log-probabilities, so that no vocabulary leaves it.
"""

import time

import numpy as np
import openvino as ov
import torch
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from protocol import TEMPERATURE, TOP_K, serve
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2LMHeadModel

PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}


class Peer:
    def __init__(self, folder, precision, threads):
        if precision not in PRECISIONS:
            raise ValueError(f"OpenVINO has {precision} only with weights that NNCF compresses")
        core = ov.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise ValueError(f"OpenVINO has no bf16 on this CPU ({', '.join(able)})")
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        }
        files = {name: folder.parent / f"{folder.name}-openvino-{name}.xml" for name in GRAPHS}
        if not all(file.exists() for file in files.values()):
            model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
            for name, file in files.items():
                ov.save_model(GRAPHS[name](model), file, compress_to_fp16=False)
        compiled = {name: core.compile_model(file, "CPU", options) for name, file in files.items()}
        self.decoder = compiled["decode"].create_infer_request()
        self.scorer = compiled["score"].create_infer_request()
        self.random = np.random.default_rng(1)
        used = compiled["decode"].get_property("INFERENCE_PRECISION_HINT")
        cache = compiled["decode"].get_property("KV_CACHE_PRECISION")
        self.settings = f"OpenVINO {ov.__version__.split('-')[0]}, {used.type_name}, cache {cache.type_name}"

    def decode(self, texts, new_tokens):
        tokens = np.array(texts, dtype=np.int64)
        self.decoder.reset_state()
        self.run(tokens[:, :-1], 0)
        last = tokens[:, -1:]
        started = time.perf_counter()
        for place in range(new_tokens):
            last = self.sample(*self.run(last, tokens.shape[1] - 1 + place))
        return time.perf_counter() - started, new_tokens

    def run(self, tokens, past):
        rows, count = tokens.shape
        visible = np.arange(past + count) <= past + np.arange(count)[:, None]
        mask = np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)
        outputs = self.decoder.infer(
            {
                "input_ids": tokens,
                "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
                "mask": mask[None, None],
                "beam_idx": np.arange(rows, dtype=np.int32),
            },
            share_inputs=True,
        )
        return outputs["best"], outputs["ids"]

    def sample(self, best, ids):
        # The greatest of logits plus Gumbel noise is a draw from their softmax.
        noisy = best / TEMPERATURE + self.random.gumbel(size=best.shape)
        return np.take_along_axis(ids, noisy.argmax(-1)[:, None], -1).astype(np.int64)

    def score(self, texts):
        outputs = self.scorer.infer({"tokens": np.array(texts, dtype=np.int64)})
        return outputs["logprobs"].astype(np.float64).sum(-1).tolist()


class Layers(nn.Module):
    """transformers' modules, with attention and cache spelt out so that they can be traced."""

    def __init__(self, model):
        super().__init__()
        self.body, self.head = model.transformer, model.lm_head
        self.heads = model.config.n_head

    def hidden(self, tokens, positions, attend):
        x = self.body.wte(tokens) + self.body.wpe(positions)
        for index, block in enumerate(self.body.h):
            split = lambda part: part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            q, k, v = map(split, block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
            x = x + block.attn.c_proj(attend(index, q, k, v).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return self.body.ln_f(x)


class Decoder(Layers):
    def forward(self, input_ids, position_ids, mask, *past):
        present = []

        def attend(index, q, k, v):
            k = torch.cat([past[2 * index], k], 2)
            v = torch.cat([past[2 * index + 1], v], 2)
            present.extend([k, v])
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

        hidden = self.hidden(input_ids, position_ids, attend)
        best, ids = self.head(hidden[:, -1]).topk(TOP_K)
        return best, ids, *present


class Scorer(Layers):
    def forward(self, tokens):
        fed, targets = tokens[:, :-1], tokens[:, 1:]
        attend = lambda _, q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)
        positions = torch.arange(fed.shape[1])[None]
        logits = self.head(self.hidden(fed, positions, attend))
        return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


@torch.no_grad()
def decoder(model):
    config = model.config
    layers, width = config.n_layer, config.n_embd // config.n_head
    past = [torch.zeros(2, config.n_head, 3, width) for _ in range(2 * layers)]
    ids, positions = torch.zeros(2, 4, dtype=torch.long), torch.arange(3, 7)[None]
    example = (ids, positions, torch.zeros(1, 1, 4, 7), *past)
    graph = ov.convert_model(Decoder(model), example_input=example)

    kinds = [f"{index}.{kind}" for index in range(layers) for kind in ("key", "value")]
    names = ["input_ids", "position_ids", "mask", *(f"past.{kind}" for kind in kinds)]
    shapes = [[-1, -1], [1, -1], [1, 1, -1, -1]] + [[-1, config.n_head, -1, width]] * len(kinds)
    for port, name, shape in zip(graph.inputs, names, shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    outputs = ["best", "ids", *(f"present.{kind}" for kind in kinds)]
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    make_stateful(graph, kinds)
    return graph


def make_stateful(graph, kinds):
    """Turns past and present into variables that start empty, in the form that the CPU plugin knows."""
    beam_idx = opset13.parameter([-1], ov.Type.i32, "beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beam_idx])
    for kind in kinds:
        past = graph.input(f"past.{kind}")
        readers = past.get_target_inputs()
        chosen = opset13.gather(past, beam_idx, opset13.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, {f"past.{kind}": f"present.{kind}" for kind in kinds})
    shape = opset13.shape_of(graph.input("input_ids"), output_type="i64")
    rows = opset13.gather(shape, opset13.constant([0]), opset13.constant(0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            rest = np.array([heads.get_length(), 0, width.get_length()], dtype=np.int64)
            empty = opset13.concat([rows, opset13.constant(rest)], 0)
            node.set_arguments([opset13.broadcast(opset13.constant(0.0, ov.Type.f32), empty)])
    graph.validate_nodes_and_infer_types()


@torch.no_grad()
def scorer(model):
    graph = ov.convert_model(Scorer(model), example_input=(torch.zeros(2, 5, dtype=torch.long),))
    graph.inputs[0].get_tensor().set_names({"tokens"})
    graph.outputs[0].get_tensor().set_names({"logprobs"})
    graph.reshape([-1, -1])
    return graph


GRAPHS = {"decode": decoder, "score": scorer}

if __name__ == "__main__":
    serve(Peer)
