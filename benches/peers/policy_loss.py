"""Policy losses of [256, 4096] tokens with metrics in PyTorch: eager and torch.compile. One JSON line a measurement.

    THP_MEM_ALLOC_ENABLE=1 python benches/peers/policy_loss.py --threads 1,2
"""

import argparse
import json
import statistics
import time

import torch

ROWS, LENGTH = 256, 4096


def ratio_metrics(ratio, log_ratio, mask, live):
    return [
        (-log_ratio * mask).sum() / live,
        (ratio * mask).sum() / live,
        (ratio * mask).amax(),
    ]


def clip_metrics(ratio, advantage, mask, live, low, high):
    is_low = (ratio < 1 - low) & (advantage < 0)
    is_high = (ratio > 1 + high) & (advantage > 0)
    return [(is_low * mask).sum() / live, (is_high * mask).sum() / live]


def grpo(logprob, old, reference, advantage, mask, low=0.2, high=0.28, beta=0.04):
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
        clips = clip_metrics(ratio, advantage, mask, live, low, high)
        metrics = torch.stack(clips + ratio_metrics(ratio, log_ratio, mask, live) + [kl.detach()])
    return loss, metrics


def gspo(logprob, old, reference, advantage, mask, low=3e-4, high=4e-4):
    log_ratio = logprob - old
    lengths = mask.sum(1).clamp(min=1)
    ratio = torch.exp(((log_ratio * mask).sum(1) / lengths)[:, None])
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    token_loss = -torch.minimum(ratio * advantage, clipped * advantage)
    loss = ((token_loss * mask).sum(1) / lengths).mean()
    with torch.no_grad():
        live = mask.sum()
        clips = clip_metrics(ratio, advantage, mask, live, low, high)
        metrics = torch.stack(clips + ratio_metrics(ratio, log_ratio, mask, live))
    return loss, metrics


def cispo(logprob, old, reference, advantage, mask, least=0.8, most=1.28):
    log_ratio = logprob - old
    ratio = torch.exp(log_ratio)
    weight = torch.clamp(ratio, least, most).detach()
    live = mask.sum()
    loss = (-weight * advantage * logprob * mask).sum() / live
    with torch.no_grad():
        clipped = ((ratio < least) | (ratio > most)) * mask
        metrics = torch.stack([clipped.sum() / live] + ratio_metrics(ratio, log_ratio, mask, live))
    return loss, metrics


def gmpo(logprob, old, reference, advantage, mask, low=0.4, high=0.4):
    log_ratio = logprob - old
    sign = torch.sign(advantage)
    clipped = torch.clamp(log_ratio, -low, high)
    kept = sign * torch.minimum(sign * log_ratio, sign * clipped)
    lengths = mask.sum(1).clamp(min=1)
    ratio = torch.exp((kept * mask).sum(1) / lengths)
    loss = (-advantage[:, 0] * ratio).mean()
    with torch.no_grad():
        live = mask.sum()
        outside = (log_ratio != clipped) * mask
        metrics = torch.stack([
            (outside * (advantage > 0)).sum() / live,
            (outside * (advantage < 0)).sum() / live,
            (-log_ratio * mask).sum() / live,
            (ratio * lengths).sum() / live,
            ratio.amax(),
        ])
    return loss, metrics


def step(function, inputs):
    logprob = inputs[0]
    logprob.grad = None
    loss, metrics = function(*inputs)
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
        for op, formula, ref in [
            ("grpo_loss_fwd_bwd", grpo, None),
            ("grpo_loss_kl_fwd_bwd", grpo, reference),
            ("gspo_loss_fwd_bwd", gspo, None),
            ("cispo_loss_fwd_bwd", cispo, None),
            ("gmpo_loss_fwd_bwd", gmpo, None),
        ]:
            torch._dynamo.reset()
            for who, function in [
                ("torch eager", formula),
                ("torch.compile", torch.compile(formula)),
            ]:
                inputs = [logprob, old, ref, advantage, mask]
                wall, cpu = measure(lambda: step(function, inputs), options.seconds)
                print(json.dumps({
                    "op": op, "shape": [ROWS, LENGTH], "dtype": "f32", "threads": threads,
                    "who": who, "median_ms": wall, "cpu_ms": cpu, "bound_ms": None,
                }), flush=True)


if __name__ == "__main__":
    main()
