"""Print the figures of `make faults` as a table for docs/reliability.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: Path) -> None:
    """Print one row for each line of the file, sorted by promise."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print("| promise | of | tried | wrong | besides |\n|---|---|---:|---:|---|")
    for row in sorted(rows, key=lambda row: (row["promise"], str(row))):
        named = {key: row.pop(key, None) for key in ("promise", "tried", "wrong")}
        of = row.pop("command", row.pop("what", row.pop("model", "")))
        besides = ", ".join(f"{key} {value}" for key, value in row.items())
        # Tests without this figure fail at the first wrong result.
        wrong = 0 if named["wrong"] is None else named["wrong"]
        print(f"| {named['promise']} | {of} | {named['tried']:,} | {wrong} | {besides} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
