"""PyTorch, eager and compiled: log-prob of hidden states [1024, 1024] through a head [32000, 1024]."""

import timing
import torch

ROWS, WIDTH, VOCAB = 1024, 1024, 32_000


def linear_logprob(hidden, weight, targets):
    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    return log_p.gather(1, targets[:, None])[:, 0]


def main():
    options = timing.options()
    torch.manual_seed(0)
    targets = (torch.arange(ROWS) * 7919) % VOCAB
    upstream = torch.randn(ROWS)
    shape = (ROWS, WIDTH, VOCAB)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype, name in [(torch.float32, "f32"), (torch.bfloat16, "bf16")]:
            hidden = torch.randn(ROWS, WIDTH).to(dtype).requires_grad_()
            weight = (torch.randn(VOCAB, WIDTH) * 0.05).to(dtype).requires_grad_()
            torch._dynamo.reset()
            peers = [("torch eager", linear_logprob), ("torch.compile", torch.compile(linear_logprob, dynamic=False))]
            for who, function in peers:
                if options.only in "linear_logprob_fwd":
                    with torch.no_grad():
                        time = timing.measure(lambda: function(hidden, weight, targets), options.seconds)
                    timing.report("linear_logprob_fwd", shape, name, threads, who, time)
                if options.only in "linear_logprob_fwd_bwd":

                    def both():
                        hidden.grad = weight.grad = None
                        function(hidden, weight, targets).backward(upstream)

                    time = timing.measure(both, options.seconds)
                    timing.report("linear_logprob_fwd_bwd", shape, name, threads, who, time)


if __name__ == "__main__":
    main()
