from __future__ import annotations

from dataclasses import replace

import pytest

from sparsehyper.lab.bench import QUICK
from sparsehyper.lab.bench.peers import measure_peers, peer_command


def test_libraries_answer_in_turn_and_a_broken_one_is_named(peers):
    found = measure_peers(peer_command(peers), QUICK, 2, 0)
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["sparse", "sparse, growth 8", "chunked", "hypnettorch"]
    assert rows["hypnettorch"]["seconds"] == [0.5, 0.5]
    assert rows["hypnettorch"]["trainable"] == 4 * 20_000
    for row in rows.values():
        ratios = sorted(seconds / 0.5 for seconds in row["seconds"])
        assert ratios[0] <= row["over"]["hypnettorch"]["median"] <= ratios[1]
        assert list(row["over"]) == ["hypnettorch"]
    (skipped,) = found["skipped"]
    assert skipped == {
        "numel": 20_000,
        "method": "hyperlight",
        "reason": "ImportError: no such thing",
    }


def test_a_worker_that_dies_is_an_error(peers):
    (peers / "worker.py").write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="`peers` died"):
        measure_peers(peer_command(peers), replace(QUICK, peers=(20_000,)), 1, 0)


def test_a_folder_without_worker_or_environment(peers, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere has no worker\.py; give benchmarks"):
        peer_command(tmp_path / "nowhere")
    (peers / ".venv" / "bin" / "python").unlink()
    with pytest.raises(FileNotFoundError, match=r"no environment; make it with: .*requirements"):
        peer_command(peers)
