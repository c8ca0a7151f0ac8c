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


def linear_policy_loss(row, device):
    count, width, vocab = row["shape"]
    dtype = DTYPES[row["dtype"]]
    hidden = torch.randn(count, width, device=device).to(dtype)
    weight = (torch.randn(vocab, width, device=device) * 2 / math.sqrt(width)).to(dtype)
    targets = torch.arange(count, device=device) * 7919 % vocab
    advantage = torch.randn(count, device=device)
    live = torch.arange(count, device=device) % 8 != 7

    def loss(hidden, weight):
        # Live rows alone, as ours; ratios of 1.
        logp = log_probs(hidden[live] @ weight.T, targets[live])[0]
        return -((logp - logp.detach()).exp() * advantage[live]).mean()

    for who, package, function in variants(loss):
        yield who, package, with_gradients(function, [hidden, weight], [torch.tensor(1.0, device=device)])


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
    if row["part"] == "gae":
        # A recursion over tokens: a loop of as many launches in torch.
        return
    rewards = torch.randn(row["shape"], device=device)

    def grpo(rewards):
        return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)

    for who, package, function in variants(grpo):
        yield who, package, lambda function=function: function(rewards)


def random(row, device, *shapes):
    """Normal numbers of the row's type."""
    return [torch.randn(*shape, device=device).to(DTYPES[row["dtype"]]) for shape in shapes]


def by_part(row, functions, inputs, upstream=None):
    """Eager and compiled: the function of the row's part; the gradients of all inputs where there is an upstream."""
    function = functions.get(row["part"])
    if function is None:
        return
    for who, package, function in variants(function):
        if "backward" in row["part"]:
            yield who, package, backward_alone(function, inputs, upstream)
        else:
            yield who, package, lambda function=function: function(*inputs)


def backward_alone(function, inputs, upstream):
    """The backward pass of a graph that is kept, so that no forward pass is in it."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    upstream = upstream.to(output.dtype)
    return lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True)


def rms_norm(row, device):
    rows, width = row["shape"]
    x, weight, upstream = random(row, device, (rows, width), (width,), (rows, width))
    norm = lambda x, weight: F.rms_norm(x, (width,), weight, 1e-6)
    yield from by_part(row, {"forward": norm, "backward": norm}, [x, weight], upstream)


def layer_norm(row, device):
    rows, width = row["shape"]
    x, weight, bias, upstream = random(row, device, (rows, width), (width,), (width,), (rows, width))
    norm = lambda x, weight, bias: F.layer_norm(x, (width,), weight, bias, 1e-6)
    yield from by_part(row, {"forward": norm, "backward": norm}, [x, weight, bias], upstream)


def rope(row, device):
    tokens, heads, dim = row["shape"]
    (x,) = random(row, device, (tokens, heads, dim))
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None].to(x.dtype) for f in (torch.cos, torch.sin))

    def rotated(x):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    yield from by_part(row, {"forward": rotated}, [x])


def activation(row, device):
    gate, up, upstream = random(row, device, *[row["shape"]] * 3)
    gated = lambda gate, up: F.silu(gate) * up
    if row["part"] == "gelu_tanh":
        yield from by_part(row, {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}, [gate])
    else:
        yield from by_part(row, {"silu_mul": gated, "silu_mul_backward": gated}, [gate, up], upstream)


def softmax(row, device):
    x, upstream = random(row, device, *[row["shape"]] * 2)
    normalized = lambda x: x.softmax(-1)
    yield from by_part(row, {"forward": normalized, "backward": normalized}, [x], upstream)


def skewed_ids(len, vocab, device):
    return (torch.rand(len, device=device) ** 3 * vocab).long()


def rows(row, device):
    tokens, vocab, width = row["shape"]
    ids = skewed_ids(tokens, vocab, device)
    if row["part"] == "gather":
        yield from by_part(row, {"gather": lambda table: F.embedding(ids, table)}, random(row, device, (vocab, width)))
        return
    (grad,) = random(row, device, (tokens, width))
    # Adds in an order of chance on a GPU; ours is deterministic.
    scatter = lambda grad: torch.zeros(vocab, width, device=device).index_add_(0, ids, grad)
    yield from by_part(row, {"scatter_add": scatter}, [grad])


def cast(row, device):
    functions = {"to_bf16": lambda x: x.to(torch.bfloat16), "to_f32": lambda x: x.to(torch.float32)}
    yield from by_part(row, functions, random(row, device, row["shape"]))


def reduce(row, device):
    functions = {"rows": lambda x: x.sum(-1, dtype=torch.float32), "columns": lambda x: x.sum(0)}
    yield from by_part(row, functions, random(row, device, row["shape"]))


def attention(row, device):
    if row["part"].startswith("decode"):
        yield from decode(row, device)
        return
    tokens, heads, groups, dim = row["shape"]
    q, k, v = random(row, device, *((1, count, tokens, dim) for count in (heads, groups, groups)))
    if row["part"] == "block_diffusion":
        mask = block_diffusion_mask(tokens, device)
        function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        yield "torch scaled_dot_product_attention, mask", "torch", lambda: function(q, k, v)
        if device == "cuda":
            yield from flex_attention(q, k, v)
        return
    function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if row["part"] == "forward":
        yield "torch scaled_dot_product_attention", "torch", lambda: function(q, k, v)
    else:
        work = with_gradients(function, [q, k, v], [torch.randn_like(q)])
        yield "torch scaled_dot_product_attention", "torch", work


def sees(half, query, key):
    """Block diffusion, blocks of 32 (4 in tiny runs): a noised query sees its own block and the clean ones before."""
    block = 32 if half >= 64 else 4
    own, other = query % half // block, key % half // block
    noised_query, noised_key = query < half, key < half
    return (noised_query & noised_key & (own == other)) | (~noised_key & torch.where(noised_query, other < own, other <= own))


def block_diffusion_mask(tokens, device):
    at = torch.arange(tokens, device=device)
    return sees(tokens // 2, at[:, None], at[None])


def flex_attention(q, k, v):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention as attend

    tokens = q.shape[2]
    mask = create_block_mask(lambda b, h, query, key: sees(tokens // 2, query, key), None, None, tokens, tokens)
    compiled = torch.compile(attend)
    yield "torch flex_attention", "torch", lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def decode(row, device):
    sequences, length, heads, groups, dim = row["shape"]
    new = 4 if row["part"] == "decode_block" else 1
    shapes = ((sequences, heads, new, dim), (sequences, groups, length, dim), (sequences, groups, length, dim))
    q, k, v = random(row, device, *shapes)
    function = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    yield "torch scaled_dot_product_attention", "torch", function


def sample(row, device):
    count, vocab = row["shape"]
    logits = random(row, device, (count, vocab))[0] * 2

    def drawn(p):
        ids = torch.multinomial(p, 1)
        return ids, p.gather(-1, ids).log()

    def nucleus(p):
        p, ids = p.sort(-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p > 0.9, 0)
        return ids.gather(-1, torch.multinomial(p, 1))

    def of_top_k(x):
        top, ids = (x.float() / 0.7).topk(min(50, vocab), -1)
        return ids.gather(-1, nucleus(top.softmax(-1)))

    tempered = lambda x: (x.float() / 0.7).softmax(-1)
    functions = {
        "temperature": lambda x: drawn(tempered(x)),
        "top_p": lambda x: nucleus(tempered(x)),
        "top_k_top_p": of_top_k,
    }
    # Without log-probs of the whole distribution where something is cut off: a lower bound for them.
    yield from by_part(row, functions, [logits])


def block_noise(row, device):
    sequences, length, block = row["shape"]
    ids = torch.randint(32000, (sequences, length), device=device, dtype=torch.int32)

    def clipped(ids):
        rate = torch.rand(sequences, length // block, 1, device=device).clamp(min=1 / block)
        keys = torch.rand(sequences, length // block, block, device=device)
        masked = (keys < rate) | (keys == keys.amin(-1, keepdim=True))
        weight = torch.where(masked, 1 / rate, 0).view(ids.shape)
        masked = masked.view(ids.shape)
        return torch.where(masked, 31999, ids), masked, weight

    # Exact counts have no few lines: rejection is a loop that looks at its result.
    yield from by_part(row, {"clipped": clipped}, [ids])


def token_decode(row, device):
    if row["part"] == "text":
        return
    images, positions, codes, channels = row["shape"]
    codebook = torch.randn(codes, channels, device=device)
    if row["part"] == "vq_lookup":
        ids = skewed_ids(images * positions, codes, device).view(images, positions)
        lookup = lambda codebook: F.embedding(ids, F.normalize(codebook, dim=-1)).transpose(1, 2).contiguous()
        yield from by_part(row, {"vq_lookup": lookup}, [codebook])
        return
    z = torch.randn(images * positions, channels, device=device)
    nearest = lambda z, codebook: (codebook.square().sum(-1) - 2 * (z @ codebook.T)).argmin(-1)
    yield from by_part(row, {"vq_quantize": nearest}, [z, codebook])


def token_selection(row, device):
    if row["part"] != "top_entropy":
        return
    entropy = torch.randn(math.prod(row["shape"]), device=device).abs()
    live = torch.rand_like(entropy) < 0.9
    # The threshold of a sort: torch.quantile refuses more than 16 M numbers.
    rank = int(0.8 * float(live.sum()))

    def selected(entropy):
        threshold = torch.where(live, entropy, math.inf).sort().values[rank]
        return live & (entropy >= threshold)

    yield from by_part(row, {"top_entropy": selected}, [entropy])


def rollout_correction(row, device):
    policy = torch.randn(row["shape"], device=device) * 0.2 - 1
    sampler = policy + 0.05 * torch.randn_like(policy)
    live = torch.rand_like(policy) < 0.9
    functions = {"token": lambda p, s: torch.where(live, (p - s).clamp(-20, 20).exp().clamp(max=1.05), 0)}
    yield from by_part(row, functions, [policy, sampler])


def adamw(row, device):
    weight = torch.nn.Parameter(torch.randn(row["shape"], device=device))
    weight.grad = torch.randn_like(weight)
    yield "torch fused AdamW", "torch", torch.optim.AdamW([weight], fused=True).step


def elementwise(row, device):
    a, b = random(row, device, *[row["shape"]] * 2)
    if row["part"] == "add":
        yield from by_part(row, {"add": torch.add}, [a, b])
    else:
        yield from by_part(row, {"exp": torch.exp, "exp_backward": torch.exp}, [a], b)


PEERS = {
    peer.__name__: peer
    for peer in (
        logprob, linear_logprob, policy_loss, linear_policy_loss, advantage, rollout_correction, token_selection, sample,
        rms_norm, layer_norm, rope, attention, activation, softmax, rows, cast, reduce, elementwise, block_noise,
        token_decode, adamw,
    )
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
