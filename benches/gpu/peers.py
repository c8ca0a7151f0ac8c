"""Other libraries on the shapes of a `gradstone bench` report, and both as one CSV.

Reads the report, runs PyTorch (eager and compiled), TRL's and Liger's functions where they are installed on every row
that has a counterpart, and writes a line for each: ours first. Times are medians, of runs on empty caches (cold) and of
runs one after the other (warm), as ours are. `benches/gpu/run` calls it.
"""

import argparse
import csv
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FIELDS = [
    "commit", "device", "driver", "command", "kernel", "part", "shape", "dtype", "who", "version",
    "cold_ms", "warm_ms", "percent_of_bound", "correct",
]


class Clock:
    """Medians on a device: CUDA events on a GPU, the wall clock elsewhere."""

    def __init__(self, device, seconds):
        self.device, self.seconds = device, seconds
        self.scratch = torch.empty(256 << 20 if device == "cuda" else 64 << 20, dtype=torch.uint8, device=device)

    def once(self, work, cold):
        if cold:
            self.scratch.fill_(1)
        if self.device != "cuda":
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def measure(self, work):
        for _ in range(3):
            work()
        times = {True: [], False: []}
        started = time.perf_counter()
        while len(times[True]) < 5 or (len(times[True]) < 200 and time.perf_counter() - started < self.seconds):
            for cold in (True, False):
                times[cold].append(self.once(work, cold))
        return statistics.median(times[True]), statistics.median(times[False])


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def log_probs(logits, targets):
    log_p = torch.log_softmax(logits.float(), -1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def with_gradients(function, inputs, upstream):
    """Forward and backward of `function` as one piece of work."""
    leaves = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]

    def work():
        for leaf in leaves:
            leaf.grad = None
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, upstream[: len(outputs)])

    return work


def variants(function):
    yield "torch eager", "torch", function
    yield "torch.compile", "torch", torch.compile(function, dynamic=False)


def logprob(row, device):
    rows, vocab = row["shape"]
    logits = (torch.randn(rows, vocab, device=device) * 2).to(DTYPES[row["dtype"]])
    targets = torch.arange(rows, device=device) * 7919 % vocab
    upstream = [torch.randn(rows, device=device) for _ in range(2)]
    peers = list(variants(log_probs))
    try:
        from trl.trainer.utils import entropy_from_logits, selective_log_softmax

        peers.append(("trl", "trl", lambda x, t: (selective_log_softmax(x, t), entropy_from_logits(x))))
    except ImportError as missing:
        print(f"trl: {missing}", file=sys.stderr)
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy

        peers.append(("liger cross entropy, no entropy", "liger_kernel", lambda x, t: liger_cross_entropy(x, t)))
    except ImportError as missing:
        print(f"liger: {missing}", file=sys.stderr)
    for who, package, function in peers:
        if row["part"] == "forward":
            def work(function=function):
                with torch.no_grad():
                    function(logits, targets)
        elif row["part"] == "forward_backward":
            ups = [torch.tensor(1.0, device=device)] if "liger" in who else upstream
            work = with_gradients(function, [logits, targets], ups)
        else:
            continue
        yield who, package, work


def linear_logprob(row, device):
    rows, width, vocab = row["shape"]
    dtype = DTYPES[row["dtype"]]
    hidden = torch.randn(rows, width, device=device).to(dtype)
    weight = (torch.randn(vocab, width, device=device) * 2 / math.sqrt(width)).to(dtype)
    targets = torch.arange(rows, device=device) * 7919 % vocab
    upstream = [torch.randn(rows, device=device)]

    def selected(hidden, weight, targets):
        return log_probs(hidden @ weight.T, targets)[0]

    for who, package, function in variants(selected):
        yield who, package, with_gradients(function, [hidden, weight, targets], upstream)
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        one = [torch.tensor(1.0, device=device)]
        yield "liger fused linear", "liger_kernel", with_gradients(
            lambda h, w, t: liger_fused_linear_cross_entropy(h, w, t), [hidden, weight, targets], one)
    except ImportError as missing:
        print(f"liger: {missing}", file=sys.stderr)


def policy_loss(row, device):
    sequences, length = row["shape"]
    logp, old = (torch.randn(sequences, length, device=device) * 0.2 - 1 for _ in range(2))
    advantage = torch.randn(sequences, 1, device=device)
    ends = length - torch.arange(sequences, device=device) * 37 % max(length // 4, 1)
    mask = (torch.arange(length, device=device)[None] < ends[:, None]).float()

    def loss(logp):
        ratio = (logp - old).exp()
        each = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        return (each * mask).sum() / mask.sum()

    for who, package, function in variants(loss):
        yield who, package, with_gradients(function, [logp], [torch.tensor(1.0, device=device)])


def advantage(row, device):
    rewards = torch.randn(row["shape"], device=device)

    def grpo(rewards):
        return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)

    for who, package, function in variants(grpo):
        yield who, package, lambda function=function: function(rewards)


def rms_norm(row, device):
    rows, width = row["shape"]
    x = torch.randn(rows, width, device=device).to(DTYPES[row["dtype"]])
    weight = torch.randn(width, device=device).to(x.dtype)
    for who, package, function in variants(lambda x: F.rms_norm(x, (width,), weight, 1e-6)):
        yield who, package, lambda function=function: function(x)


def attention(row, device):
    tokens, heads, groups, dim = row["shape"]
    new = lambda count: torch.randn(1, count, tokens, dim, device=device).to(DTYPES[row["dtype"]])
    q, k, v = new(heads), new(groups), new(groups)
    function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if row["part"] == "forward":
        yield "torch scaled_dot_product_attention", "torch", lambda: function(q, k, v)
    else:
        work = with_gradients(function, [q, k, v], [torch.randn_like(q)])
        yield "torch scaled_dot_product_attention", "torch", work


def adamw(row, device):
    weight = torch.nn.Parameter(torch.randn(row["shape"], device=device))
    weight.grad = torch.randn_like(weight)
    yield "torch fused AdamW", "torch", torch.optim.AdamW([weight], fused=True).step


def elementwise(row, device):
    a, b = (torch.randn(row["shape"], device=device).to(DTYPES[row["dtype"]]) for _ in range(2))
    yield "torch add", "torch", lambda: a + b


PEERS = {
    peer.__name__: peer
    for peer in (logprob, linear_logprob, policy_loss, advantage, rms_norm, attention, adamw, elementwise)
}


def driver(device):
    if device != "cuda":
        return platform.platform()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.check_output(query, text=True).splitlines()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="JSON of gradstone bench")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, about")
    parser.add_argument("--out", required=True, help="CSV to write")
    options = parser.parse_args()
    with open(options.ours) as file:
        report = json.load(file)
    torch.manual_seed(0)
    clock = Clock(options.device, options.seconds)
    run = {
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "device": report["device"],
        "driver": driver(options.device),
        "command": f"benches/gpu/run --device {options.device} --seconds {options.seconds:g}",
    }
    with open(options.out, "w", newline="") as file:
        out = csv.DictWriter(file, FIELDS, restval="")
        out.writeheader()
        for row in report["rows"]:
            shape = "x".join(map(str, row["shape"]))
            same = {**run, **{field: row[field] for field in ("kernel", "part", "dtype")}, "shape": shape}
            fields = ("cold_ms", "warm_ms", "percent_of_bound", "correct")
            out.writerow({**same, "who": "gradstone", **{field: row[field] for field in fields}})
            peers = PEERS.get(row["kernel"], lambda *_: ())
            for who, package, work in peers(row, options.device):
                try:
                    cold, warm = clock.measure(work)
                # A peer that fails loses its own line alone.
                except Exception as error:
                    print(f"{who} {row['kernel']} {shape}: {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                out.writerow({**same, "who": who, "version": version(package), "cold_ms": cold, "warm_ms": warm})
                file.flush()
            torch._dynamo.reset()
            if options.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
