"""GRPO loss of [256, 4096] tokens with metrics in PyTorch: eager and torch.compile. One JSON line a measurement.

    THP_MEM_ALLOC_ENABLE=1 python benches/peers/policy_loss.py --threads 1,2
"""

import argparse
import json
import statistics
import time

import torch

ROWS, LENGTH = 256, 4096


def loss_and_metrics(logprob, old, reference, advantage, mask, low, high, beta):
    log_ratio = logprob - old
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    token_loss = -torch.minimum(ratio * advantage, clipped * advantage)
    live = mask.sum()
    if reference is None:
        kl = torch.zeros(())
    else:
        d = reference - logprob
        k3 = torch.exp(d) - d - 1
        token_loss = token_loss + beta * k3
        kl = (k3 * mask).sum() / live
    loss = ((token_loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    with torch.no_grad():
        is_low = (ratio < 1 - low) & (advantage < 0)
        is_high = (ratio > 1 + high) & (advantage > 0)
        metrics = torch.stack([
            (is_low * mask).sum() / live,
            (is_high * mask).sum() / live,
            (-log_ratio * mask).sum() / live,
            (ratio * mask).sum() / live,
            (ratio * mask).amax(),
            kl.detach(),
        ])
    return loss, metrics


def step(function, inputs):
    logprob = inputs[0]
    logprob.grad = None
    loss, metrics = function(*inputs, 0.2, 0.28, 0.04)
    loss.backward()
    return loss, metrics


def measure(work, seconds):
    for _ in range(5):
        work()
    wall, cpu = [], []
    started = time.perf_counter()
    while len(wall) < 3 or (len(wall) < 50 and time.perf_counter() - started < seconds):
        cpu_start, start = time.process_time(), time.perf_counter()
        work()
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.manual_seed(1)
    logprob = (-1 - torch.randn(ROWS, LENGTH).abs()).requires_grad_()
    old = logprob.detach() + 0.1 * torch.randn(ROWS, LENGTH)
    reference = logprob.detach() + 0.1 * torch.randn(ROWS, LENGTH)
    advantage = torch.randn(ROWS, 1)
    ends = torch.tensor([LENGTH - (row * 37) % (LENGTH // 4) for row in range(ROWS)])
    mask = (torch.arange(LENGTH)[None] < ends[:, None]).float()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for op, ref in [("grpo_loss_fwd_bwd", None), ("grpo_loss_kl_fwd_bwd", reference)]:
            torch._dynamo.reset()
            for who, function in [
                ("torch eager", loss_and_metrics),
                ("torch.compile", torch.compile(loss_and_metrics)),
            ]:
                inputs = [logprob, old, ref, advantage, mask]
                wall, cpu = measure(lambda: step(function, inputs), options.seconds)
                print(json.dumps({
                    "op": op, "shape": [ROWS, LENGTH], "dtype": "f32", "threads": threads,
                    "who": who, "median_ms": wall, "cpu_ms": cpu, "bound_ms": None,
                }), flush=True)


if __name__ == "__main__":
    main()
