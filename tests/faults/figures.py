"""Print the figures of `make faults` as a table for docs/reliability.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: Path) -> None:
    """Print one row for each line of the file, sorted by promise."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print("| promise | of | tried | wrong | also |\n|---|---|---:|---:|---|")
    for row in sorted(rows, key=lambda row: (row["promise"], str(row))):
        promise, _, part = row.pop("promise").partition(": ")
        tried, wrong = row.pop("tried"), row.pop("wrong", 0)  # most tests fail at the first wrong
        of = row.pop("command", row.pop("what", row.pop("model", "")))
        also = ", ".join(
            f"{key.replace('_', ' ')} {value:.3g}"
            if isinstance(value, float)
            else f"{key} {value:,}"
            for key, value in row.items()
        )
        of = ", ".join(filter(None, (part, of)))
        print(f"| {promise} | {of} | {tried:,} | {wrong} | {also} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
