#!/usr/bin/env python3
"""What a recalibration map gives back after quantization, and on tasks harder than any in training.

    python recalibration.py --fsq target/release/fsq --files work --work work/recalibration

Takes the files of `sweep.py`. Each file gets a map of its own, fitted on its episodes of tasks that no gate plays (the
calibration split), and is measured on held-out tasks (the test split), before and after. On harder tasks the same map
is measured again, and one that is fitted on harder tasks of the calibration split. Everything that `fsq` says lands in
a file of its own under WORK; what is there already is not made again. Then writes WORK/recalibration.json and
WORK/recalibration.md.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

from sweep import FORMATS, WORLDS

# Countdown's calibration split holds some 400 tasks of usual difficulty; a greedy policy repeats itself on more.
FITTED = {("countdown", "trained"): 400}
FITTED_ELSE = 800
# Files that are moved to harder tasks: the reference, what the profiles are made for, and what is broken already.
MOVED = ["F16", "Q8_0", "Q4_K_M", "Q2_K"]
SEED = 2


class Recalibration:
    def __init__(self, arguments):
        self.fsq, self.files, self.work = shlex.split(arguments.fsq), arguments.files, arguments.work
        self.episodes = arguments.episodes
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self, *parts):
        command = [*self.fsq, *map(str, parts)]
        print("+", shlex.join(command), file=sys.stderr, flush=True)
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    def outcomes(self, world, name, difficulty, split):
        """What was stated at the first step of each episode, which is what gates read, and how the episode ended."""
        kept = self.work / f"{world}-{name}-{difficulty}-{split}.jsonl"
        if not kept.exists():
            n = self.episodes if split == "test" else FITTED.get((world, difficulty), FITTED_ELSE)
            draft = kept.with_suffix(".draft")
            self.run("eval", self.files / f"policy-{name}.gguf", "--environment", world, "--difficulty", difficulty,
                     "--split", split, "-n", n, "--seed", SEED, "--outcomes", draft, "--json")
            rows = [it for it in draft.read_text().splitlines() if json.loads(it)["step"] == 0]
            draft.write_text("\n".join(rows) + "\n")
            draft.rename(kept)
        return kept

    def map(self, world, name, difficulty):
        kept = self.work / f"{world}-{name}-{difficulty}.map.json"
        if not kept.exists():
            self.run("calibrate", self.outcomes(world, name, difficulty, "calibration"), "--fit", kept, "--json")
        return kept

    def measured(self, world, name, difficulty, fitted_on):
        """Held-out outcomes before and after a map."""
        kept = self.work / f"{world}-{name}-{difficulty}-by-{fitted_on}.json"
        if not kept.exists():
            outcomes = self.outcomes(world, name, difficulty, "test")
            said = self.run("calibrate", outcomes, "--map", self.map(world, name, fitted_on), "--json")
            kept.write_text(said)
        said = json.loads(kept.read_text())
        around, after = said["intervals"], said["map"]
        value = lambda it, interval: None if it is None or interval is None else {"value": it} | interval
        return {
            "environment": world, "format": name, "difficulty": difficulty, "map_fitted_on": fitted_on,
            "n": said["n"], "base_rate": said["base_rate"], "auroc": value(said["auroc"], around["auroc"]),
            "map_family": after["metadata"]["fsq.recalibration.family"],
            "map_n": int(after["metadata"]["fsq.recalibration.n"]),
            "brier": value(said["brier"], around["brier"]),
            "brier_after": value(after["metrics"]["brier"], after["brier_interval"]),
            "brier_rise": value(after["brier_rise"], after["brier_rise_interval"]),
            "signed_gap": value(said["signed_gap"], around["signed_gap"]),
            "signed_gap_after": value(after["metrics"]["signed_gap"], after["signed_gap_interval"]),
        }


def shown(it, scale=1.0, digits=3, sign=""):
    if it is None:
        return "–"
    number = lambda of: f"{scale * of:{sign}.{digits}f}"
    return f"{number(it['value'])} ({number(it['low'])} to {number(it['high'])})"


def table(rows):
    heads = ["format", "map", "solved, %", "Brier as stated", "Brier after", "change", "gap as stated, points",
             "gap after, points"]
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for it in rows:
        cells = [it["format"], f"{it['map_family']}, {it['map_n']}", f"{100 * it['base_rate']:.1f}"]
        cells += [shown(it["brier"]), shown(it["brier_after"]), shown(it["brier_rise"], sign="+")]
        cells += [shown(it["signed_gap"], 100, 1, "+"), shown(it["signed_gap_after"], 100, 1, "+")]
        text.append("| " + " | ".join(cells) + " |")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsq", required=True, help="the command that runs fsq")
    parser.add_argument("--files", required=True, type=pathlib.Path, help="the folder of the sweep")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="a folder for results")
    parser.add_argument("--episodes", type=int, default=1000, help="held-out tasks in each environment")
    arguments = parser.parse_args()
    recalibration = Recalibration(arguments)
    rows, text = [], []
    for world in WORLDS:
        for difficulty, fitted_on in [("trained", "trained"), ("harder", "trained"), ("harder", "harder")]:
            names = FORMATS if difficulty == "trained" else MOVED
            here = [recalibration.measured(world, name, difficulty, fitted_on) for name in names]
            text += [f"#### {world}, {difficulty} tasks, map fitted on {fitted_on} tasks", "", *table(here), ""]
            rows += here
    (recalibration.work / "recalibration.json").write_text(json.dumps({"rows": rows}, separators=(",", ":")) + "\n")
    (recalibration.work / "recalibration.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
