"""The Llama of `benches/train_step.rs` in PyTorch, and how the peers here measure. 836,736 parameters."""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, MLP = 256, 128, 4, 4, 352
HEAD = WIDTH // HEADS
EPS = 1e-6


def angles(length):
    frequencies = 10000.0 ** (-torch.arange(0, HEAD, 2).float() / HEAD)
    turned = torch.outer(torch.arange(length).float(), frequencies)
    turned = torch.cat([turned, turned], -1)
    return turned.cos(), turned.sin()


def rotate(x, cos, sin):
    """`x [batch, heads, time, head]`"""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.input_norm = nn.Parameter(torch.ones(WIDTH))
        self.mlp_norm = nn.Parameter(torch.ones(WIDTH))
        self.q, self.k, self.v = (linear(WIDTH, WIDTH) for _ in range(3))
        self.o = linear(WIDTH, WIDTH)
        self.gate, self.up = linear(WIDTH, MLP), linear(WIDTH, MLP)
        self.down = linear(MLP, WIDTH)

    def heads(self, x):
        return x.view(*x.shape[:2], HEADS, HEAD).transpose(1, 2)

    def forward(self, x, cos, sin, attend):
        h = F.rms_norm(x, (WIDTH,), self.input_norm, EPS)
        q, k, v = (self.heads(f(h)) for f in (self.q, self.k, self.v))
        a = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.o(a.transpose(1, 2).reshape(x.shape))
        h = F.rms_norm(x, (WIDTH,), self.mlp_norm, EPS)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Llama(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        cos, sin = angles(context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids):
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin, causal)
        return self.logits(x)

    def logits(self, x):
        return F.linear(F.rms_norm(x, (WIDTH,), self.norm, EPS), self.embedding.weight)


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--who", default="eager,compile")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.threads = [int(t) for t in args.threads.split(",")]
    return args


def measure(work, seconds):
    for _ in range(3):
        work()
    wall, cpu = [], []
    started = time.perf_counter()
    while len(wall) < 3 or (len(wall) < 50 and time.perf_counter() - started < seconds):
        cpu_start, start = time.process_time(), time.perf_counter()
        work()
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def report(op, shape, threads, who, times, tokens):
    print(json.dumps({
        "op": op, "shape": shape, "dtype": "f32", "threads": threads, "who": who,
        "median_ms": times[0], "cpu_ms": times[1], "tokens_per_second": tokens / times[0] * 1e3,
    }), flush=True)
