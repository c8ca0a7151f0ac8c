"""A training step of the Llama of `llama.py`, 64 sequences of 64 tokens, in PyTorch: eager and torch.compile.

    THP_MEM_ALLOC_ENABLE=1 python benches/peers/train_step.py --threads 1,2
"""

import torch
import torch.nn.functional as F
from llama import LAYERS, VOCAB, WIDTH, Llama, measure, options, report

SEQUENCES, LENGTH = 64, 64


def main():
    args = options()
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
