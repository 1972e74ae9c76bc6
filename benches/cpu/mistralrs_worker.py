"""mistral.rs with one GGUF file, measured on demand: the protocol of `llama_worker.py`.

    python mistralrs_worker.py FILE.gguf --threads 2 --prompt 512 --generate 64

Needs the PyPI package `mistralrs`. The program takes text, so the prompt is a word of one token said often enough; the
seconds are what it tells of itself, which leaves out tokenizer and sampler as far as it does so.
"""

import argparse
import json
import os
import sys


def main():
    parser = argparse.ArgumentParser(description="mistral.rs, measured on demand.")
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--generate", type=int, required=True)
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    # The program logs to standard output: that becomes the error's, and answers go where the old one led.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import mistralrs

    folder, name = os.path.split(os.path.abspath(arguments.file))
    which = mistralrs.Which.GGUF(tok_model_id=None, quantized_model_id=folder, quantized_filename=name)
    runner = mistralrs.Runner(which=which, prefix_cache_n=0, no_paged_attn=True, token_source="none")

    def ask(n_words):
        request = mistralrs.CompletionRequest(
            model="policy", prompt=" ".join(["ann"] * n_words), max_tokens=arguments.generate, temperature=0.0
        )
        return runner.send_completion_request(request).usage

    n_words = arguments.prompt - (ask(8).prompt_tokens - 8)  # The template may add a token or two.

    def measure():
        usage = ask(n_words)
        assert usage.prompt_tokens == arguments.prompt, usage
        # A policy of random weights may end a text early: what is told is by token.
        return {
            "prefill_s": usage.total_prompt_time_sec,
            "decode_s": usage.total_completion_time_sec * arguments.generate / usage.completion_tokens,
        }

    measure()  # The first fills caches and is not told.
    print(json.dumps({"version": f"mistralrs {mistralrs.__version__ if hasattr(mistralrs, '__version__') else ''}"}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


if __name__ == "__main__":
    main()
