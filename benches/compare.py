#!/usr/bin/env python3
"""Runs benchmarks and their peers' scripts in turn, several rounds, and prints one table.

    benches/compare.py --python PYTHON NAME...

NAME is a benchmark: `cargo bench --bench NAME` against `PYTHON benches/peers/NAME.py` (and `NAME_*.py` beside it), and
against the program NAME of benches/peers/candle where there is one.
Both print one JSON object a line: op, shape, dtype, threads, who, median_ms, cpu_ms; ours also bound_ms; either may
have further numbers, such as tokens_per_second. A row of the table is one op, shape, dtype and thread count; its times
are medians over the rounds, ours over every other's a ratio, and ours over the bound. Where a machine is shared, the
CPU time is the better measure.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = "gradstone"


def lines(command, environment, failures):
    """The JSON objects that a command prints, as they come; they and its other output go to stderr too."""
    print(" ".join(map(str, command)), file=sys.stderr)
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        sys.stderr.write(line)
        if line.startswith("{"):
            yield json.loads(line)
    if run.wait() != 0:
        failures.append(f"{' '.join(map(str, command))}: status {run.returncode}")


def commands(name, options):
    rest = ["--threads", options.threads, "--seconds", str(options.seconds)]
    rest += ["--only", options.only] if options.only else []
    yield ["cargo", "bench", "--quiet", "--bench", name, "--", *rest]
    peers = ROOT / "benches" / "peers"
    for script in sorted([*peers.glob(f"{name}.py"), *peers.glob(f"{name}_*.py")]):
        yield [options.python, script, *rest]
    if (peers / "candle" / "src" / "bin" / f"{name}.rs").exists():
        build = ["--release", "--quiet", "--locked", "--manifest-path", peers / "candle" / "Cargo.toml"]
        yield ["cargo", "run", *build, "--target-dir", ROOT / "target" / "candle", "--bin", name, "--", *rest]


def collect(options, failures):
    """{(op, shape, dtype, threads): {who: {field: [value of each round]}}}"""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
    everything = [command for name in options.names for command in commands(name, options)]
    table = {}
    for command in everything * options.rounds:
        for line in lines(command, environment, failures):
            key = (line["op"], str(line["shape"]), line["dtype"], line["threads"])
            fields = table.setdefault(key, {}).setdefault(line["who"], {})
            for field, value in line.items():
                if isinstance(value, (int, float)) and field != "threads":
                    fields.setdefault(field, []).append(value)
    return table


def show(table, clock):
    print(f"| op | shape | dtype | threads | who | wall ms | CPU ms | bound ms | ours / bound | theirs / ours ({clock}) |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (op, shape, dtype, threads), entries in table.items():
        ours = entries.get(OURS, {})
        median = lambda fields, field: statistics.median(fields[field]) if fields.get(field) else None
        number = lambda value: "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
        bound, base = median(ours, "bound_ms"), median(ours, clock)
        for who, fields in sorted(entries.items(), key=lambda entry: entry[0] != OURS):
            own = who == OURS
            wall, theirs = median(fields, "median_ms"), median(fields, clock)
            cells = [op, shape, dtype, threads, who, number(wall), number(median(fields, "cpu_ms"))]
            cells.append(number(bound) if own else "")
            cells.append(f"{wall / bound:.2f}" if own and bound else "")
            cells.append(f"{theirs / base:.2f}" if not own and base and theirs else "")
            print("| " + " | ".join(map(str, cells)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--clock", choices=["median_ms", "cpu_ms"], default="median_ms", help="for the ratios")
    parser.add_argument("--json", help="also write every number here")
    options = parser.parse_args()
    failures = []
    table = collect(options, failures)
    show(table, options.clock)
    if options.json:
        rows = [dict(zip(("op", "shape", "dtype", "threads"), key), results=value) for key, value in table.items()]
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=1))
    if failures:
        sys.exit("error: " + "; ".join(failures))


if __name__ == "__main__":
    main()
