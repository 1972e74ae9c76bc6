#!/usr/bin/env python3
"""What `fsq quantize` gains over llama.cpp at the bytes of its Q4_K_M, on one policy.

    python divergence.py --fsq target/release/fsq --oracle "$FSQ_ORACLE_PYTHON" --checkpoint finetune/base --plain \\
        --text docs/architecture.md --work work

Observes importance once, over episodes, lets llama.cpp and fsq quantize with that same file, and compares each file
with the policy in 16 bits on episodes that importance has not seen and on texts. Prints a table in Markdown, and writes
all that `fsq compare` says to WORK/rows.json. What is there already is not made again, so that a run that was killed
goes on.

The base observes and judges plain episodes (`--plain`); a policy of the three stages writes its foresight.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
Q4_K_M = "15"  # llama.cpp's number of it
WORLDS = ["countdown", "dochop"]


def command(parts):
    print("+", shlex.join(map(str, parts)), file=sys.stderr, flush=True)
    return subprocess.run([str(it) for it in parts], check=True, stdout=subprocess.PIPE, text=True).stdout


class Policy:
    def __init__(self, arguments):
        self.fsq, self.oracle = shlex.split(arguments.fsq), shlex.split(arguments.oracle)
        self.checkpoint, self.work = arguments.checkpoint, arguments.work
        self.plain = ["--plain"] if arguments.plain else []
        self.worlds = arguments.environment or WORLDS
        self.observed, self.judged, self.texts = arguments.observed, arguments.judged, arguments.text
        self.reference, self.importance = self.work / "p-F16.gguf", self.work / "imatrix.gguf"
        self.work.mkdir(parents=True, exist_ok=True)

    def prepare(self):
        if not self.reference.exists():
            command([*self.fsq, "quantize", self.checkpoint, "--to", "f16", "--name", "p", "--out", self.work])
        if not self.importance.exists():
            worlds = [it for world in self.worlds for it in ("--environment", world)]
            command([*self.fsq, "importance", self.reference, *worlds, "-n", self.observed, *self.plain, "--products",
                     "--sensitivity", "--out", self.importance])
        for name, reading in self.readings():
            if not self.logits(name).exists():
                command([*self.fsq, "compare", self.reference, *reading, "--save-logits", self.logits(name)])

    def logits(self, reading):
        return self.work / f"{reading}.logits.safetensors"

    def readings(self):
        """What both files read, by name: episodes of tasks with another seed than importance's, and texts."""
        for world in WORLDS:
            yield world, ["--environment", world, "-n", self.judged, "--seed", 77, *self.plain]
        for text in self.texts:
            yield text.stem, ["--text", text]

    def of_llama_cpp(self):
        out = self.work / "llama.gguf"
        if not out.exists():
            script = ROOT / "tests/oracle/llama_quantize.py"
            command([*self.oracle, script, self.reference, out, Q4_K_M, self.importance])
        return out

    def of_fsq(self, name, options):
        out = self.work / name
        file = out / "p-Q4_K_M.gguf"
        if not file.exists():
            command([*self.fsq, "quantize", self.checkpoint, "--to", "q4_k_m", "--name", "p", "--importance",
                     self.importance, *options, "--out", out])
        return file

    def judge(self, name, file):
        kept = self.work / f"{name}.json"
        row = json.loads(kept.read_text()) if kept.exists() else {"bytes": file.stat().st_size}
        for reading, _ in self.readings():
            if reading not in row:
                said = command([*self.fsq, "compare", file, "--reference-logits", self.logits(reading), "--json"])
                row[reading] = json.loads(said)
                kept.write_text(json.dumps(row, indent=1))
        return row


def table(rows, readings):
    lines = ["| file | bytes | " + " | ".join(f"{it} mean | 99.9 % | same top" for it in readings) + " |"]
    lines.append("|---" * (2 + 3 * len(readings)) + "|")
    for name, row in rows.items():
        cells = [name, f"{row['bytes']:,}"]
        for reading in readings:
            found = row[reading]
            cells += [f"{found['kl_mean']:.6f}", f"{found['kl_p999']:.4f}", f"{100 * found['top1_agreement']:.2f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsq", required=True, help="the program, perhaps with words before it")
    parser.add_argument("--oracle", required=True, help="the Python that has llama-cpp-python")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for files, which stay there")
    parser.add_argument("--plain", action="store_true", help="the policy writes plain actions")
    parser.add_argument("--environment", action="append", choices=WORLDS, help="what importance observes; all")
    parser.add_argument("--observed", type=int, default=400, help="episodes of each that importance observes")
    parser.add_argument("--judged", type=int, default=300, help="episodes of each that are compared")
    parser.add_argument("--text", type=pathlib.Path, action="append", default=[], help="a text to compare on, too")
    policy = Policy(parser.parse_args())
    policy.prepare()
    theirs = policy.of_llama_cpp()
    at_their_bytes = ["--target-size", theirs.stat().st_size]
    feedback = ["--codes", "error_feedback"]
    chosen = {
        "stock": [],
        "descent": ["--codes", "descent"],
        "allocation": at_their_bytes,
        "codes": feedback,
        "both": feedback + at_their_bytes,
    }
    rows = {"llama.cpp": policy.judge("llama.cpp", theirs)}
    for name, options in chosen.items():
        rows[name] = policy.judge(name, policy.of_fsq(name, options))
    (policy.work / "rows.json").write_text(json.dumps(rows, indent=1))
    print(table(rows, [it for it, _ in policy.readings()]))


if __name__ == "__main__":
    main()
