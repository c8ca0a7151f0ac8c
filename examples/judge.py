"""A judge for gradstone: reads one JSON object per line and writes one per line.

gradstone train --set task.verifier.command='["python3", "examples/judge.py"]'
"""
import json
import sys

for line in sys.stdin:
    asked = json.loads(line)
    right = asked["completion"].strip() == asked["answer"] and not asked["truncated"]
    judged = {
        "id": asked["id"],  # says which attempt this is about; answers may come in any order
        "reward": 1.0 if right else 0.0,
        "label": "right" if right else "wrong",
    }
    if "steps" in asked:  # with task.verifier.steps: a verdict about each step that was sent
        judged["steps"] = [asked["answer"] in step for step in asked["steps"]]
    print(json.dumps(judged), flush=True)
