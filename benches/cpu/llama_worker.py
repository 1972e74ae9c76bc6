"""llama.cpp with one option set, measured on demand: a process that waits while others are measured.

    python llama_worker.py FILE.gguf --threads 2 --prompt 512 --generate 64 [--flash] [--no-repack]

It answers each line of its input with a line of JSON: seconds for the prompt in one batch, seconds for the tokens
behind it, both by the clock and of the processor, and the largest resident memory so far. Only `llama_decode` is
timed: no tokenizer, no sampler.
"""

import argparse
import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def quiet(_level, _text, _user_data):
    pass


def peak_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return None


class Worker:
    def __init__(self, arguments):
        self.n_prompt, self.n_generate = arguments.prompt, arguments.generate
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.use_extra_bufts = not arguments.no_repack
        self.model = llama_cpp.llama_model_load_from_file(arguments.file.encode(), model_parameters)
        assert self.model, f"llama.cpp cannot load {arguments.file}"
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = arguments.prompt + arguments.generate
        parameters.n_batch = parameters.n_ubatch = arguments.prompt
        parameters.n_threads = parameters.n_threads_batch = arguments.threads
        flash = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if arguments.flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = flash
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp cannot make a context"
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        begun = time.perf_counter(), time.process_time()
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        assert status == 0 and logits, f"llama_decode returned {status}"
        return np.array([time.perf_counter() - begun[0], time.process_time() - begun[1]])

    def measure(self):
        token = lambda index: index * 2654435761 % self.vocab
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        read = self.decode([token(it) for it in range(self.n_prompt)])
        written = sum(self.decode([token(it)]) for it in range(self.n_generate))
        seconds = {"prefill_s": read[0], "decode_s": written[0], "prefill_cpu_s": read[1], "decode_cpu_s": written[1]}
        return {**seconds, "rss_bytes_max": peak_bytes()}


def main():
    parser = argparse.ArgumentParser(description="llama.cpp, measured on demand.")
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--generate", type=int, required=True)
    parser.add_argument("--flash", action="store_true")
    parser.add_argument("--no-repack", action="store_true")
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    worker = Worker(arguments)
    worker.measure()  # The first fills caches and is not told.
    print(json.dumps({"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode()}))
    sys.stdout.flush()
    for _ in sys.stdin:
        print(json.dumps(worker.measure()))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
