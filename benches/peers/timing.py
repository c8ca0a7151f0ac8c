"""What the peers' scripts share: options, the clock, and one JSON line for each measurement.

Lines are those of benches/timing/mod.rs, without a bound: op, shape, dtype, threads, who, median_ms, cpu_ms.
"""

import argparse
import json
import statistics
import time


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    parsed = parser.parse_args()
    parsed.threads = [int(t) for t in parsed.threads.split(",")]
    return parsed


def measure(work, seconds):
    """Medians of wall and CPU time in ms: two runs to warm up, then 3 to 50 within the budget."""
    work()
    work()
    wall, cpu = [], []
    started = time.perf_counter()
    while len(wall) < 3 or (len(wall) < 50 and time.perf_counter() - started < seconds):
        cpu_start, start = time.process_time(), time.perf_counter()
        work()
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def report(op, shape, dtype, threads, who, timing, **more):
    median_ms, cpu_ms = timing
    line = dict(op=op, shape=list(shape), dtype=dtype, threads=threads, who=who)
    print(json.dumps({**line, "median_ms": median_ms, "cpu_ms": cpu_ms, **more}), flush=True)
