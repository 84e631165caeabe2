"""The benchmarks of a GPU without the command line's packages; see gpu.sh."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sparsehyper.lab.bench import FULL, QUICK, bench
from sparsehyper.lab.report.bench import markdown

if not torch.cuda.is_available():
    sys.exit("this machine has no CUDA device that PyTorch can use")
folder = Path(sys.argv[1])
for _, results in bench(folder, sizes=QUICK if "--quick" in sys.argv else FULL, device="cuda"):
    page = markdown(results)
    (folder / "results.md").write_text(page, encoding="utf-8")
    print(page)
    if any(not row["right"] for row in results["groups"]["gpu"]["checks"]):
        sys.exit("the GPU's results differ from the CPU's; see above")
