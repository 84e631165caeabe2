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
folder = Path(sys.argv[1])
right = True
for group, results in bench(folder, sizes=QUICK if "--quick" in sys.argv else FULL, device="cuda"):
    (folder / "results.md").write_text(markdown(results), encoding="utf-8")
    for table in tables(group, results):
        print(as_markdown(table))
    right &= all(row.get("right", True) for row in results["groups"][group]["rows"])
if not right:
    sys.exit("some of the GPU's results are not the CPU's; see the first table")
