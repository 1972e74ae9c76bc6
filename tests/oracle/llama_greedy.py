"""Greedy tokens of stock llama.cpp, to hold fsq to.

    python llama_greedy.py FILE.gguf < request.json > answer.json

Request: `{"prompts": [[1, 2, 3], "text", ...], "n": 64, "ignore_eos": false}`. A text prompt is tokenized by
llama.cpp with special tokens parsed and none added, unless `"add_special": true`.
Answer: `{"version": ..., "completions": [{"prompt_token_ids", "token_ids", "margins", "text"}]}`; `margins` holds
the distance of the best logit to the second at each token, so that a near tie can be told from a wrong kernel.
A completion ends before its end-of-generation token, or after `n` tokens.
A request `{"rows": [[1, 2, 3], ...]}` asks for the logits after the last token of each, every text read in one batch.
Its answer: `{"version": ..., "rows": [[...], ...]}`.
Either may name `"adapter"`, a LoRA adapter in a GGUF file, and `"kv": "q8_0"`: keys and values in 8 bits, which takes
flash attention. llama.cpp then rotates heads before it rounds them, if their width allows; not so with
`"rotated": false`. `"flash": true` takes flash attention with f16, too.

Everything that is not said here stands where llama-cpp-python's own class `Llama` leaves it (repacking, KV in f16, no
flash attention, whose sums in f16 are coarser than the products). No sampler is involved: the tokens are the arg max
of the logits, the lowest id first among equals.
"""

import argparse
import ctypes
import json
import os
import sys

import llama_cpp
import numpy as np


ERROR, CONTINUED = 4, 5  # GGML_LOG_LEVEL_ERROR and _CONT
last_level = 0


@llama_cpp.llama_log_callback
def log_errors(level, text, _user_data):
    global last_level
    if level != CONTINUED:
        last_level = level
    if last_level == ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


def fail(message):
    print(f"llama_greedy: {message}", file=sys.stderr)
    sys.exit(1)


def tokenize(vocab, text, add_special):
    raw = text.encode()
    room = len(raw) + 16
    tokens = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, room, add_special, True)
    if count < 0:
        fail(f"{room} tokens are not enough for {text!r}")
    return list(tokens[:count])


def detokenize(vocab, tokens):
    array = (llama_cpp.llama_token * max(1, len(tokens)))(*tokens)
    room = 64 * len(tokens) + 64
    buffer = ctypes.create_string_buffer(room)
    length = llama_cpp.llama_detokenize(vocab, array, len(tokens), buffer, room, False, True)
    return buffer.raw[: max(0, length)].decode(errors="replace")


def next_token(context, vocab_size):
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(vocab_size,))
    best = int(np.argmax(logits))
    second = np.partition(logits, -2)[-2]
    return best, float(logits[best] - second)


def decode(context, tokens):
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens)))
    if status != 0:
        fail(f"llama_decode returned {status}")


def complete(context, vocab, prompt, n, ignore_eos):
    vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
    wrong = [token for token in prompt if not 0 <= token < vocab_size]
    if not prompt or wrong:
        fail(f"a prompt needs token ids below {vocab_size}, found {prompt}")
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    decode(context, prompt)
    tokens, margins = [], []
    while len(tokens) < n:
        token, margin = next_token(context, vocab_size)
        if llama_cpp.llama_vocab_is_eog(vocab, token) and not ignore_eos:
            break
        tokens.append(token)
        margins.append(margin)
        if len(tokens) < n:
            decode(context, [token])
    text = detokenize(vocab, tokens)
    return {"prompt_token_ids": prompt, "token_ids": tokens, "margins": margins, "text": text}


def last_row(context, vocab, tokens):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    decode(context, tokens)
    shape = (llama_cpp.llama_vocab_n_tokens(vocab),)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=shape).tolist()


def apply_adapter(model, context, path):
    adapter = llama_cpp.llama_adapter_lora_init(model, path.encode())
    if not adapter:
        fail(f"llama.cpp cannot load the adapter {path}")
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
        fail(f"llama.cpp does not apply the adapter {path}")


def main():
    parser = argparse.ArgumentParser(description="Greedy tokens of stock llama.cpp.")
    parser.add_argument("file")
    # One: threads that wait for each other in a loop stall on a machine with other work.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    request = json.load(sys.stdin)

    llama_cpp.llama_log_set(log_errors, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(arguments.file.encode(), llama_cpp.llama_model_default_params())
    if not model:
        fail(f"llama.cpp cannot load {arguments.file}")
    vocab = llama_cpp.llama_model_get_vocab(model)
    add_special = request.get("add_special", False)
    texts = request["rows"] if "rows" in request else request["prompts"]
    prompts = [tokenize(vocab, it, add_special) if isinstance(it, str) else it for it in texts]

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = max(map(len, prompts)) + request.get("n", 0)
    parameters.n_threads = parameters.n_threads_batch = arguments.threads
    kv = request.get("kv", "f16")
    if not request.get("rotated", True):
        os.environ["LLAMA_ATTN_ROT_DISABLE"] = "1"
    if kv == "q8_0":
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_Q8_0
    elif kv == "f16":
        flash_types = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.flash_attn_type = flash_types[request.get("flash", False)]
    else:
        fail(f"kv: expected f16 or q8_0, found {kv!r}")
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        fail("llama.cpp cannot make a context")
    if "adapter" in request:
        apply_adapter(model, context, request["adapter"])
    answer = {"version": llama_cpp.__version__}
    if "rows" in request:
        answer["rows"] = [last_row(context, vocab, it) for it in prompts]
    else:
        ignore_eos = request.get("ignore_eos", False)
        answer["completions"] = [complete(context, vocab, it, request["n"], ignore_eos) for it in prompts]
    json.dump(answer, sys.stdout)
    print()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main()
