"""Alternates `fsq bench` with llama.cpp, and with candle and mistral.rs where asked, on the same files.

    python compare.py --fsq target/release/fsq --out benches/runs/2026-01-31-cpu FILE.gguf ...

Every round measures each engine once, in an order that turns from round to round, so that what else the machine does
hits all alike. A ratio is the median over the rounds of fsq's speed by that of the peer (llama.cpp with each of its
option sets is several) which is best by its own median. Writes OUT.json (everything, with command lines) and OUT.md (the table).

With `--cpu-time`, for a machine that others work on meanwhile, speeds are tokens by seconds of processor time instead
of the clock's. It is meant for one thread: threads that wait for each other burn time. What fsq uses for a phase is the
difference of two runs, with and without it. Memory and caches are still shared with the others.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
OPTION_SETS = {
    "repack": [],
    "repack, flash attention": ["--flash"],
    "no repack": ["--no-repack"],
    "no repack, flash attention": ["--no-repack", "--flash"],
}
PHASES = "prefill", "decode"


def shown(command):
    """A command line without the folders of this machine."""
    return " ".join(pathlib.Path(it).name if it.startswith("/") else it for it in command)


class Peer:
    """A process that measures itself when told to, and waits while others are measured."""

    def __init__(self, command, arguments):
        self.command = command
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())
        self.n_prompt, self.n_generate = arguments.prompt, arguments.generate
        self.unit = "cpu_s" if arguments.cpu_time else "s"

    def measure(self):
        self.process.stdin.write("measure\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        read, written = (found[f"{it}_{self.unit}"] for it in PHASES)
        speeds = {"prefill": self.n_prompt / read, "decode": self.n_generate / written}
        return {**speeds, "raw": found}

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    def __init__(self, file, arguments):
        self.n_prompt, self.n_generate, self.repetitions = arguments.prompt, arguments.generate, arguments.repetitions
        self.cpu_time = arguments.cpu_time
        self.start = [arguments.fsq, "bench", str(file), "--threads", str(arguments.threads), "--json"]
        self.command = self.line(self.n_prompt, self.n_generate)

    def line(self, n_prompt, n_generate):
        return [*self.start, "-p", str(n_prompt), "-n", str(n_generate), "-r", str(self.repetitions)]

    def run(self, command):
        """The row that is told, and seconds of processor time."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        [row] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        row["file"] = pathlib.Path(row["file"]).name
        return row, after.ru_utime - before.ru_utime

    def measure(self):
        if not self.cpu_time:
            row, _ = self.run(self.command)
            return {**{it: row[f"{it}_tokens_per_s"]["median"] for it in PHASES}, "raw": row}
        _, neither = self.run(self.line(1, 1))
        row, both = self.run(self.command)
        _, prompt = self.run(self.line(self.n_prompt, 1))
        n_runs = self.repetitions + 1  # One warms up.
        speeds = {
            "prefill": n_runs * (self.n_prompt - 1) / (prompt - neither),
            "decode": n_runs * (self.n_generate - 1) / (both - prompt),
        }
        return {**speeds, "raw": {**row, "cpu_s": {"neither": neither, "prompt": prompt, "both": both}}}


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peers(file, arguments):
    """Command lines by name."""
    sizes = {"--threads": arguments.threads, "--prompt": arguments.prompt, "--generate": arguments.generate}
    sizes = {name: str(it) for name, it in sizes.items()}
    flags = [it for pair in sizes.items() for it in pair]
    start = [sys.executable, str(HERE / "llama_worker.py"), str(file), *flags]
    sets = [] if arguments.without_llama else arguments.option or OPTION_SETS
    commands = {f"llama.cpp: {name}": [*start, *OPTION_SETS[name]] for name in sets}
    if arguments.candle:
        commands["candle"] = [arguments.candle, str(file), *sizes.values()]
    if arguments.mistralrs:
        commands["mistral.rs"] = [arguments.mistralrs, str(HERE / "mistralrs_worker.py"), str(file), *flags]
    return commands


def compare(file, arguments):
    engines = {"fsq": Ours(file, arguments)}
    engines |= {name: Peer(command, arguments) for name, command in peers(file, arguments).items()}
    rounds = []
    for index in range(arguments.rounds):
        names = list(engines)
        names = names[index % len(names) :] + names[: index % len(names)]
        rounds.append({name: engines[name].measure() for name in names})
        rounds[-1]["load"] = os.getloadavg()[0]
        told = ", ".join(f"{it} {rounds[-1][it]['prefill']:.1f}/{rounds[-1][it]['decode']:.1f}" for it in engines)
        print(f"{file.name} round {index + 1}: {told}, load {rounds[-1]['load']:.1f}", file=sys.stderr, flush=True)
    result = {
        "file": file.name,
        "bytes": file.stat().st_size,
        "commands": {name: shown(engine.command) for name, engine in engines.items()},
        "versions": {name: engine.about for name, engine in engines.items() if isinstance(engine, Peer)},
        "rounds": rounds,
        "engines": {name: {it: spread([r[name][it] for r in rounds]) for it in PHASES} for name in engines},
        "ratios": {},
    }
    for phase in PHASES:
        others = [it for it in engines if it != "fsq"]
        best = max(others, key=lambda it: result["engines"][it][phase]["median"])
        ratios = spread([it["fsq"][phase] / it[best][phase] for it in rounds])
        result["ratios"][phase] = {"best": best, **ratios}
    for engine in engines.values():
        if isinstance(engine, Peer):
            engine.close()
    return result


def table(results, arguments):
    ours = results[0]["rounds"][0]["fsq"]["raw"]
    loads = [it["load"] for result in results for it in result["rounds"]]
    lines = [
        f"# fsq and other engines on the CPU, {arguments.date}",
        "",
        f"{ours['threads']} threads of {platform.machine()} ({processor()}), fsq on `{ours['path']}`.",
        f"Prompt of {arguments.prompt} tokens in one batch, {arguments.generate} tokens behind it.",
        f"Tokens by second of {'processor time' if arguments.cpu_time else 'the clock'}, median [least, most] of {arguments.rounds} rounds in which the engines take turns.",
        f"Load average between {min(loads):.1f} and {max(loads):.1f}: other work ran beside all of them.",
        "Random weights of true shape; what the vocabulary was cut to stands in the file's name.",
        "A ratio is the median over the rounds of fsq by the best of the others.",
        "Raw output and command lines are in the JSON file beside this one; `bash benches/cpu/run` makes both again.",
        "",
        "| file | engine | prefill | decode |",
        "|---|---|---|---|",
    ]
    around = lambda it: f"{it['median']:.1f} [{it['min']:.1f}, {it['max']:.1f}]"
    for result in results:
        for name, speeds in result["engines"].items():
            lines.append(f"| {result['file']} | {name} | {around(speeds['prefill'])} | {around(speeds['decode'])} |")
    lines += ["", "| file | prefill ratio | decode ratio | bandwidth used (by the clock) | resident bytes / file |", "|---|---|---|---|---|"]
    times = lambda it: f"{it['median']:.2f} [{it['min']:.2f}, {it['max']:.2f}] × {it['best'].removeprefix('llama.cpp: ')}"
    for result in results:
        ratios = result["ratios"]
        rows = [it["fsq"]["raw"] for it in result["rounds"]]
        share = statistics.median(it["roofline"]["share"] for it in rows)
        memory = max(it["rss_bytes_max"] for it in rows) / result["bytes"]
        cells = result["file"], times(ratios["prefill"]), times(ratios["decode"]), f"{100 * share:.0f} %", f"{memory:.2f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def processor():
    names = [it.split(":")[1].strip() for it in open("/proc/cpuinfo") if it.startswith("model name")]
    return names[0] if names else "unknown"


def main():
    parser = argparse.ArgumentParser(description="fsq and other engines in turns.")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--fsq", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not the clock's")
    parser.add_argument("--option", action="append", choices=OPTION_SETS, help="of llama.cpp; all unless some are named")
    parser.add_argument("--without-llama", action="store_true", help="only the engines named below")
    parser.add_argument("--candle", metavar="PROGRAM", help="built from the folder candle beside this script")
    parser.add_argument("--mistralrs", metavar="PYTHON", help="a Python with the package mistralrs")
    arguments = parser.parse_args()
    arguments.date = datetime.date.today().isoformat()
    results = [compare(it, arguments) for it in arguments.files]
    arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(results, arguments))


if __name__ == "__main__":
    main()
