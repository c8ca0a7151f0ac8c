"""PyTorch's scaled_dot_product_attention on the shapes of benches/attention.rs, one JSON line a measurement.

Usage: python benches/peers/attention.py [--threads 1,2]
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F


def timed(work, budget=2.0):
    work()
    wall, cpu = [], []
    started = time.perf_counter()
    while len(wall) < 3 or (len(wall) < 50 and time.perf_counter() - started < budget):
        c, w = time.process_time(), time.perf_counter()
        work()
        wall.append((time.perf_counter() - w) * 1e3)
        cpu.append((time.process_time() - c) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def show(op, shape, result):
    print(json.dumps({
        "op": op, "shape": shape, "dtype": "f32", "threads": torch.get_num_threads(), "who": "torch sdpa",
        "median_ms": result[0], "cpu_ms": result[1],
    }), flush=True)


def packed(shape):
    batch, length, heads, kv_heads, dim = shape
    q = torch.randn(batch, heads, length, dim, requires_grad=True)
    k, v = (torch.randn(batch, kv_heads, length, dim, requires_grad=True) for _ in range(2))
    dout = torch.randn(batch, heads, length, dim)
    attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
    show("attention_fwd", shape, timed(attend))
    out = attend()
    show("attention_bwd", shape, timed(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)))


def decoding(shape):
    batch, length, heads, dim = shape
    q = torch.randn(batch, heads, 1, dim)
    k, v = (torch.randn(batch, heads, length, dim) for _ in range(2))
    with torch.no_grad():
        show("attention_decode", shape, timed(lambda: F.scaled_dot_product_attention(q, k, v)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="1,2")
    for threads in map(int, parser.parse_args().threads.split(",")):
        torch.set_num_threads(threads)
        packed([64, 64, 4, 4, 32])
        packed([1, 1024, 8, 2, 64])
        packed([4, 512, 4, 4, 128])
        decoding([256, 60, 4, 32])


main()
