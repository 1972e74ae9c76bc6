"""What eight candidate plans for one state cost beside one, over HTTP.

    cargo build --profile dist --package fsq --no-default-features --features serve
    python3 benches/serving/plans.py POLICY.gguf --fsq target/dist/fsq --out plans.json

Asks `/v1/foresight` for one plan and for several, turn by turn, for states that the server has not seen, each after a
further one has been answered, so that the chat's layout is in the cache as it is in use. A request for one plan takes
the time to its first estimate. Several plans should take less than twice that and the decoding of the longest of them,
which is counted by what a token of a single plan takes.
Needs Python's standard library only, and a policy that knows the game of numbers (`fsq demo` makes one).
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import time


def ask(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.perf_counter()
    connection.request("POST", "/v1/foresight", json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    taken_s = time.perf_counter() - begun
    connection.close()
    if response.status != 200:
        raise SystemExit(f"status {response.status}: {answer}")
    return taken_s, answer


def state(random_):
    numbers = " ".join(str(random_.randint(1, 20)) for _ in range(3))
    return f"numbers {numbers} goal {random_.randint(10, 60)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="POLICY")
    parser.add_argument("--fsq", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plans", type=int, default=8)
    parser.add_argument("--states", type=int, default=40)
    parser.add_argument("--tokens-max", type=int, default=256)
    parser.add_argument("--serve-arguments", type=str.split, default=[], help="such as '--draft-rows 0'")
    options = parser.parse_args()
    command = [options.fsq, "--json", "--threads", str(options.threads), "serve", options.file]
    command += ["--listen", "127.0.0.1:0", *options.serve_arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
        some, rows = random.Random(1), []
        ask(port, {"state": state(some), "plans": 1})
        for seed in range(options.states):
            row = {}
            # A state of its own for each, or the second would find the first's pages.
            for n_plans in (1, options.plans) if seed % 2 else (options.plans, 1):
                body = {"state": state(some), "plans": n_plans, "seed": seed, "max_tokens": options.tokens_max}
                taken_s, answer = ask(port, body)
                lengths = answer["usage"]
                row[n_plans] = {"taken_s": taken_s, **lengths,
                                "longest_bytes": max(len(it["text"]) for it in answer["plans"]),
                                "n_estimates": sum(it.get("estimate") is not None for it in answer["plans"])}
            rows.append(row)
    finally:
        server.terminate()
        server.wait()
    one = [it[1] for it in rows]
    several = [it[options.plans] for it in rows]
    one_s = statistics.mean(it["taken_s"] for it in one)
    several_s = statistics.mean(it["taken_s"] for it in several)
    # At most: all of a single plan's time taken for decoding.
    byte_s = sum(it["taken_s"] for it in one) / sum(it["longest_bytes"] for it in one)
    bound_s = 2 * one_s + byte_s * statistics.mean(it["longest_bytes"] for it in several)
    result = {"file": options.file, "serve_arguments": options.serve_arguments, "threads": options.threads,
              "n_plans": options.plans, "n_states": len(rows),
              "one_plan_s": one_s, "several_plans_s": several_s, "ratio": several_s / one_s, "bound_s": bound_s,
              "one_plan_tokens": statistics.mean(it["completion_tokens"] for it in one),
              "several_plans_tokens": statistics.mean(it["completion_tokens"] for it in several), "rows": rows}
    with open(options.out, "w") as out:
        json.dump(result, out, indent=1)
    print(f"one plan {one_s * 1000:.1f} ms, {options.plans} plans {several_s * 1000:.1f} ms: "
          f"{several_s / one_s:.2f} times; at most {bound_s * 1000:.1f} ms was aimed at")


if __name__ == "__main__":
    main()
