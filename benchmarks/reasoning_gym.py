"""Every reasoning-gym generator through our task source and verifier: gold answers and corrupted ones.

    python -m benchmarks.reasoning_gym --problems 20

One line for every generator where a gold answer did not score full marks or a corrupted one did, then totals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from envs.reasoning_gym import ReasoningGymTasks, names
from verifiers.by_task import ByTask


def corrupted(answer: str) -> str:
    """The answer with its first letter or digit replaced by the next one."""
    for i, char in enumerate(answer):
        if char.isalnum():
            new = str((int(char) + 1) % 10) if char.isdecimal() and char.isascii() else chr(ord(char) + 1)
            return answer[:i] + new + answer[i + 1 :]
    return answer + "7"


def check(generator: str, problems: int) -> dict[str, int]:
    """How many gold answers scored full marks, and how many corrupted ones did."""
    source, verifier = ReasoningGymTasks(generator), ByTask()
    counts = {"problems": problems, "gold": 0, "corrupted": 0}
    for task in map(source.train, range(problems)):
        for kind, answer in (("gold", task.reference), ("corrupted", corrupted(str(task.reference)))):
            counts[kind] += verifier.verify(f"<answer>{answer}</answer>", task).is_correct
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/reasoning_gym.json"))
    given = parser.parse_args()
    results = {}
    for name in names():
        counts = results[name] = check(name, given.problems)
        if counts["gold"] < counts["problems"] or counts["corrupted"]:
            print(f"{name}: gold {counts['gold']}/{counts['problems']}, corrupted {counts['corrupted']}")
    full = sum(r["gold"] == r["problems"] for r in results.values())
    refused = sum(r["corrupted"] == 0 for r in results.values())
    print(f"figure reasoning_gym_generators {len(results)} generators")
    print(f"figure reasoning_gym_gold_full_marks {full} generators")
    print(f"figure reasoning_gym_corrupted_refused {refused} generators")
    given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
