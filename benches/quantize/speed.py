#!/usr/bin/env python3
"""How long `fsq quantize` and llama.cpp take from 16 bits to a quantized file, by turns in one run.

    python speed.py --fsq target/release/fsq --oracle "$FSQ_ORACLE_PYTHON" --checkpoint CHECKPOINT --work work

fsq is timed as a process, from the checkpoint to the published file, its checks, digests and sync included; llama.cpp
by its one call, without loading Python, from a GGUF file in F16 that fsq wrote of the same checkpoint, with a thread
for each processor. The files of both lie in WORK, and what is dirty is synced before each turn. Peak memory is what the
system counts for the process, mapped pages of files included.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE_TYPES = {"q4_k_m": "15", "q8_0": "7"}  # llama.cpp's numbers


def run(parts):
    """Wall time and processor time in seconds, peak memory in MiB, and what was written to stderr."""
    os.sync()
    started = time.monotonic()
    child = subprocess.Popen([str(it) for it in parts], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        raise SystemExit(f"{shlex.join(map(str, parts))}: status {status}\n{said}")
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}, said


def fsq(arguments, to):
    out = arguments.work / "ours"
    written = out / f"p-{to.upper()}.gguf"
    written.unlink(missing_ok=True)
    told, _ = run([*arguments.fsq, "quantize", arguments.checkpoint, "--to", to, "--name", "p", "--out", out])
    return {**told, "bytes": written.stat().st_size}


def llama_cpp(arguments, source, to):
    out = arguments.work / f"llama-{to}.gguf"
    out.unlink(missing_ok=True)
    script = ROOT / "tests/oracle/llama_quantize.py"
    told, said = run([*arguments.oracle, script, source, out, FILE_TYPES[to]])
    told["seconds"] = next(float(it.split()[1]) for it in said.splitlines() if it.startswith("seconds "))
    return {**told, "bytes": out.stat().st_size}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsq", type=shlex.split, required=True)
    parser.add_argument("--oracle", type=shlex.split, required=True, help="the Python that has llama-cpp-python")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--to", nargs="+", choices=FILE_TYPES, default=list(FILE_TYPES))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = arguments.work / "p-F16.gguf"
    if not source.exists():
        run([*arguments.fsq, "quantize", arguments.checkpoint, "--to", "f16", "--name", "p", "--out", arguments.work])
    for to in arguments.to:
        turns = [(fsq(arguments, to), llama_cpp(arguments, source, to)) for _ in range(arguments.rounds)]
        ours, theirs = (statistics.median(it[side]["seconds"] for it in turns) for side in (0, 1))
        for name, side in (("fsq", 0), ("llama.cpp", 1)):
            seconds = ", ".join(f"{it[side]['seconds']:.2f}" for it in turns)
            peak = max(it[side]["peak_mib"] for it in turns)
            cpu = ", ".join(f"{it[side]['cpu']:.1f}" for it in turns)
            size = f"{turns[0][side]['bytes']:,} bytes"
            print(f"{to} {name}: {seconds} s ({cpu} of processors), peak {peak:.0f} MiB, {size}")
        print(f"{to}: {ours / theirs:.2f} of llama.cpp's time", flush=True)
        (arguments.work / f"speed-{to}.json").write_text(json.dumps(turns, indent=1))


if __name__ == "__main__":
    main()
