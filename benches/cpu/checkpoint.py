"""Writes a checkpoint of a known shape with random weights: speed depends on shapes and formats, not on values.

    python checkpoint.py llama-1b FOLDER --tokenizer finetune/base [--vocab 32768]

The weights are one block of normal deviates, read from a new place for each tensor; scaled so that activations stay
tame. The tokenizer is a small one, its unused places filled up with `<fill-N>`: no text is read here, only token ids.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np

SHAPES = {
    # meta-llama/Llama-3.2-1B, config.json
    "llama-1b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "torch_dtype": "float16",
    },
    # Qwen/Qwen2.5-0.5B, config.json
    "qwen-0.5b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float16", "use_sliding_window": False,
    },
}


def tensors(config):
    """Names and shapes in the order of the file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, rows in ("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim):
            yield prefix + f"self_attn.{name}_proj.weight", (rows, hidden)
            if config["model_type"] == "qwen2":
                yield prefix + f"self_attn.{name}_proj.bias", (rows,)
        yield prefix + "self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def write_safetensors(path, config):
    pool = (np.random.default_rng(1).standard_normal(1 << 24, dtype=np.float32) * 0.02).astype(np.float16)
    header, end = {}, 0
    for name, shape in tensors(config):
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        at = 0
        for name, shape in tensors(config):
            left = int(np.prod(shape))
            if len(shape) == 1:
                file.write(np.full(left, 1.0 if "norm" in name else 0.01, np.float16).tobytes())
                continue
            while left:
                part = pool[at : at + left]
                file.write(part.tobytes())
                left -= len(part)
                at = (at + len(part) + 7919) % len(pool)


def write_tokenizer(source, folder, vocab):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    n_special = len(tokenizer["added_tokens"])
    first = max(list(known.values()) + [it["id"] for it in tokenizer["added_tokens"]]) + 1
    known.update({f"<fill-{it}>": it for it in range(first, vocab)})
    assert len(known) <= vocab <= len(known) + n_special, "a vocabulary without holes"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in "tokenizer_config.json", "chat_template.jinja":
        shutil.copy(source / name, folder / name)


def main():
    parser = argparse.ArgumentParser(description="A random checkpoint of a known shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--vocab", type=int, help="cut the vocabulary to this many tokens")
    arguments = parser.parse_args()
    config = dict(SHAPES[arguments.shape])
    config["vocab_size"] = arguments.vocab or config["vocab_size"]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(arguments.tokenizer, arguments.folder, config["vocab_size"])
    config.update(bos_token_id=0, eos_token_id=3)
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))
    write_safetensors(arguments.folder / "model.safetensors", config)


if __name__ == "__main__":
    main()
