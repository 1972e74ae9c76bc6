"""LoRA training: fsq and PyTorch with PEFT take turns on the same checkpoint, tokens, rank and threads.

    python3 -m venv target/peft-venv
    target/peft-venv/bin/pip install -r tests/fixtures/peft/requirements.txt
    cargo build --release
    target/peft-venv/bin/python benches/training/compare.py --fsq target/release/fsq --out training.json

Checkpoints are made on the spot: random weights of a true shape, stored in bf16, their vocabulary cut. Each side runs in
a process of its own; its memory is the largest resident set that the system counted for it, loading and writing
included. A step is timed from its tokens to the updated adapter, the first step of each run left out.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "qwen2-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    },
    "llama-5m": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
        "max_position_embeddings": 1024, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
    },
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORKED = {"bfloat16": "bf16", "float32": "f32"}


def make_checkpoint(shape, folder):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(**SHAPES[shape], bos_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "tests/fixtures/llama" / name, folder / name)


def sequences(shape, batch, length, steps):
    """Token ids: a fixed, uneven walk, so that both sides read the same."""
    state, vocab, rows = 1, SHAPES[shape]["vocab_size"], []
    for _ in range(batch * steps):
        rows.append([])
        for _ in range(length):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            rows[-1].append((state >> 33) % vocab)
    return rows


def torch_worker(asked):
    """In a process of its own: prints the seconds of each step and each step's loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked["threads"])
    dtype = getattr(torch, asked["dtype"])
    model = AutoModelForCausalLM.from_pretrained(asked["checkpoint"], dtype=dtype)
    if asked["checkpointing"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=asked["rank"], lora_alpha=2 * asked["rank"], target_modules=MODULES,
                                             lora_dropout=0.0, task_type="CAUSAL_LM"))
    model.train()
    model.config.use_cache = False
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.01)
    rows = sequences(asked["shape"], asked["batch"], asked["length"], asked["steps"])
    seconds, losses = [], []
    for step in range(asked["steps"]):
        began = time.perf_counter()
        ids = torch.tensor(rows[step * asked["batch"]:(step + 1) * asked["batch"]])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    model.save_pretrained(asked["out"], save_embedding_layers=False)
    print(json.dumps({"seconds": seconds, "losses": losses}))


def run(command):
    """Runs a command alone: its output and its largest resident set in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {errors.decode()[-2000:]}")
    return output.decode(), usage.ru_maxrss * 1024


def with_torch(asked):
    output, peak = run([sys.executable, __file__, "--worker", json.dumps(asked)])
    told = json.loads(output.splitlines()[-1])
    return told["seconds"], told["losses"], peak


def with_fsq(fsq, asked, folder):
    out, data, recipe = folder / "fsq-run", folder / "records.jsonl", folder / "run.toml"
    shutil.rmtree(out, ignore_errors=True)
    rows = sequences(asked["shape"], asked["batch"], asked["length"], asked["steps"])
    data.write_text("".join(json.dumps({"token_ids": it}) + "\n" for it in rows))
    recipe.write_text(
        f"seed = 1\n[sft]\ndata = ['{data}']\nepochs = 1\nbatch_tokens = {asked['batch'] * asked['length']}\n"
        f"save_every_s = 3600\nrecompute = {str(asked['checkpointing']).lower()}\n"
        f"lora = {{ rank = {asked['rank']}, alpha = {2 * asked['rank']}.0 }}\n"
        f"records = {{ max_tokens = {asked['length']} }}\n"
        "schedule = { learning_rate = 2e-4, course = 'constant' }\n")
    _, peak = run([fsq, "--threads", str(asked["threads"]), "train", recipe, "--from", asked["checkpoint"], "--out", out])
    lines = [json.loads(it) for it in (out / "sft/metrics.jsonl").read_text().splitlines()]
    return [it["seconds"] for it in lines], [it["loss"] for it in lines], peak


def measure(fsq, shape, arguments, folder):
    checkpoint = folder / shape
    if not checkpoint.exists():
        # A child begins with its parent's largest resident set, which is why this process stays small.
        subprocess.run([sys.executable, __file__, "--make", shape, "--folder", folder], check=True)
    base = {"shape": shape, "checkpoint": str(checkpoint), "batch": arguments.batch, "length": arguments.length,
            "steps": arguments.steps, "rank": arguments.rank, "threads": arguments.threads,
            "checkpointing": arguments.checkpointing, "out": str(folder / "torch-adapter")}
    sides = {"fsq": lambda: with_fsq(fsq, base, folder)}
    for dtype in arguments.torch_dtypes.split(","):
        sides[f"torch {WORKED[dtype]}"] = lambda dtype=dtype: with_torch(base | {"dtype": dtype})
    found = {name: {"tokens_per_s": [], "peak_bytes": [], "losses": None} for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            seconds, losses, peak = side()
            found[name]["tokens_per_s"].append(base["batch"] * base["length"] / statistics.median(seconds[1:]))
            found[name]["peak_bytes"].append(peak)
            found[name]["losses"] = losses
    for name, it in found.items():
        print(f"{shape:12} {name:11} {statistics.median(it['tokens_per_s']):9.0f} tokens/s  "
              f"{max(it['peak_bytes']) / 2**20:7.0f} MiB  first loss {it['losses'][0]:.3f}", flush=True)
    return {"shape": shape, **{key: base[key] for key in ("batch", "length", "steps", "rank", "threads", "checkpointing")},
            "sides": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsq", type=Path)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--folder", type=Path, default=ROOT / "target/training-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--torch-dtypes", default="float32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker")
    parser.add_argument("--make")
    arguments = parser.parse_args()
    if arguments.make:
        return make_checkpoint(arguments.make, arguments.folder / arguments.make)
    if arguments.worker:
        return torch_worker(json.loads(arguments.worker))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    runs = [measure(arguments.fsq, it, arguments, arguments.folder) for it in arguments.shapes.split(",")]
    if arguments.out:
        import peft
        import torch
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
        told = {"processor": platform.processor(), "machine": platform.machine(), "versions": versions, "runs": runs}
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
