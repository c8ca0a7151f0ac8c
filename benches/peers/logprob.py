"""PyTorch, eager and compiled: log-prob and entropy of logits [512, 151936], forward and with backward.

THP_MEM_ALLOC_ENABLE=1 makes PyTorch's large outputs several times faster on Linux: compare.py sets it.
"""

import timing
import torch

ROWS, VOCAB = 512, 151_936


def logprob_entropy(logits, targets):
    log_p = torch.log_softmax(logits.float(), -1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def main():
    options = timing.options()
    torch.manual_seed(0)
    targets = (torch.arange(ROWS) * 7919) % VOCAB
    upstream = [torch.randn(ROWS), torch.randn(ROWS)]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype, name in [(torch.float32, "f32"), (torch.bfloat16, "bf16")]:
            logits = (torch.randn(ROWS, VOCAB) * 2).to(dtype)
            torch._dynamo.reset()
            peers = [("torch eager", logprob_entropy), ("torch.compile", torch.compile(logprob_entropy, dynamic=False))]
            for who, function in peers:
                if options.only in "logprob_entropy_fwd":
                    with torch.no_grad():
                        time = timing.measure(lambda: function(logits, targets), options.seconds)
                    timing.report("logprob_entropy_fwd", (ROWS, VOCAB), name, threads, who, time)
                if options.only in "logprob_entropy_fwd_bwd":
                    leaf = logits.clone().requires_grad_()

                    def both():
                        leaf.grad = None
                        torch.autograd.backward(function(leaf, targets), upstream)

                    time = timing.measure(both, options.seconds)
                    timing.report("logprob_entropy_fwd_bwd", (ROWS, VOCAB), name, threads, who, time)


if __name__ == "__main__":
    main()
