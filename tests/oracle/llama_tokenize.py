"""Tokens of stock llama.cpp, to hold fsq's tokenizers to.

    python llama_tokenize.py FILE.gguf < request.json > answer.json

The file needs no weights: only its vocabulary is loaded.
Request: `{"texts": ["text", ...]}`.
Answer: `{"version", "n_tokens", "bos", "eos", "adds_bos", "ends", "parsed": [[...], ...], "escaped": [[...], ...],
"decoded": ["text", ...]}`. `parsed` has the tokens of each text with special tokens parsed, `escaped` without;
neither has a token put before it. `decoded` has the text of each of `parsed`, special tokens included. `bos` and
`eos` are null where there is none, `ends` are the tokens that end a generation.
"""

import ctypes
import json
import sys

import llama_cpp


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
    print(f"llama_tokenize: {message}", file=sys.stderr)
    sys.exit(1)


def tokenize(vocab, raw, parse_special):
    room = 4 * len(raw) + 16
    tokens = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, room, False, parse_special)
    if count < 0:
        fail(f"{room} tokens are not enough for {raw!r}")
    return list(tokens[:count])


def detokenize(vocab, tokens):
    array = (llama_cpp.llama_token * max(1, len(tokens)))(*tokens)
    room = 256 * len(tokens) + 64
    buffer = ctypes.create_string_buffer(room)
    length = llama_cpp.llama_detokenize(vocab, array, len(tokens), buffer, room, False, True)
    return buffer.raw[: max(0, length)].decode(errors="replace")


def main():
    request = json.load(sys.stdin)
    llama_cpp.llama_log_set(log_errors, None)
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
    if not model:
        fail(f"llama.cpp cannot load {sys.argv[1]}")
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_tokens = llama_cpp.llama_vocab_n_tokens(vocab)
    texts = [it.encode() for it in request["texts"]]
    parsed = [tokenize(vocab, it, True) for it in texts]
    known = lambda token: token if token >= 0 else None
    answer = {
        "version": llama_cpp.__version__,
        "n_tokens": n_tokens,
        "bos": known(llama_cpp.llama_vocab_bos(vocab)),
        "eos": known(llama_cpp.llama_vocab_eos(vocab)),
        "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "ends": [token for token in range(n_tokens) if llama_cpp.llama_vocab_is_eog(vocab, token)],
        "parsed": parsed,
        "escaped": [tokenize(vocab, it, False) for it in texts],
        "decoded": [detokenize(vocab, it) for it in parsed],
    }
    json.dump(answer, sys.stdout)
    print()
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main()
