"""What llama-perplexity would say of two files on a text, from the logits of stock llama.cpp.

    python llama_compare.py < request.json > answer.json

Request: `{"reference": FILE, "candidate": FILE, "text": "...", "context": 512, "flash": false}`; `flash` is whether
attention is computed in one piece, whose sums round otherwise.
Answer: the statistics of `--kl-divergence` (llama.cpp, tools/perplexity/perplexity.cpp), computed in f64 from logits
as they are, where that program first puts the reference's into 16 bits.

The text becomes windows of `context` tokens, each beginning with the token that begins a text where the vocabulary
asks for one; in the second half of each, what comes next is judged.
"""

import json
import sys

import llama_cpp
import numpy as np

from llama_greedy import fail, log_errors, tokenize

PERCENTILES = [("p001", 0.1), ("p01", 1), ("p05", 5), ("p10", 10), ("p25", 25), ("median", 50), ("p75", 75),
               ("p90", 90), ("p95", 95), ("p99", 99), ("p999", 99.9), ("min", 0), ("max", 100)]


class Policy:
    def __init__(self, file, size, flash):
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            fail(f"llama.cpp cannot load {file}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = size
        parameters.n_threads = parameters.n_threads_batch = 2
        flash_types = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.flash_attn_type = flash_types[flash]
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)

    def logits(self, tokens):
        """Logits after every token: [tokens, vocabulary]."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            fail(f"llama_decode returned {status}")
        shape = (len(tokens), llama_cpp.llama_vocab_n_tokens(self.vocab))
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=shape).astype(np.float64)


def windows(vocab, text, size):
    tokens = tokenize(vocab, text, True)
    for start in range(0, len(tokens) - size + 1, size):
        window = tokens[start : start + size]
        if llama_cpp.llama_vocab_get_add_bos(vocab):
            window[0] = llama_cpp.llama_vocab_bos(vocab)
        yield window


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def judge(reference, candidate, window):
    places = np.arange(len(window) // 2, len(window) - 1)
    following = np.array(window)[places + 1]
    p, q = (log_softmax(it.logits(window)[places]) for it in (reference, candidate))
    rows = np.arange(len(places))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return np.stack([kl, -p[rows, following], -q[rows, following], p.argmax(axis=1) == q.argmax(axis=1)])


def main():
    request = json.load(sys.stdin)
    llama_cpp.llama_log_set(log_errors, None)
    llama_cpp.llama_backend_init()
    settings = request["context"], request["flash"]
    reference, candidate = (Policy(request[it], *settings) for it in ("reference", "candidate"))
    cut = windows(reference.vocab, request["text"], request["context"])
    kl, nll_p, nll_q, same = np.concatenate([judge(reference, candidate, it) for it in cut], axis=1)
    n, delta = len(kl), np.exp(-nll_q) - np.exp(-nll_p)
    error = lambda it: np.sqrt((np.square(it).mean() - it.mean() ** 2) / (n - 1))
    shared = ((nll_p * nll_q).mean() - nll_p.mean() * nll_q.mean()) / (n - 1)
    ratio = np.exp(nll_q.mean() - nll_p.mean())
    answer = {
        "n_tokens": n,
        "kl_mean": kl.mean(), "kl_mean_error": error(kl), "kl_max": kl.max(),
        "top1_agreement": same.mean(), "top1_agreement_error": np.sqrt(same.mean() * (1 - same.mean()) / (n - 1)),
        "perplexity_reference": np.exp(nll_p.mean()), "perplexity_candidate": np.exp(nll_q.mean()),
        "perplexity_reference_error": np.exp(nll_p.mean()) * error(nll_p),
        "perplexity_candidate_error": np.exp(nll_q.mean()) * error(nll_q),
        "perplexity_ratio": ratio,
        "perplexity_ratio_error": ratio * np.sqrt(error(nll_p) ** 2 + error(nll_q) ** 2 - 2 * shared),
        "log_perplexity_correlation": shared / error(nll_p) / error(nll_q),
        "delta_p": {"mean": delta.mean(), "mean_error": error(delta), "rms": np.sqrt(np.square(delta).mean())},
    }
    answer |= {f"kl_{name}": np.percentile(kl, share) for name, share in PERCENTILES if name in
               ("median", "p90", "p95", "p99", "p999")}
    answer["delta_p"] |= {name: np.percentile(delta, share) for name, share in PERCENTILES}
    json.dump(answer, sys.stdout, default=lambda it: it.item())
    print()


if __name__ == "__main__":
    main()
