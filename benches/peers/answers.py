"""Math-Verify on the cases of the answer reader: which verdicts are right, which rewards are false, which are missed.

    pip install math-verify==0.9.0
    python benches/peers/answers.py

The reference goes in as a formula (`$…$`) unless it is a whole solution, the completion as it is. Our own verdicts on the same
cases are the test `cargo test --test answers`, which fails when one is wrong.
"""

import collections
import json
import logging
import pathlib

from math_verify import parse, verify

CASES = pathlib.Path(__file__).parents[2] / "tests/answers/cases.jsonl"


def rewarded(case):
    """A completion that was cut off without a box earns nothing, as it is in our verifier."""
    answer, completion = case["answer"], case["completion"]
    if case["truncated"] and "\\boxed{" not in completion:
        return False
    solution = any(mark in answer for mark in ("$", "\\boxed", "####"))
    gold = parse(answer if solution else f"${answer}$")
    return bool(verify(gold, parse(completion)))


def main():
    logging.disable(logging.CRITICAL)
    counts = collections.defaultdict(collections.Counter)
    for line in CASES.read_text().splitlines():
        case = json.loads(line)
        given, wanted = rewarded(case), case["right"]
        verdict = "right" if given == wanted else "false reward" if given else "missed"
        for kind in (case["kind"], "all"):
            counts[kind][verdict] += 1
            counts[kind]["cases"] += 1
    for kind, count in counts.items():
        names = ("cases", "right", "false reward", "missed")
        print(json.dumps({"op": "answers", "who": "math-verify", "kind": kind} | {name: count[name] for name in names}))


main()
