#!/usr/bin/env python3
"""Where foresight breaks as a policy shrinks, and whether KL divergence or perplexity would have told.

    python sweep.py --fsq target/release/fsq --checkpoint out/wm-amt/fc-rl/merged --work work

Quantizes a policy of three stages to ten formats, plays every file on the same held-out tasks, compares it with F16,
and has the gates judge it with the profiles for 8 and for 4 bits. Everything that `fsq` says lands in a file of its own
under WORK; what is there already is not made again, so that a run that was killed goes on. Then writes WORK/sweep.json,
WORK/sweep.md and WORK/sweep.svg.
"""

import argparse
import json
import pathlib
import platform
import shlex
import subprocess
import sys

import picture

REFERENCE = "F16"
FORMATS = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"]
WORLDS = ["countdown", "dochop"]
PROFILES = ["8-bit", "4-bit"]
# Divergence below and agreement above which a file would be let through by KL divergence alone, as llama.cpp's tables
# of larger policies suggest.
SCREENS = {"8-bit": (0.01, 0.98), "4-bit": (0.08, 0.93)}
TASKS_SEED = 2  # of eval; the gates play those of seed 1
# Tasks that the gates judge by where a world has fewer than a profile wants: Countdown's held-out split holds 1,238.
TASKS_MAX = {"countdown": 1200}
ROOT = pathlib.Path(__file__).resolve().parents[2]
GATE_DONE = {0: "pass", 2: "fail", 3: "inconclusive"}


class Sweep:
    def __init__(self, arguments):
        self.fsq, self.checkpoint, self.work = shlex.split(arguments.fsq), arguments.checkpoint, arguments.work
        self.episodes, self.compared = arguments.episodes, arguments.compared
        (self.work / "cells").mkdir(parents=True, exist_ok=True)

    def cell(self, name, *parts, allowed=(0,)):
        """What a command says as JSON, from the file where it is already."""
        kept = self.work / "cells" / f"{name}.json"
        if not kept.exists():
            command = [*self.fsq, *map(str, parts), "--json"]
            print("+", shlex.join(command), file=sys.stderr, flush=True)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode not in allowed:
                sys.exit(f"{name}: exit code {done.returncode}")
            draft = kept.with_suffix(".draft")
            draft.write_text(json.dumps({"code": done.returncode, "said": json.loads(done.stdout)}))
            draft.rename(kept)
        return json.loads(kept.read_text())

    def file(self, name):
        return self.work / f"policy-{name}.gguf"

    def quantize(self):
        names = ",".join(FORMATS).lower()
        return self.cell("quantize", "quantize", self.checkpoint, "--to", names, "--name", "policy", "--out", self.work)

    def row(self, world, name):
        where, file, reference = ["--environment", world], self.file(name), self.file(REFERENCE)
        played = self.cell(f"eval-{world}-{name}", "eval", file, *where, "-n", self.episodes, "--seed", TASKS_SEED)
        row = {"environment": world, "format": name, "file_bytes": file.stat().st_size}
        row |= {key: played["said"][key] for key in KEPT}
        if name == REFERENCE:
            return row
        compared = self.cell(f"compare-{world}-{name}", "compare", reference, file, *where, "-n", self.compared,
                             "--seed", TASKS_SEED)["said"]
        row["compare"] = {key: compared[key] for key in COMPARED} | {"foresight_shift": compared["foresight_shift"]}
        row["gates"] = {it: self.gate(world, name, it) for it in PROFILES}
        return row

    def profile(self, world, profile):
        """The shipped profile, or its limits for as many tasks as the world has."""
        if world not in TASKS_MAX:
            return profile
        lines = (ROOT / "profiles" / f"{profile}.toml").read_text().splitlines()
        fewer = [f"episodes_min = {TASKS_MAX[world]}" if it.startswith("episodes_min") else it for it in lines]
        path = self.work / f"{profile}-{world}.toml"
        path.write_text("\n".join(fewer) + "\n")
        return path

    def gate(self, world, name, profile):
        judged = self.cell(f"gate-{profile}-{world}-{name}", "gate", self.file(name), "--reference",
                           self.file(REFERENCE), "--environment", world, "--profile", self.profile(world, profile),
                           allowed=GATE_DONE)
        report = judged["said"][0]["report"]
        limit, agreement = SCREENS[profile]
        compared = self.cell(f"compare-{world}-{name}")["said"]
        passes_screen = compared["kl_mean"] < limit and compared["top1_agreement"] > agreement
        gates = [{key: it[key] for key in JUDGED} | {"verdict": it["verdict"]["answer"]} for it in report["gates"]]
        return {"verdict": GATE_DONE[judged["code"]], "n": report["n"], "flips": report["flips"], "gates": gates,
                "passes_kl_screen": passes_screen}


KEPT = ["n", "success", "brier", "brier_constant", "brier_skill", "auroc", "signed_gap", "adherence", "fidelity"]
COMPARED = ["kl_mean", "kl_mean_error", "kl_p999", "top1_agreement", "perplexity_reference", "perplexity_candidate",
            "perplexity_ratio", "perplexity_ratio_error", "n_tokens"]
JUDGED = ["id", "name", "reference", "candidate", "measured", "interval", "limit", "n", "excused"]


def harms(row, profile="4-bit"):
    """How much worse than F16 each gate found a file, by the gate's name."""
    return {f"{it['id']} {it['name']}": it["measured"] for it in row["gates"][profile]["gates"] if not it["excused"]}


def rank_correlation(pairs):
    """Spearman's, ties at their mean rank."""
    def ranks(values):
        return [sum(other < it for other in values) + 0.5 * (values.count(it) + 1) for it in values]
    left, right = (ranks([it[side] for it in pairs]) for side in (0, 1))
    mean = (len(pairs) + 1) / 2
    over = sum((a - mean) * (b - mean) for a, b in zip(left, right))
    under = (sum((a - mean) ** 2 for a in left) * sum((b - mean) ** 2 for b in right)) ** 0.5
    return over / under if under else None


def told(rows):
    """How the order of formats by KL divergence and by perplexity goes with the order by each harm."""
    found = {}
    for world in WORLDS:
        here = [it for it in rows if it["environment"] == world and it["format"] != REFERENCE]
        for name in harms(here[0]):
            of = {key: rank_correlation([(it["compare"][key], harms(it)[name]) for it in here])
                  for key in ("kl_mean", "perplexity_ratio")}
            found.setdefault(world, {})[name] = of
    return found


def measured(it, digits=3, scale=1.0):
    if it is None:
        return "–"
    return f"{scale * it['value']:.{digits}f} ({scale * it['low']:.{digits}f} to {scale * it['high']:.{digits}f})"


def verdict(gate):
    """A gate run in a cell: the verdict, and which gates do not pass."""
    unmet = [f"{it['id']} {it['verdict']}" for it in gate["gates"] if not it["excused"] and it["verdict"] != "pass"]
    short = [it.replace(" fail", "").replace(" inconclusive", "?") for it in unmet]
    return gate["verdict"] + (f": {', '.join(short)}" if short else "")


def tables(rows, correlations):
    text = []
    for world in WORLDS:
        here = [it for it in rows if it["environment"] == world]
        text += [f"### {world}", "", f"{here[0]['n']} held-out tasks, the same for every file; 95 % intervals.", ""]
        horizons = [it for it, shown in enumerate(here[0]["fidelity"], 1) if shown]
        heads = ["format", "MB", "success, %", "Brier", "AUROC", "signed gap, points"]
        heads += [f"fidelity at {it}, %" for it in (horizons[0], horizons[-1])]
        text += line(heads) + line(["---"] * len(heads))
        for it in here:
            cells = [it["format"], f"{it['file_bytes'] / 1e6:.2f}", measured(it["success"], 1, 100)]
            cells += [measured(it["brier"]), measured(it["auroc"]), measured(it["signed_gap"], 1, 100)]
            text += line(cells + [measured(it["fidelity"][at - 1], 1, 100) for at in (horizons[0], horizons[-1])])
        heads = ["format", "KL mean, nats", "KL 99.9 %", "same top token, %", "perplexity ratio"]
        heads += ["stated moves, points", "flips, %", "8-bit gates", "4-bit gates"]
        text += [""] + line(heads) + line(["---"] * len(heads))
        for it in here[1:]:
            compared, strict, loose = it["compare"], it["gates"]["8-bit"], it["gates"]["4-bit"]
            flips = 100 * (strict["flips"]["gained"] + strict["flips"]["lost"]) / strict["n"]
            cells = [it["format"], f"{compared['kl_mean']:.5f}", f"{compared['kl_p999']:.3f}"]
            cells += [f"{100 * compared['top1_agreement']:.2f}", f"{compared['perplexity_ratio']:.4f}"]
            cells += [f"{100 * compared['foresight_shift']['mean_absolute']:.1f}", f"{flips:.1f}"]
            text += line(cells + [verdict(strict), verdict(loose)])
        heads = ["harm", "rank correlation with KL", "with perplexity"]
        text += [""] + line(heads) + line(["---"] * len(heads))
        for name, of in correlations[world].items():
            text += line([name, *("–" if it is None else f"{it:+.2f}" for it in of.values())])
        text.append("")
    return "\n".join(text)


def line(cells):
    return ["| " + " | ".join(cells) + " |"]


def fell_back(quantized):
    """Tensors whose rows are no whole blocks of the recipe's format, by file."""
    other = {it["format"]: [of["name"] for of in it["tensors"] if of["format"] != of["wanted"]]
             for it in quantized["files"]}
    return {name: tensors for name, tensors in other.items() if tensors}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsq", required=True, help="the command that runs fsq")
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path, help="a policy of three stages")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="a folder for files and results")
    parser.add_argument("--episodes", type=int, default=1000, help="held-out tasks in each environment")
    parser.add_argument("--compared", type=int, default=300, help="of which so many are compared token by token")
    arguments = parser.parse_args()
    sweep = Sweep(arguments)
    quantized = sweep.quantize()["said"]
    rows = [sweep.row(world, name) for world in WORLDS for name in FORMATS]
    rows.sort(key=lambda it: (it["environment"], -it["file_bytes"]))
    correlations = told(rows)
    version = subprocess.run([*sweep.fsq, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    document = {"tool": version, "machine": platform.machine(), "rows": rows, "rank_correlation": correlations,
                "screens": SCREENS, "fell_back": fell_back(quantized)}
    (sweep.work / "sweep.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    (sweep.work / "sweep.md").write_text(tables(rows, correlations))
    (sweep.work / "sweep.svg").write_text(picture.drawn(rows, WORLDS, REFERENCE))
    print(tables(rows, correlations))


if __name__ == "__main__":
    main()
