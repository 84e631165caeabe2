from __future__ import annotations

import matplotlib.figure
import pytest

from sparsehyper.lab.report.bench import draw_memory, draw_time, markdown, tables


def spread(value):
    return {"median": value, "low": 0.5 * value, "high": 2 * value}


def generator(method, numel, ms, peak, floor_ns):
    over = {"thesis": spread(0.1)} | ({"floor": spread(1.5)} if floor_ns else {})
    return {
        "method": method,
        "numel": numel,
        "trainable": 4 * numel,
        "ms": spread(ms),
        "ns": spread(1e6 * ms / numel),
        "over": over,
        "floor_ns": floor_ns and spread(floor_ns),
        "peak": peak,
    }


RESULTS = {
    "date": "2026-01-02",
    "machine": {
        "cpu": "A Processor",
        "cores": 4,
        "threads": 2,
        "kernels": True,
        "memory": 8 * 10**9,
        "python": "3.11.0",
        "torch": "2.13.0",
        "environment": {"OMP_NUM_THREADS": "2"},
    },
    "settings": {"rounds": 7, "seed": 0, "sizes": {"layer": [2_000, 4_000, 3]}},
    "groups": {
        "layers": {
            "rows": [
                {
                    "topology": "local",
                    "batch": 8,
                    "pass": "forward",
                    "method": "other",
                    "ms": spread(12.345),
                    "over": {"floor": spread(2.5), "thesis": spread(0.05)},
                    "note": "no gradient",
                }
            ]
            * 2,
            "skipped": [{"topology": "local", "batch": 8, "method": "third", "reason": "broken"}],
        },
        "generators": {
            "rows": [
                generator("sparse", 10**5, 1.0, 10**6, 5.0),
                generator("sparse", 10**6, 20.0, 10**8, 6.0),
                generator("dense", 10**5, 3.0, -5, None),
                generator("dense", 10**6, 40.0, None, None),
            ],
            "skipped": [],
            "flatness": {"from 100000": 2.0},
        },
    },
}


def test_a_table_has_ratios_and_says_what_is_left_out():
    (table,) = tables("layers", RESULTS)
    assert table.title == "Sparse layer, forward"
    assert table.rows[0] == ["other", "local", "8", "12.3 (6.17–24.7)", "2.50", "20.0"]
    assert table.notes == ["other: no gradient.", "Left out: local, 8, third: broken."]


def test_a_page_names_the_machine_and_holds_every_table():
    page = markdown(RESULTS)
    assert "A Processor, 4 cores, 2 threads, kernels built, 8.00 GB" in page
    assert "OMP_NUM_THREADS=2" in page
    assert "| sparse | 1e+05 | 4.00 | 1.00 | 10.0 | 1.50 | 10.0 | 2.50 |" in page
    assert "| dense | 1e+06 | 4.00 | 40.0 | 40.0 | – | 10.0 | – |" in page
    lines = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(lines) == {7, 9}


@pytest.fixture
def axes(monkeypatch):
    """Parts of the recorded figures."""
    saved = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **kwargs: (saved.extend(self.axes), save(self, *args, **kwargs)),
    )
    return saved


def test_time_has_a_line_a_method_and_the_floor_on_log_axes(axes, tmp_path):
    draw_time(RESULTS, tmp_path / "time.svg")
    assert (axes[0].get_xscale(), axes[0].get_yscale()) == ("log", "log")
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines == {
        "sparse": [[1e5, 1.0], [1e6, 20.0]],
        "dense": [[1e5, 3.0], [1e6, 40.0]],
        "bandwidth floor of sparse": [[1e5, 0.5], [1e6, 6.0]],
    }
    assert (tmp_path / "time.svg").read_text().count("N, generated parameters") == 1


def test_memory_leaves_out_what_could_not_be_told(axes, tmp_path):
    draw_memory(RESULTS, tmp_path / "memory.svg")
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert lines["sparse"] == [[1e5, 1.0], [1e6, 100.0]]
    assert "dense" not in lines
    assert lines["generated parameters alone"] == [[1e5, 0.4], [1e6, 4.0]]
