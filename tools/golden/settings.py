"""The settings that a checkpoint's files can have, with their defaults.

Fields come from the classes that read the files: what their dataclass or `__init__` declares, what
they take out of their `kwargs`, and what `attribute_map` renames. Names that only older versions
wrote, and that no class names any more, are listed here by hand. A default that is not JSON becomes
a string, as Python writes it; a field without a default is null.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaTokenizer,
    MinistralConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import RopeParameters, RotaryEmbeddingConfigMixin

from golden.files import Json

CONFIGS = {
    "base": PreTrainedConfig,
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "ministral": MinistralConfig,
}
TOKENIZERS = {
    "base": PreTrainedTokenizerBase,
    # PreTrainedTokenizerFast is its older name.
    "tokenizers_backend": PreTrainedTokenizerFast,
    # GPT2TokenizerFast and LlamaTokenizerFast are other names of these.
    "gpt2": GPT2Tokenizer,
    "llama": LlamaTokenizer,
}

# Fields that `PretrainedConfig` of transformers 4 had beyond the parameters of generation, and that
# other tools write into config.json.
CONFIG_LEGACY = {
    "_commit_hash": None,
    "_flash_attn_2_enabled": False,
    "_attn_implementation_autoset": False,
    "_attn_implementation_internal": None,
    "_experts_implementation_internal": None,
    "_from_auto": None,
    "_from_model_config": None,
    "_name_or_path": "",
    "adapters": None,
    "add_cross_attention": False,
    "auto_map": None,
    "bos_token_id": None,
    "configuration_files": None,
    "cross_attention_hidden_size": None,
    "custom_pipelines": None,
    "decoder_start_token_id": None,
    "eos_token_id": None,
    "finetuning_task": None,
    "gradient_checkpointing": False,
    "is_decoder": False,
    "keys_to_ignore_at_inference": None,
    "layer_types": None,
    "n_ctx": 1024,
    "num_labels": 2,
    "output_past": True,
    "pad_token_id": None,
    "predict_special_tokens": True,
    "prefix": None,
    "pruned_heads": {},
    "quantization_config": None,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sep_token_id": None,
    "task_specific_params": None,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_weights": None,
    "unsloth_fixed": None,
    "unsloth_version": None,
    "use_bfloat16": False,
    "vocab_size": None,
}
# Arguments of transformers 4's tokenizers for the same families, and fields that trainers add.
TOKENIZER_LEGACY = {
    "__type": None,
    "add_bos_token": True,
    "add_eos_token": False,
    "add_prefix_space": None,
    "additional_special_tokens": None,
    "added_tokens_decoder": None,
    "auto_map": None,
    "clean_up_tokenization_spaces": True,
    "device_map": None,
    "do_lower_case": False,
    "errors": "replace",
    "extra_special_tokens": None,
    "fast_tokenizer_files": None,
    "from_slow": None,
    "init_inputs": [],
    "is_local": None,
    "legacy": True,
    "local_files_only": None,
    "max_length": None,
    "max_len": None,
    "merges_file": None,
    "pad_to_multiple_of": None,
    "pad_token_type_id": 0,
    "processor_class": None,
    "response_schema": None,
    "slow_tokenizer_class": None,
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "special_tokens_map_file": None,
    "stride": 0,
    "tokenizer_class": None,
    "tokenizer_file": None,
    "tokenizer_type": None,
    "trim_offsets": True,
    "truncation": None,
    "truncation_strategy": None,
    "trust_remote_code": None,
    "unk_id": None,
    "use_default_system_prompt": False,
    "use_fast": True,
    "vocab_file": None,
}
# A dict of such a name holds the fields of the file.
KWARGS = ("kwargs", "init_kwargs", "local_kwargs")


def write_settings(out: Path) -> None:
    text = json.dumps(settings(), ensure_ascii=False, indent=1, allow_nan=False)
    (out / "settings.json").write_text(text + "\n", "utf-8")


def settings() -> Json:
    return {
        "transformers": transformers.__version__,
        "peft": version("peft"),
        "config.json": {
            **{family: config_fields(cls) for family, cls in CONFIGS.items()},
            "generation": plain(GenerationConfig._get_default_generation_params()),
            "legacy": plain(CONFIG_LEGACY),
            # "type" is the older name of "rope_type".
            "rope_parameters": plain(dict.fromkeys([*RopeParameters.__annotations__, "type"])),
        },
        "generation_config.json": generation_fields(),
        "tokenizer_config.json": {
            **{family: tokenizer_fields(cls) for family, cls in TOKENIZERS.items()},
            "auto": plain(found_in(AutoTokenizer.from_pretrained, ["tokenizer_config"])),
            "legacy": plain(TOKENIZER_LEGACY),
        },
        "adapter_config.json": {"lora": lora_fields()},
    }


def config_fields(cls: type[PreTrainedConfig]) -> Json:
    """A configuration class's own fields, what it takes from `kwargs`, and other names for these."""
    fields = {field.name: declared_default(field) for field in dataclasses.fields(cls)}
    fields["model_type"] = cls.model_type
    functions = [cls.__post_init__, PreTrainedConfig.__post_init__]
    functions += [RotaryEmbeddingConfigMixin.convert_rope_params_to_dict]
    functions += [RotaryEmbeddingConfigMixin.standardize_rope_params]
    for function in functions:
        fields = found_in(function) | fields
    fields = found_in(PreTrainedConfig.from_dict, []) | fields
    for other, name in cls.attribute_map.items():
        fields.setdefault(other, fields[name])
    if hasattr(cls, "keys_to_ignore_at_inference"):
        fields["keys_to_ignore_at_inference"] = cls.keys_to_ignore_at_inference
    # Fields that the class itself writes.
    for name, value in cls().to_dict().items():
        fields.setdefault(name, value)
    if "rope_parameters" in fields:
        fields["rope_theta"] = cls.default_theta
    fields["transformers_version"] = None
    return plain(fields)


def generation_fields() -> Json:
    """None is written for most: generation fills in its own defaults when it runs."""
    fields = found_in(GenerationConfig.__init__)
    fields |= {k: v for k, v in vars(GenerationConfig()).items() if not k.startswith("_original")}
    fields |= GenerationConfig._get_default_generation_params()
    fields["transformers_version"] = None
    return plain(fields)


def tokenizer_fields(cls: type[PreTrainedTokenizerBase]) -> Json:
    """The arguments that a tokenizer's `__init__` declares, and what it takes from `kwargs`."""
    fields = dict.fromkeys(cls.SPECIAL_TOKENS_ATTRIBUTES)
    for base in reversed(cls.__mro__):
        for name in ["__init__", "_from_pretrained", "convert_to_native_format"]:
            function = vars(base).get(name)
            if base is not object and function is not None:
                function = getattr(function, "__func__", function)
                fields |= found_in(function)
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in ("self", "args"):
            default = parameter.default
            fields[name] = None if default is inspect.Parameter.empty else default
    for name in ["model_input_names", "padding_side", "truncation_side"]:
        fields[name] = getattr(cls, name)
    fields["model_max_length"] = int(1e30)
    return plain(fields)


def lora_fields() -> Json:
    """LoraConfig's fields with those of its bases, read from its source: peft needs not run."""
    spec = importlib.util.find_spec("peft")
    assert spec is not None and spec.origin is not None, "pip install --no-deps peft"
    peft = Path(spec.origin).parent
    fields: Json = {}
    for file, classes in [
        ("config.py", ["PeftConfigMixin", "PeftConfig"]),
        ("tuners/lora/config.py", ["LoraConfig"]),
    ]:
        module = ast.parse((peft / file).read_text("utf-8"))
        for node in module.body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                fields |= annotated_fields(node)
    return plain(fields)


def annotated_fields(cls: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = node.value
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
                given = {word.arg: word.value for word in value.keywords}
                value = given.get("default", given.get("default_factory"))
            yield node.target.id, literal(value)


def found_in(function: Any, holders: Sequence[str] = KWARGS) -> Json:
    """The fields that a function takes out of its keyword arguments, with their defaults."""
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    fields: Json = {}
    for node in ast.walk(ast.parse(source)):
        # kwargs.pop("name", default), kwargs.get("name"), "name" in kwargs, getattr(self, "name")
        match node:
            case ast.Call(
                func=ast.Attribute(value=holder, attr="pop" | "get" | "setdefault"),
                args=[ast.Constant(value=str(name)), *rest],
            ) if is_one_of(holder, holders):
                fields.setdefault(name, literal(rest[0]) if rest else None)
            case ast.Compare(
                left=ast.Constant(value=str(name)),
                ops=[ast.In() | ast.NotIn()],
                comparators=[holder],
            ) if is_one_of(holder, holders):
                fields.setdefault(name, None)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"),
                args=[ast.Name(id="self"), ast.Constant(value=str(name)), *_],
            ):
                fields.setdefault(name, None)
            case ast.Assign(targets=[ast.Name(id="valid_fields")], value=ast.List(elts=names)):
                fields |= dict.fromkeys(literal(name) for name in names)
    return fields


def is_one_of(node: ast.expr, holders: Sequence[str]) -> bool:
    return ast.unparse(node).removeprefix("self.") in holders


def literal(node: ast.expr | None) -> Any:
    """A default as the source has it; none where it depends on something else."""
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return {"dict": {}, "list": []}.get(ast.unparse(node))


def declared_default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def plain(value: Any) -> Any:
    """As JSON, with the names of each object in order."""
    match value:
        case dict():
            return {str(key): plain(value[key]) for key in sorted(value, key=str)}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)
