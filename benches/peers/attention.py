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


def two_copies(shape):
    """[noised; clean] of N tokens in blocks of 4, the mask as a stored matrix of booleans."""
    batch, n, heads, kv_heads, dim = shape
    place = torch.arange(2 * n)
    noised, block = place < n, place % n // 4
    same = (noised[:, None] == noised[None]) & (block[:, None] == block[None])
    earlier = block[None] < block[:, None]
    clean = ~noised
    mask = same | (noised[:, None] & clean[None] & earlier) | (clean[:, None] & clean[None] & earlier)
    q = torch.randn(batch, heads, 2 * n, dim, requires_grad=True)
    k, v = (torch.randn(batch, kv_heads, 2 * n, dim, requires_grad=True) for _ in range(2))
    dout = torch.randn(batch, heads, 2 * n, dim)
    attend = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    shape = [batch, 2 * n, heads, kv_heads, dim]
    show("block_diffusion_fwd", shape, timed(attend))
    out = attend()
    show("block_diffusion_bwd", shape, timed(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)))


def decoding(shape):
    batch, length, heads, dim = shape
    q = torch.randn(batch, heads, 1, dim)
    k, v = (torch.randn(batch, heads, length, dim) for _ in range(2))
    with torch.no_grad():
        show("attention_decode", shape, timed(lambda: F.scaled_dot_product_attention(q, k, v)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        if options.only in "block_diffusion":
            two_copies([1, 512, 8, 8, 64])
            two_copies([4, 512, 4, 4, 32])
        if options.only in "attention":
            packed([64, 64, 4, 4, 32])
            packed([1, 1024, 8, 2, 64])
            packed([4, 512, 4, 4, 128])
        if options.only in "decode":
            decoding([256, 60, 4, 32])


main()
