"""Lets `fsq serve` and llama.cpp's `llama-server` take turns on one file, and compares what clients see.

    cargo build --profile dist --package fsq --no-default-features --features serve
    python3 benches/serving/compare.py FILE.gguf… --fsq target/dist/fsq --llama-server PATH/llama-server --out DIR

Each of N clients sends requests one after the other over HTTP: a beginning of 300 tokens that all share, 20 tokens of
its own, and 64 tokens to generate greedily. Servers run one at a time, as started by default but for threads, context
and N sequences beside each other. Every measurement starts a server afresh and warms it up with another text; rounds
change the order of the servers. Beside throughput the time to the first token is measured, from the request to the
first chunk of its stream.

`raw.json` holds every request of every run; `summary.md` is made from nothing else.
Needs Python's standard library only.
"""

import argparse
import http.client
import json
import os
import platform
import random
import socket
import subprocess
import threading
import time

PREFIX_TOKENS, OWN_TOKENS, GENERATED_TOKENS = 300, 20, 64
SERVERS = ("fsq", "llama-server")


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def command(server, options, file, n_clients, port):
    context = PREFIX_TOKENS + OWN_TOKENS + GENERATED_TOKENS + 32
    if server == "fsq":
        return [options.fsq, "--threads", str(options.threads), "serve", file, "--listen", f"127.0.0.1:{port}",
                "--context", str(context), "--sequences", str(n_clients), *options.fsq_arguments]
    return [options.llama_server, "-m", file, "-t", str(options.threads), "-tb", str(options.threads),
            "-c", str(context * n_clients), "-np", str(n_clients), "--host", "127.0.0.1", "--port", str(port),
            *options.llama_arguments]


class Server:
    """A server on a port of this machine, from its start until it is stopped."""

    def __init__(self, server, options, file, n_clients):
        self.port = free_port()
        self.log = open(os.path.join(options.out, f"{server}.log"), "ab")
        self.process = subprocess.Popen(command(server, options, file, n_clients, self.port), stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        path = "/ready" if server == "fsq" else "/health"
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"{server} ended with {self.process.returncode}; see its log in {options.out}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"{server} was not ready after a minute")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def complete(port, tokens, forbidden):
    """One streamed completion: seconds to its first chunk, to each further one, to its end, and its tokens."""
    body = {"prompt": tokens, "max_tokens": GENERATED_TOKENS, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "logit_bias": {str(it): -100 for it in forbidden}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    begun = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read(2000)!r}")
    chunks_s, n_generated, text = [], 0, []
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        chunk = json.loads(line[6:])
        if chunk.get("choices"):
            chunks_s.append(time.perf_counter() - begun)
            text.append(chunk["choices"][0].get("text") or "")
        if chunk.get("usage"):
            n_generated = chunk["usage"]["completion_tokens"]
    connection.close()
    return {"first_s": chunks_s[0], "end_s": time.perf_counter() - begun, "n_generated": n_generated,
            "chunks_s": [round(it, 5) for it in chunks_s], "text": "".join(text)}


def measure(server, options, file, n_clients, seed):
    """All requests of N clients, and the seconds from the first to the end of the last."""
    vocab = options.vocab
    some = random.Random(seed)
    # Low ids are bytes and controls in most vocabularies.
    token = lambda it: it.randrange(300, vocab)
    prefix = [token(some) for _ in range(PREFIX_TOKENS)]
    n_each = max(options.requests_min // n_clients, 2)
    rows, failures = [], []

    def client(index):
        own = random.Random(seed * 1000 + index)
        for turn in range(n_each):
            tokens = prefix + [token(own) for _ in range(OWN_TOKENS)]
            try:
                row = complete(running.port, tokens, options.forbid)
            except (OSError, RuntimeError, IndexError, http.client.HTTPException) as error:
                failures.append(f"client {index}, request {turn}: {error!r}")
                return
            rows.append({"client": index, "turn": turn, **row})

    with Server(server, options, file, n_clients) as running:
        complete(running.port, [token(some) for _ in range(40)], options.forbid)
        begun = time.perf_counter()
        clients = [threading.Thread(target=client, args=(it,)) for it in range(n_clients)]
        for it in clients:
            it.start()
        for it in clients:
            it.join()
        wall_s = time.perf_counter() - begun
    if failures:
        raise SystemExit("\n".join(failures))
    return {"server": server, "file": os.path.basename(file), "n_clients": n_clients, "seed": seed,
            "wall_s": wall_s, "requests": sorted(rows, key=lambda it: (it["client"], it["turn"]))}


def quantile(values, share):
    """The smallest value that at least this share of all is not above."""
    values = sorted(values)
    return values[min(len(values) - 1, max(0, -(-int(share * 1000) * len(values) // 1000) - 1))]


def summary(raw):
    lines = ["| file | clients | server | generated tokens/s | first token p50 | p95 | of first requests p95 "
             "| between tokens p95 |", "|---|---|---|---|---|---|---|---|"]
    groups = {}
    for run in raw["runs"]:
        groups.setdefault((run["file"], run["n_clients"], run["server"]), []).append(run)
    for (file, n_clients, server), runs in sorted(groups.items()):
        requests = [it for run in runs for it in run["requests"]]
        rate = sum(it["n_generated"] for it in requests) / sum(it["wall_s"] for it in runs)
        first = [it["first_s"] for it in requests]
        cold = [it["first_s"] for it in requests if it["turn"] == 0]
        gaps = [b - a for it in requests for a, b in zip(it["chunks_s"], it["chunks_s"][1:])] or [0]
        lines.append(f"| {file} | {n_clients} | {server} | {rate:.1f} | {quantile(first, .5):.2f} s "
                     f"| {quantile(first, .95):.2f} s | {quantile(cold, .95):.2f} s | {quantile(gaps, .95):.3f} s |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--fsq", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--out", required=True, help="folder for raw.json, summary.md and the servers' logs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", default="1,4,8,16", help="how many at a time")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests-min", type=int, default=16, help="requests of a run, at least two of each client")
    parser.add_argument("--vocab", type=int, default=30000, help="prompts hold ids below it")
    parser.add_argument("--forbid", type=lambda it: [int(id) for id in it.split(",")], default=[],
                        help="ids that are never generated, such as the end token's")
    parser.add_argument("--fsq-arguments", type=str.split, default=[])
    parser.add_argument("--llama-arguments", type=str.split, default=[])
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    version = subprocess.run([options.llama_server, "--version"], capture_output=True, text=True, check=False)
    raw = {"command": vars(options), "machine": f"{platform.processor()} {os.cpu_count()} cores",
           "llama_server": (version.stdout + version.stderr).strip(), "runs": []}
    for file in options.files:
        for round_index in range(options.rounds):
            for n_clients in map(int, options.clients.split(",")):
                servers = options.servers.split(",")
                # Whoever goes first finds the machine cooler and the file less cached.
                for server in servers if round_index % 2 == 0 else reversed(servers):
                    raw["runs"].append(measure(server, options, file, n_clients, round_index * 100 + n_clients))
                    with open(os.path.join(options.out, "raw.json"), "w") as out:
                        json.dump(raw, out)
                    with open(os.path.join(options.out, "summary.md"), "w") as out:
                        out.write(summary(raw))
    print(summary(raw), end="")


if __name__ == "__main__":
    main()
