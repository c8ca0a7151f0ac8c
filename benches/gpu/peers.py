"""Other libraries on the shapes of a `gradstone bench` report, and both as one CSV.

Reads the report, runs PyTorch (eager and compiled), TRL's and Liger's functions where they are installed on every row
that has a counterpart, and writes a line for each. Ours come first, all of them, so that a run that is cut off has them;
then the peers as they are measured, the largest size of every part before the others, until the minutes are over. A peer
that fails has a line too, which says so. Times are medians, of runs on empty caches (cold) and of runs one after the other
(warm), as ours are. Without torch there are ours alone. `benches/gpu/run` calls it.
"""

import argparse
import csv
import gc
import json
import math
import platform
import statistics
import sys
import time

from counterparts import NO_TORCH, PEERS, torch, version

FIELDS = [
    "commit", "device", "driver", "command", "kernel", "part", "shape", "dtype", "who", "version",
    "cold_ms", "warm_ms", "percent_of_bound", "correct", "note",
]
# What failed so often without ever working is not tried again: without a C compiler no compiled function works.
GIVEN_UP = 3


class Clock:
    """Medians on a device: CUDA events on a GPU, the wall clock elsewhere."""

    def __init__(self, device, seconds):
        self.device, self.seconds = device, seconds
        self.scratch = torch.empty(256 << 20 if device == "cuda" else 64 << 20, dtype=torch.uint8, device=device)

    def on_cpu(self, work, cold):
        if cold:
            self.scratch.fill_(1)
        start = time.perf_counter()
        work()
        return [(time.perf_counter() - start) * 1e3]

    def on_gpu(self, work, cold, runs):
        """Many runs between two waits, so that the host's part is hidden where the device is slower, as ours."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs if cold else 1)]
        for begin, end in events:
            if cold:
                self.scratch.fill_(1)
            begin.record()
            for _ in range(1 if cold else runs):
                work()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / (1 if cold else runs) for begin, end in events]

    def measure(self, work):
        work()
        if self.device == "cuda":
            work()
            once = max(self.on_gpu(work, False, 1)[0], 1e-3)
            # Batches of some 20 ms.
            runs = min(max(int(20 / once), 1), 200)
            batch = lambda cold: self.on_gpu(work, cold, runs)
        else:
            (once,) = self.on_cpu(work, False)
            batch = lambda cold: self.on_cpu(work, cold)
        cold, warm = [], []
        started = time.perf_counter()
        least = 3 if once < 1000 else 1
        while len(warm) < least or (len(warm) < 200 and time.perf_counter() - started < self.seconds):
            cold += batch(True)
            warm += batch(False)
        return statistics.median(cold), statistics.median(warm)


def in_order(rows):
    """The largest size of every part first, in bf16 where there is one; the others after all of these."""
    def size(row):
        return (-math.prod(row["shape"]), row["dtype"] != "bf16")

    parts = {}
    for row in rows:
        parts.setdefault((row["kernel"], row["part"]), []).append(row)
    turns = [sorted(part, key=size) for part in parts.values()]
    return [part[turn] for turn in range(max(map(len, turns), default=0)) for part in turns if turn < len(part)]


class Peers:
    """Measures the peers of one row after the other, as long as there is time."""

    def __init__(self, device, seconds, deadline, write):
        self.device, self.deadline, self.write = device, deadline, write
        self.clock = Clock(device, seconds)
        self.measured = self.failed = 0
        self.failures = {}
        self.unreached = []

    def late(self):
        return time.monotonic() > self.deadline

    def row(self, row):
        """All peers of a row; an error of one is a line of it alone."""
        if row["kernel"] not in PEERS:
            return
        peers = PEERS[row["kernel"]](row, self.device)
        while True:
            who = package = prepare = None
            if self.late():
                self.unreached.append(row)
                break
            try:
                who, package, prepare = next(peers, (None, None, None))
                if who is None:
                    break
                if self.failures.get(who, 0) >= GIVEN_UP:
                    continue
                cold, warm = self.clock.measure(prepare())
                self.failures[who] = -math.inf
                self.measured += 1
                self.write(row, who, version(package), cold_ms=cold, warm_ms=warm)
            except Exception as error:
                self.wrong(row, who, package, error)
            # The frames of an error and the graphs of a peer hold memory.
            del prepare
            self.free()
        del peers
        torch._dynamo.reset()
        self.free()

    def wrong(self, row, who, package, error):
        # The second line has the reason where the first says which part of torch it was.
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        note = f"{type(error).__name__}: {' '.join(said[:2])}"[:200]
        self.failed += 1
        if who:
            self.failures[who] = self.failures.get(who, 0) + 1
            if self.failures[who] == GIVEN_UP:
                note += " (not tried again)"
        who = who or "inputs of the peers"
        print(f"{who}: {row['kernel']} {row['part']} {row['shape']}: {note}", file=sys.stderr)
        self.write(row, who, package and version(package), note=note)

    def free(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def summary(self):
        kernels = ", ".join(dict.fromkeys(row["kernel"] for row in self.unreached))
        text = f"{self.measured} peers measured, {self.failed} failed"
        return f"cut: {text}; no time for {len(self.unreached)} rows of {kernels}" if kernels else text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="JSON of gradstone bench")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, about")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no peer after so many")
    parser.add_argument("--out", required=True, help="CSV to write")
    parser.add_argument("--commit", default="unknown", help="what ours was built from")
    parser.add_argument("--driver", help="the GPU's driver")
    parser.add_argument("--command", default="benches/gpu/peers.py", help="what the reader is to run for the same")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    with open(options.ours) as file:
        report = json.load(file)
    device, _, number = options.device.partition(":")
    run = {
        "commit": options.commit,
        "device": report["device"],
        "driver": options.driver or ("unknown" if device == "cuda" else platform.platform()),
        "command": options.command,
    }
    with open(options.out, "w", newline="") as file:
        out = csv.DictWriter(file, FIELDS, restval="")
        out.writeheader()

        def write(row, who, version, **figures):
            shape = "x".join(map(str, row["shape"]))
            named = {field: row[field] for field in ("kernel", "part", "dtype")}
            out.writerow({**run, **named, "shape": shape, "who": who, "version": version, **figures})
            file.flush()

        for row in report["rows"]:
            fields = ("cold_ms", "warm_ms", "percent_of_bound", "correct")
            write(row, "gradstone", None, **{field: row[field] for field in fields})
        for kernel, why in [*report["skipped"], *report.get("failed", [])]:
            row = {"kernel": kernel, "part": "", "dtype": "", "shape": []}
            write(row, "gradstone", None, note=f"not measured: {' '.join(why.split())}")

        missing = NO_TORCH
        if not missing and device == "cuda" and not torch.cuda.is_available():
            missing = f"torch {torch.__version__} finds no GPU"
        if missing:
            print(f"skipped: no peers: {missing}; the CSV has ours alone")
            return
        if number:
            torch.cuda.set_device(int(number))
        torch.manual_seed(0)
        peers = Peers(device, options.seconds, deadline, write)
        for row in in_order(report["rows"]):
            try:
                peers.row(row)
                if device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                # Measured peers cannot fail here: one took the GPU's context and all later ones with it.
                print(f"cut: {peers.summary()}; the GPU is lost to this process: {error}".splitlines()[0])
                return
        print(peers.summary())
        sys.exit(peers.failed > 0 and peers.measured == 0)


if __name__ == "__main__":
    main()
