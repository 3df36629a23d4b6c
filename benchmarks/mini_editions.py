"""Two editions of the bundled model on every split, beside each other, with chance.

    vlm evaluate OLD --json --split SPLIT ... > old.json
    python -m benchmarks.mini_editions old.json runs/mini/evaluation.json > benchmarks/mini_editions.md

The second file is what `python -m training.release` measured, once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

TASKS = ("text->image R@1", "image->text R@1")
PARTS = ("", ", only words trained on", ", words never trained on")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    args = parser.parse_args()
    before, now = (_by_name(json.loads(path.read_text(encoding="utf-8"))) for path in (args.before, args.now))
    print("# The first and the second edition of mini\n")
    print("R@1, English / Japanese; texts that are the same are one query, all images of a concept are correct.\n")
    print("| split | task | queries | chance | first edition | second edition |")
    print("|---|---|---:|---|---|---|")
    for split in dict.fromkeys(split for split, _, _ in now):
        for task in (task + part for task in TASKS for part in PARTS):
            if (split, task, "en") in now:
                print(_line(split, task, before, now))
        for task in dict.fromkeys(task for own, task, _ in now if own == split and task.startswith("top-1")):
            print(_line(split, task, before, now))


def _by_name(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["split"], row["task"], row["language"]): row for row in rows}


def _line(split: str, task: str, before: dict[Any, dict[str, Any]], now: dict[Any, dict[str, Any]]) -> str:
    def both(rows: dict[Any, dict[str, Any]], key: str, digits: str) -> str:
        found = (rows.get((split, task, language)) for language in ("en", "ja"))
        return " / ".join("-" if row is None else format(row[key], digits) for row in found)

    return (
        f"| {split} | {task} | {both(now, 'n', 'd')} | {both(now, 'chance', '.4f')} | {both(before, 'value', '.3f')} | "
        f"{both(now, 'value', '.3f')} |"
    )


if __name__ == "__main__":
    main()
