"""Write what the embedded suite's QAT trains on and what it is asked: puzzles of the kinds of its transform task.

Drawn by `train.py` as it draws its own training texts, from another seed. No puzzle is in both files, and none is a
document of another task. Whether half of a loss is recovered takes more questions to tell than whether there is a loss.

    python qat_data.py           # rewrite ../data/qat.jsonl and ../data/puzzles.jsonl (seconds)
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
train: Any = importlib.import_module("train")

SEED = 20262
LESSONS, QUESTIONS = 6400, 4000


def draw(rng: random.Random, count: int, taken: set[str]) -> list[tuple[str, Any]]:
    """Draw puzzles whose prompts are not in `taken`, with their kinds; adds them to `taken`."""
    found: list[tuple[str, Any]] = []
    while len(found) < count:
        kind, example = train.draw_transform(rng)
        if example.prompt not in taken:
            taken.add(example.prompt)
            found.append((kind, example))
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the training texts and the questions of QAT.")
    parser.add_argument("--suite", type=Path, default=train.SUITE, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    taken = set(train.build_world(train.SEED).held_out)
    lessons = [
        {"prompt": example.prompt, "text": example.answer + "\n"}
        for _, example in draw(random.Random(f"{options.seed}/qat"), LESSONS, taken)
    ]
    train.write_jsonl(options.suite / "data" / "qat.jsonl", lessons)
    questions = [
        {"prompt": example.prompt, "answer": example.answer, "kind": kind}
        for kind, example in draw(random.Random(f"{options.seed}/questions"), QUESTIONS, taken)
    ]
    train.write_jsonl(options.suite / "data" / "puzzles.jsonl", questions)


if __name__ == "__main__":
    main()
