"""PyTorch, eager: masks for 64 x 4096 tokens in blocks of 4.

block_noise_plain is uniform masking with one level a block; block_noise_clipped the published clipped form with a forced
mask and weights, as few operations as it takes; block_noise_counted draws blocks again until their number of masks is
within bounds, as BD3-LM does, with a look at the result each time.
"""

import timing
import torch

SEQUENCES, LENGTH, BLOCK, MASK = 64, 4096, 4, 31_999
BLOCKS = (SEQUENCES, LENGTH // BLOCK)


def plain(ids):
    rate = torch.rand(BLOCKS).clamp_min(1e-3)
    masked = torch.rand(*BLOCKS, BLOCK) < rate[..., None]
    return torch.where(masked, MASK, ids), masked, torch.where(masked, (1 / rate)[..., None], 0.0)


def clipped(ids):
    rate = torch.rand(BLOCKS).clamp_min(1 / BLOCK)
    draws = torch.rand(*BLOCKS, BLOCK)
    masked = draws < torch.maximum(rate[..., None], draws.amin(-1, keepdim=True).nextafter(torch.tensor(2.0)))
    return torch.where(masked, MASK, ids), masked, torch.where(masked, (1 / rate)[..., None], 0.0)


def counted(ids):
    rate = torch.rand(BLOCKS).clamp_min(1 / BLOCK)
    masked = torch.rand(*BLOCKS, BLOCK) < rate[..., None]
    while True:
        count = masked.sum(-1)
        wrong = (count < 1) | (count > 3)
        if not wrong.any():
            break
        # BD3-LM draws the rejected blocks' masks anew at their own rates.
        masked = torch.where(wrong[..., None], torch.rand(*BLOCKS, BLOCK) < rate[..., None].clamp_max(0.98), masked)
    return torch.where(masked, MASK, ids), masked, torch.where(masked, (1 / rate)[..., None], 0.0)


def main():
    options = timing.options()
    torch.manual_seed(0)
    ids = torch.randint(0, MASK, (*BLOCKS, BLOCK), dtype=torch.int32)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for op, function in [("block_noise_plain", plain), ("block_noise_clipped", clipped), ("block_noise_counted", counted)]:
            if options.only in op:
                time = timing.measure(lambda: function(ids), options.seconds)
                timing.report(op, (SEQUENCES, LENGTH, BLOCK), "i32", threads, "torch eager", time)


if __name__ == "__main__":
    main()
