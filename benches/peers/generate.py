"""Generation with a KV cache, 256 sequences of 64 new tokens at temperature 1, in PyTorch: eager and torch.compile.

    THP_MEM_ALLOC_ENABLE=1 python benches/peers/generate.py --threads 1,2
"""

import torch
import torch.nn.functional as F
from llama import HEAD, HEADS, LAYERS, VOCAB, WIDTH, Llama, measure, options, report

SEQUENCES, NEW = 256, 64


def main():
    args = options()
    torch.manual_seed(1)
    model = Llama(NEW + 1)
    cache = torch.zeros(LAYERS, 2, SEQUENCES, HEADS, NEW, HEAD)
    prompt = torch.arange(SEQUENCES).view(-1, 1) % VOCAB

    def step(ids, at):
        """One token a sequence: the next ids and their log-probs."""
        x = model.embedding(ids)
        cos, sin = model.cos[at : at + 1], model.sin[at : at + 1]
        for layer, block in enumerate(model.blocks):
            keys, values = cache[layer]

            def attend(q, k, v):
                keys[:, :, at] = k[:, :, 0]
                values[:, :, at] = v[:, :, 0]
                seen = slice(0, at + 1)
                return F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen])

            x = block(x, cos, sin, attend)
        logprob = F.log_softmax(model.logits(x)[:, 0], -1)
        ids = torch.multinomial(logprob.exp(), 1)
        return ids, logprob.gather(1, ids)

    for who in args.who.split(","):
        advance = torch.compile(step, dynamic=True) if who == "compile" else step

        @torch.inference_mode()
        def generate():
            ids, logprobs = prompt, []
            for at in range(NEW):
                ids, logprob = advance(ids, at)
                logprobs.append(logprob)
            return torch.cat(logprobs, 1)

        for threads in args.threads:
            torch.set_num_threads(threads)
            times = measure(generate, args.seconds)
            shape = [SEQUENCES, NEW, WIDTH, LAYERS]
            report("generate", shape, threads, f"torch {who}", times, SEQUENCES * NEW)


main()
