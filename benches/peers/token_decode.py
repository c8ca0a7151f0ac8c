"""Text ids to text by tiktoken and by Hugging Face's Python package, one thread each.

The vocabulary and the ids are drawn as benches/token_decode.rs draws them (50,000 byte-level words of 4.5 bytes on average,
64 texts of 4096 tokens), by another random number generator.
"""

import json
import os
import random

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tiktoken
import tokenizers

from timing import measure, options, report

TEXTS, LENGTH, VOCAB = 64, 4096, 50_000


def vocabulary(draws):
    """The bytes of every token, single bytes first."""
    words = {bytes([byte]): byte for byte in range(256)}
    while len(words) < VOCAB:
        letters = 1 + draws.randrange(5) + draws.randrange(2) * draws.randrange(9)
        word = (b" " if draws.randrange(4) > 0 else b"") + bytes(97 + draws.randrange(26) for _ in range(letters))
        words.setdefault(word, len(words))
    return words


def hugging_face(words):
    """A byte-level tokenizer of these words, and a special token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    of_byte = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocab = {"".join(of_byte[byte] for byte in word): rank for word, rank in words.items()}
    end = {"id": VOCAB, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
           "special": True}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    file = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "added_tokens": [end], "decoder": decoder,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def main():
    wanted = options()
    draws = random.Random(1)
    words = vocabulary(draws)
    texts = [[256 + draws.randrange(draws.choice([VOCAB, 20_000, 5_000]) - 256) for _ in range(LENGTH)] for _ in range(TEXTS)]
    encoding = tiktoken.Encoding("made", pat_str=r"\S+|\s+", mergeable_ranks=words, special_tokens={"<|end|>": VOCAB})
    theirs = hugging_face(words)
    assert theirs.decode_batch(texts) == [encoding.decode(text) for text in texts]
    work = {
        ("text_decode_bytes", "tiktoken"): lambda: [encoding.decode_bytes(text) for text in texts],
        ("text_decode", "tiktoken"): lambda: [encoding.decode(text) for text in texts],
        ("text_decode", "tokenizers (Python)"): lambda: theirs.decode_batch(texts),
    }
    for (op, who), one in work.items():
        if (not wanted.only or op in wanted.only.split(",")) and 1 in wanted.threads:
            timing = measure(one, wanted.seconds)
            rate = TEXTS * LENGTH / timing[0] * 1e3
            report(op, [TEXTS, LENGTH], "i32", 1, who, timing, tokens_per_second=rate)


if __name__ == "__main__":
    main()
