"""A training step of the Llama of `llama.py`, 64 sequences of 64 tokens, in PyTorch: eager and torch.compile; and a step of
block diffusion, eager, over 32 sequences of 64 tokens in two copies.

    THP_MEM_ALLOC_ENABLE=1 python benches/peers/train_step.py --threads 1,2
"""

import torch
import torch.nn.functional as F
from llama import LAYERS, VOCAB, WIDTH, Llama, measure, options, report

SEQUENCES, LENGTH = 64, 64


def two_copies(length, block):
    """What each of [noised; clean] sees, as booleans."""
    place = torch.arange(2 * length)
    noised, part = place < length, place % length // block
    same = (noised[:, None] == noised[None]) & (part[:, None] == part[None])
    return same | (~noised[None] & (part[None] < part[:, None]))


def diffusion(args):
    """Clipped noise with a forced mask, weight 1/u, the loss of masked rows only."""
    block, rows, mask_id = 4, SEQUENCES // 2, 255
    model = Llama(LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    i = torch.arange(rows * LENGTH)
    ids = (i * i % 251).view(rows, LENGTH)
    sees = two_copies(LENGTH, block)
    cos, sin = model.cos.repeat(2, 1), model.sin.repeat(2, 1)
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=sees)

    def step():
        rate = torch.rand(rows, LENGTH // block, 1).clamp_min(1 / block)
        draws = torch.rand(rows, LENGTH // block, block)
        masked = (draws < rate) | (draws == draws.amin(-1, keepdim=True))
        masked, weight = masked.view(rows, LENGTH), (1 / rate).expand(-1, -1, block).reshape(rows, LENGTH)
        x = model.embedding(torch.cat([torch.where(masked, mask_id, ids), ids], 1))
        for part in model.blocks:
            x = part(x, cos, sin, attend)
        logits = model.logits(x[:, :LENGTH][masked])
        logits[:, mask_id] = -torch.inf
        loss = (F.cross_entropy(logits, ids[masked], reduction="none") * weight[masked]).sum() / ids.numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for threads in args.threads:
        torch.set_num_threads(threads)
        report("diffusion_step", [rows, LENGTH, WIDTH, LAYERS], threads, "torch eager", measure(step, args.seconds), rows * LENGTH)


def main():
    args = options()
    if args.only in "diffusion_step":
        diffusion(args)
    if args.only not in "train_step":
        return
    torch.manual_seed(1)
    i = torch.arange(SEQUENCES * (LENGTH + 1))
    text = (i * i % 251).view(SEQUENCES, LENGTH + 1)
    ids, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous().view(-1)
    for who in args.who.split(","):
        model = Llama(LENGTH)
        assert sum(p.numel() for p in model.parameters()) == 836736
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

        def loss():
            return F.cross_entropy(model(ids).view(-1, VOCAB), targets)

        compute = torch.compile(loss) if who == "compile" else loss

        def step():
            optimizer.zero_grad(set_to_none=True)
            value = compute()
            value.backward()
            optimizer.step()
            return value

        for threads in args.threads:
            torch.set_num_threads(threads)
            times = measure(step, args.seconds)
            shape = [SEQUENCES, LENGTH, WIDTH, LAYERS]
            report("train_step", shape, threads, f"torch {who}", times, SEQUENCES * LENGTH)


main()
