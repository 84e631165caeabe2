#!/bin/sh
# Checks sparsehyper on a CUDA device and measures it there, in about three minutes. It needs Python
# with PyTorch, NumPy and safetensors, and installs nothing.
#
#     benchmarks/gpu.sh [FOLDER [GROUP …]]    writes FOLDER/results.json and FOLDER/results.md
#
# Groups are checks, layers, generators, steps, mixed and compiled; --quick makes all of them tiny.
# PYTHON names another interpreter. The tests marked `gpu` run too if pytest is there.
set -e
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- runs/bench-gpu
"$python" benchmarks/gpu.py "$@"
if "$python" -c "import pytest, hypothesis" 2>/dev/null; then
    "$python" -m pytest -q -m gpu -W default -p no:cacheprovider --continue-on-collection-errors \
        -o addopts=--import-mode=importlib tests/sparse tests/target tests/training tests/lab/data \
        tests/lab/bench tests/test_saving.py
else
    echo "pytest or hypothesis is not installed: the tests marked gpu were not run"
fi
