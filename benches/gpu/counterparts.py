"""PyTorch's, TRL's and Liger's counterparts of the kernels of `gradstone bench`, by kernel.

PEERS has a generator a kernel: given a row of the report and a device it makes the inputs and yields (who, package, what
prepares the work), the work being a function without arguments. What is measured, in which order and for how long is
peers.py's. Without torch there is only NO_TORCH, which says why.
"""

import functools
import importlib.metadata
import math
import sys


try:
    import torch
    import torch._functorch.config
    import torch.nn.functional as F

    NO_TORCH = None
    # A graph that is kept, which is how a backward pass is timed alone, may not give its buffers away.
    torch._functorch.config.donated_buffer = False
except Exception as missing:
    torch, NO_TORCH = None, f"{type(missing).__name__}: {missing}"

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def dtype_of(row):
    return getattr(torch, DTYPES[row["dtype"]])


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def trl_logprob():
    """TRL's log-prob and entropy: its name, and the function; nothing where there is none."""
    try:
        from trl.trainer import utils
    # An import of other packages behind it may fail in any way.
    except Exception as missing:
        print(f"trl: {type(missing).__name__}: {missing}", file=sys.stderr)
        return None
    # TRL 1.14: one kernel for both. From 0.20 there are two functions, from 0.15 to 0.19 no entropy.
    both = getattr(utils, "selective_log_softmax_and_entropy", None)
    selected, entropy = (getattr(utils, name, None) for name in ("selective_log_softmax", "entropy_from_logits"))
    if both:
        return "trl", both
    if selected and entropy:
        return "trl", lambda logits, targets: (selected(logits, targets), entropy(logits))
    if selected:
        return "trl, no entropy", selected
    print("trl: neither selective_log_softmax nor entropy_from_logits", file=sys.stderr)
    return None


@functools.cache
def liger():
    """Liger's functions, or nothing."""
    try:
        from liger_kernel.transformers import functional

        return functional
    except Exception as missing:
        print(f"liger: {type(missing).__name__}: {missing}", file=sys.stderr)
        return None


def selected(logits, targets):
    return torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0]


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


def without_gradients(function, inputs):
    def work():
        with torch.no_grad():
            function(*inputs)

    return work


def variants(function):
    yield "torch eager", "torch", function
    yield "torch.compile", "torch", torch.compile(function, dynamic=False)


# Every function below yields its row's peers: who, which package, and what prepares the work. Nothing large is made
# before that is called, nor kept by it, so that one peer's memory is free when the next begins.


def logprob(row, device):
    if row["part"] == "backward":
        # With its forward pass, below: in torch the one needs what the other made.
        return
    rows, vocab = row["shape"]
    logits = (torch.randn(rows, vocab, device=device) * 2).to(dtype_of(row))
    targets = torch.arange(rows, device=device) * 7919 % vocab
    upstream = [torch.randn(rows, device=device) for _ in range(2)]
    one = [torch.tensor(1.0, device=device)]
    peers = [(*peer, upstream) for peer in variants(log_probs)]
    if trl := trl_logprob():
        peers.append((trl[0], "trl", trl[1], upstream))
    if cross_entropy := getattr(liger(), "liger_cross_entropy", None):
        peers.append(("liger cross entropy, no entropy", "liger_kernel", cross_entropy, one))
    for who, package, function, upstream in peers:
        if row["part"] == "forward":
            yield who, package, lambda function=function: without_gradients(function, [logits, targets])
        else:
            yield who, package, functools.partial(with_gradients, function, [logits, targets], upstream)


def linear_logprob(row, device):
    rows, width, vocab = row["shape"]
    dtype = dtype_of(row)
    hidden = torch.randn(rows, width, device=device).to(dtype)
    weight = (torch.randn(vocab, width, device=device) * 2 / math.sqrt(width)).to(dtype)
    targets = torch.arange(rows, device=device) * 7919 % vocab
    upstream = [torch.randn(rows, device=device)]
    one = [torch.tensor(1.0, device=device)]
    peers = [(*peer, upstream) for peer in variants(lambda h, w, t: selected(h @ w.T, t))]
    if fused := getattr(liger(), "liger_fused_linear_cross_entropy", None):
        peers.append(("liger fused linear", "liger_kernel", fused, one))
    for who, package, function, upstream in peers:
        yield who, package, functools.partial(with_gradients, function, [hidden, weight, targets], upstream)


def linear_policy_loss(row, device):
    count, width, vocab = row["shape"]
    dtype = dtype_of(row)
    hidden = torch.randn(count, width, device=device).to(dtype)
    weight = (torch.randn(vocab, width, device=device) * 2 / math.sqrt(width)).to(dtype)
    targets = torch.arange(count, device=device) * 7919 % vocab
    advantage = torch.randn(count, device=device)
    live = torch.arange(count, device=device) % 8 != 7

    def loss(hidden, weight):
        # Live rows alone, as ours; ratios of 1.
        logp = selected(hidden[live] @ weight.T, targets[live])
        return -((logp - logp.detach()).exp() * advantage[live]).mean()

    for who, package, function in variants(loss):
        one = [torch.tensor(1.0, device=device)]
        yield who, package, functools.partial(with_gradients, function, [hidden, weight], one)


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
        one = [torch.tensor(1.0, device=device)]
        yield who, package, functools.partial(with_gradients, function, [logp], one)


def advantage(row, device):
    if row["part"] == "gae":
        # A recursion over tokens: a loop of as many launches in torch.
        return
    rewards = torch.randn(row["shape"], device=device)

    def grpo(rewards):
        return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)

    for who, package, function in variants(grpo):
        yield who, package, lambda function=function: without_gradients(function, [rewards])


def random(row, device, *shapes):
    """Normal numbers of the row's type."""
    return [torch.randn(*shape, device=device).to(dtype_of(row)) for shape in shapes]


def by_part(row, functions, inputs, upstream=None):
    """Eager and compiled: the function of the row's part; the gradients of all inputs where there is an upstream."""
    function = functions.get(row["part"])
    if function is None:
        return
    for who, package, function in variants(function):
        if "backward" in row["part"]:
            yield who, package, functools.partial(backward_alone, function, inputs, upstream)
        else:
            yield who, package, functools.partial(without_gradients, function, inputs)


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
        masked = functools.partial(without_gradients, function, [q, k, v])
        yield "torch scaled_dot_product_attention, mask", "torch", masked
        if device == "cuda":
            yield "torch flex_attention", "torch", functools.partial(flex_attention, q, k, v)
        return
    function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if row["part"] == "forward":
        prepare = functools.partial(without_gradients, function, [q, k, v])
    else:
        prepare = functools.partial(with_gradients, function, [q, k, v], [torch.randn_like(q)])
    yield "torch scaled_dot_product_attention", "torch", prepare


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
    return without_gradients(lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True), [q, k, v])


def decode(row, device):
    sequences, length, heads, groups, dim = row["shape"]
    new = 4 if row["part"] == "decode_block" else 1
    shapes = ((sequences, heads, new, dim), (sequences, groups, length, dim), (sequences, groups, length, dim))
    q, k, v = random(row, device, *shapes)
    function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    yield "torch scaled_dot_product_attention", "torch", functools.partial(without_gradients, function, [q, k, v])


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
    yield "torch fused AdamW", "torch", lambda: torch.optim.AdamW([weight], fused=True).step


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
