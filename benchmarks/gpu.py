"""The benchmarks of a GPU without the command line's packages; see gpu.sh."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sparsehyper.lab.bench import FULL, QUICK, bench
from sparsehyper.lab.report.bench import markdown, tables
from sparsehyper.lab.studies.pages import as_markdown

if not torch.cuda.is_available():
    sys.exit("this machine has no CUDA device that PyTorch can use")
folder, *names = sys.argv[1:]
groups = [name for name in names if name != "--quick"] or None
right = True
for group, results in bench(
    folder, groups=groups, sizes=QUICK if "--quick" in names else FULL, device="cuda"
):
    Path(folder, "results.md").write_text(markdown(results), encoding="utf-8")
    for table in tables(group, results):
        print(as_markdown(table))
    found = results["groups"][group]
    print(f"{group}: {found['seconds']:.0f} s", flush=True)
    right &= all(row.get("right", True) for row in found["rows"])
if not right:
    sys.exit("some of the GPU's results are not the CPU's; see the first table")
