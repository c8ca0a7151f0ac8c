#!/usr/bin/env python3
"""What the compiler made of every kernel, held to what the kernels promise, as a page: kernels/resources calls it.

    resources.py MADE PTX

MADE holds, for each family and architecture, <family>.<architecture>.log of ptxas and .sass of nvdisasm; PTX the committed PTX.
"""

import collections
import math
import pathlib
import re
import sys

ARCHITECTURES = ("sm_80", "sm_90a")
SHARED_OF_SM = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}

# Kernels that say, in the essay at the head of their .cu, that they move memory sixteen bytes at a time: how many such
# loads (cp.async among them) and stores there must be at least. That is one for each array that the essay streams, so
# that one which falls back to narrow accesses is missed. A pattern that matches no kernel is an error.
STREAMS = [
    # pattern, loads, stores, what is promised
    (r"activation_(bf16|f16|f32)", 2, 1, "activation.cu: 16 bytes of the storage type at a time, x and up in, y out"),
    (r"activation_gradient_(bf16|f16)", 4, 4, "x, up and two halves of dy in, two halves of dx and of dup out"),
    (r"activation_gradient_f32", 3, 2, "x, up and dy in, dx and dup out"),
    (r"adamw", 4, 4, "adamw.cu: weight, moments and gradient in, weight, moments and an f32 copy out"),
    (r"gradient_squares", 1, 0, "adamw.cu: thread t takes elements 4 t .. 4 t + 3"),
    (r"attention_forward_.*", 3, 0, "attention_tile.cuh: stage() copies q, k and v by cp.async"),
    (r"attention_backward_.*", 4, 0, "attention_tile.cuh: stage() copies q, k, v and dout by cp.async"),
    (r"block_noise", 1, 2, "block_noise.cu: ids in, noised ids and weights out, sixteen bytes where rows are aligned"),
    (r"cache_copy", 1, 1, "attention_cache.cu: a page read and written once"),
    (r"decode_copy", 1, 1, "token_decode.cu: an entry of the table in, bytes written sixteen at a time"),
    (r"gather_rows_16", 1, 1, "rows.cu: a word of 16 bytes"),
    (r"layer_norm_(bf16|f16|f32)", 3, 1, "row_walk.cuh: groups of 16 bytes: x, weight and bias in, y out"),
    (r"layer_norm_gradient_(bf16|f16)", 4, 2, "x, weight and two halves of dy in, two halves of dx out"),
    (r"layer_norm_gradient_f32", 3, 1, "x, weight and dy in, dx out"),
    (r"logprob_(forward|units)_.*", 4, 0, "softmax_row.cuh: four loads of 16 bytes in flight"),
    (r"logprob_backward_.*", 2, 2, "logprob.cu: one read of the logits, one write of their gradient, two groups in flight"),
    (r"logprob_both_.*", 6, 2, "the forward pass, then the backward pass"),
    (r"policy_loss_tokens", 5, 2, "policy_loss.cu: log-probs, advantages, references and entropies in, both gradients out"),
    (r"rms_norm_(bf16|f16|f32)", 2, 1, "row_walk.cuh: groups of 16 bytes: x and weight in, y out"),
    (r"rms_norm_gradient_(bf16|f16)", 4, 2, "x, weight and two halves of dy in, two halves of dx out"),
    (r"rms_norm_gradient_f32", 3, 1, "x, weight and dy in, dx out"),
    (r"rope_(bf16|f16)", 6, 2, "rope.cu: both halves of a head in, two words each of cosines and sines, both halves out"),
    (r"rope_f32", 4, 2, "rope.cu: both halves of a head, cosines and sines in, both halves out"),
    (r"sample_.*", 4, 0, "sample.cu: statistics are softmax_row.cuh's"),
    (r"scatter_add_rows", 1, 1, "rows.cu: four columns a thread"),
    (r"softmax_(bf16|f16)", 1, 3, "row_walk.cuh: groups of 16 bytes: x in, y and the two halves of its f32 twin out"),
    (r"softmax_f32", 1, 2, "row_walk.cuh: x in, y and its twin out"),
    (r"softmax_gradient_f32", 2, 1, "row_walk.cuh: y and dy in, dx out"),
]

# Kernels whose products are the tensor cores' (attention_forward.cu, attention_backward.cu: mma.sync).
TENSOR_CORES = r"attention_(forward_\d+_(bf16|f16)|backward_(queries|keys)_\d+_bf16)"

# Why a kernel may touch local memory. Others must not, and one that no longer does is taken out here.
LOCAL = {
    "decode_copy": "the 16 bytes of a token's entry, indexed by the byte that is copied",
    "decode_strip": "the same entry, in a kernel of a thread a text",
}


def attention_launch(kernel):
    """Threads and shared bytes of a training batch whose sequences are longer than 512 tokens: Plan::warps,
    Plan::forward_bytes with totals and Plan::backward_bytes of src/kernels/attention/launch/plan.rs."""
    width, dtype = re.search(r"_(\d+)_(f32|bf16|f16)$", kernel).groups()
    width, size = int(width), 4 if dtype == "f32" else 2
    warps, row = 2 if width * size > 512 else 4, width * size + 16
    if kernel.startswith("attention_forward"):
        keys, rows = 64 if width * size <= 256 else 32, warps * 16
        queries, totals = rows * row, rows * width * 4
        own = max(queries, totals) if size == 2 and width <= 128 else queries + totals
        return 32 * warps, 2 * keys * row + exchange(size, warps, keys) + own
    inner = 32 if size == 2 else 16
    return 32 * warps, (2 * warps * 16 + 4 * inner) * row + 4 * inner * 4 + exchange(size, warps, inner)


def exchange(size, warps, keys):
    return warps * 16 * (keys + 4) * 4 if size == 4 else 0


# Launches that ask for shared memory, or take fewer threads than the kernel allows: threads, shared bytes.
LAUNCHES = [
    (r"attention_(forward|backward_queries|backward_keys)_\d+_.*", attention_launch),
    # src/kernels/block_noise/launch.rs, blocks of four tokens: a tile of 1024 keys, 256 bounds and 256 weights.
    (r"block_noise", lambda _: (256, 4 * (1024 + 2 * 256))),
]


def up_to(multiple, number):
    return math.ceil(number / multiple) * multiple


def resident_warps(architecture, registers, threads, shared):
    """Of 64 of an SM: registers go to warps in units of 256, a quarter of the 65536 to each of four schedulers; a block takes
    shared memory in units of 128 bytes and 1 KiB more; at most 32 blocks and 2048 threads."""
    warps = math.ceil(threads / 32)
    by_registers = 16384 // up_to(256, registers * 32) * 4 // warps
    by_shared = SHARED_OF_SM[architecture] // (up_to(128, shared) + 1024)
    return min(32, 64 // warps, by_registers, by_shared) * warps


ENTRY = re.compile(r"Compiling entry function '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SECTION = re.compile(r"\t\.section\t\.text\.(\w+),")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
WIDTH = {"128": "16", "64": "8", "U8": "2", "S8": "2", "U16": "2", "S16": "2"}


def read_log(path):
    """What ptxas says: kernel -> registers, static shared bytes, stack bytes, spilled bytes."""
    kernels, kernel = {}, None
    for line in path.read_text().splitlines():
        if found := ENTRY.search(line):
            kernel, stack, spilled = found[1], 0, 0
        elif kernel and (found := STACK.search(line)):
            stack, spilled = max(stack, int(found[1])), spilled + int(found[2]) + int(found[3])
        elif kernel and (found := USED.search(line)):
            shared = int(smem[1]) if (smem := SHARED.search(line)) else 0
            kernels[kernel] = {"registers": int(found[1]), "shared": shared, "stack": stack, "spilled": spilled}
            kernel = None
    return kernels


def read_code(path):
    """Instructions that are counted: kernel -> what -> how many. A load or a store through an address of unknown space (LD,
    ST) is one of global memory: no kernel makes another's address unknown."""
    kernels, counts = {}, None
    for line in path.open():
        if found := SECTION.match(line):
            counts = kernels.setdefault(found[1], collections.Counter())
        elif found := INSTRUCTION.match(line):
            name, *parts = found[1].split(".")
            width = next((WIDTH[part] for part in parts if part in WIDTH), "4")
            if name in ("LD", "LDG"):
                counts["load" + width] += 1
            elif name in ("ST", "STG"):
                counts["store" + width] += 1
            elif name == "LDGSTS":
                counts["copy" + width] += 1
            elif name in ("LDL", "STL"):
                counts["local"] += 1
            elif name == "HMMA":
                counts["products"] += 1
    return kernels


def most_threads(path):
    text = path.read_text()
    return {kernel: int(threads) for kernel, threads in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", text)}


# Heading, and the number of a kernel on one architecture that stands below it. What is 0 in a whole family is left out.
COLUMNS = [
    ("registers", "registers"),
    ("warps", "warps an SM"),
    ("shared", "shared bytes"),
    ("dynamic", "asked for"),
    ("load16", "load 16"),
    ("load8", "load 8"),
    ("load4", "load 4"),
    ("load2", "load ≤ 2"),
    ("store16", "store 16"),
    ("store8", "store 8"),
    ("store4", "store 4"),
    ("store2", "store ≤ 2"),
    ("copy16", "cp.async 16"),
    ("products", "HMMA"),
    ("local", "local accesses"),
    ("stack", "stack bytes"),
]

HEAD = """# Registers, memory accesses and occupancy

What `nvcc` 13.0 makes of each kernel, as `kernels/resources` prints it; the checks compare this page with a new compilation.
None of it was measured: it is read in the machine code. The checks also fail

- on a warning or a spill;
- when a kernel that promises to move memory sixteen bytes at a time has fewer such accesses than it streams arrays
  (`STREAMS` in `kernels/resources.py`);
- when attention in 16 bits has no tensor-core product;
- when a kernel touches local memory and the table below does not say why.

**Load, store** (global memory, by the bytes of one thread), **cp.async** (global to shared memory) and **HMMA** (tensor-core
products) count instructions in the code and not executions: a loop that is unrolled has more, and next to the 16-byte
path stands one by single elements for what is not aligned. How often the hot loops execute them says
[instructions.md](instructions.md). **Warps an SM** follow from registers, threads and shared memory by
NVIDIA's rules: 64 are the most, 65536 registers are given to warps in units of 256, 164 KiB (sm_80) or 228 KiB (sm_90a) of shared
memory to blocks with 1 KiB more each. Shared memory is what is static; **asked for** is what a launch adds, for attention in a
training batch of sequences longer than 512 tokens and for noise with blocks of four. **Stack** is local memory of arrays
that are indexed at run time; spills, of which there are none, would be registers that did not fit. A column of zeros is left out.

"""


def cell(kernel, column):
    if column == "warps":
        return f"{kernel['warps']} ({100 * kernel['warps'] / 64:.0f} %)"
    return str(kernel[column])


def table(family, kernels):
    numbers = [of for pair in kernels.values() for of in pair.values()]
    columns = [(column, title) for column, title in COLUMNS if any(of[column] for of in numbers)]
    head = "| kernel | | " + " | ".join(title for _, title in columns) + " |"
    lines = ["", f"## {family}", "", head, "|---" * (len(columns) + 2) + "|"]
    for name, pair in sorted(kernels.items()):
        cells = [" | ".join(cell(pair[architecture], column) for column, _ in columns) for architecture in ARCHITECTURES]
        if cells[0] == cells[1]:
            lines.append(f"| `{name}` | both | {cells[0]} |")
        else:
            lines.append(f"| `{name}` | {ARCHITECTURES[0]} | {cells[0]} |")
            lines.append(f"| | {ARCHITECTURES[1]} | {cells[1]} |")
    return lines


def complaints(kernels):
    """What is not as promised; `kernels`: name -> architecture -> numbers."""
    for name, pair in kernels.items():
        for architecture, of in pair.items():
            if of["spilled"]:
                yield f"{name} spills {of['spilled']} bytes on {architecture}"
            if (of["local"] or of["stack"]) and name not in LOCAL:
                yield f"{name} has {of['local']} accesses of local memory on {architecture}, and LOCAL does not say why"
            if re.fullmatch(TENSOR_CORES, name) and not of["products"]:
                yield f"{name} has no tensor-core product on {architecture}"
            if of["copy4"] or of["copy8"]:
                yield f"{name} has cp.async of less than 16 bytes on {architecture}"
    for name in LOCAL:
        if not any(of["local"] or of["stack"] for of in kernels.get(name, {}).values()):
            yield f"{name} has no local memory any more: take it out of LOCAL"
    for pattern, loads, stores, promise in STREAMS:
        matching = [name for name in kernels if re.fullmatch(pattern, name)]
        if not matching:
            yield f"no kernel is called {pattern}: STREAMS is out of date"
        for name in matching:
            for architecture, of in kernels[name].items():
                for kind, have, least in (("loads", of["load16"] + of["copy16"], loads), ("stores", of["store16"], stores)):
                    if have < least:
                        yield f"{name} has {have} 16-byte {kind} on {architecture} and not {least} ({promise})"


def main(made, ptx):
    families = collections.defaultdict(lambda: collections.defaultdict(dict))
    for log in sorted(pathlib.Path(made).glob("*.log")):
        family, architecture = log.stem.split(".")
        code, threads_of = read_code(log.with_suffix(".sass")), most_threads(pathlib.Path(ptx) / f"{family}.ptx")
        kernels = read_log(log)
        if code.keys() != kernels.keys():
            sys.exit(f"{family} on {architecture}: code of {sorted(code)}, registers of {sorted(kernels)}")
        for name, numbers in kernels.items():
            launch = next((launch for pattern, launch in LAUNCHES if re.fullmatch(pattern, name)), None)
            threads, dynamic = launch(name) if launch else (threads_of[name], 0)
            warps = resident_warps(architecture, numbers["registers"], threads, numbers["shared"] + dynamic)
            of = collections.Counter(code[name], **numbers, dynamic=dynamic, warps=warps)
            families[family][name][architecture] = of
    kernels = {name: pair for family in families.values() for name, pair in family.items()}
    if not kernels or any(len(pair) != len(ARCHITECTURES) for pair in kernels.values()):
        sys.exit("the compiler told nothing about some kernel")
    if broken := list(complaints(kernels)):
        sys.exit("\n".join(broken))
    print(HEAD + "| local memory of | why |\n|---|---|")
    for name, why in LOCAL.items():
        print(f"| `{name}` | {why} |")
    for family, of in families.items():
        print("\n".join(table(family, of)))


main(*sys.argv[1:])
