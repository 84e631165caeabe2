from __future__ import annotations

import matplotlib.figure
import pytest

from sparsehyper.lab.plots import accuracy_vs_budget
from sparsehyper.lab.studies.pages import panels


def row(method, ratio, mean, sd):
    return {
        "method": method,
        "parameters_per_target_parameter": ratio,
        "accuracy": {"mean": mean, "sd": sd},
        "seeds": [0, 1],
    }


RESULTS = {
    "config": {
        "data": {"source": "digits", "tasks": "split:2"},
        "target": "mlp:64",
        "seeds": [0, 1],
    },
    "tasks": {"names": ["0-1", "2-3"]},
    "numel": 4290,
    "rows": [
        row("sparse", 4.0, 0.98, 0.01),
        row("sparse", 2.0, 0.95, 0.02),
        row("chunked", 4.0, 0.981, 0.01),
        row("chunked:hidden=8", 3.0, 0.97, None),
        row("shared_trunk", 1.2, 0.96, 0.0),
    ],
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs)),
    )
    return saved


def test_the_picture(tmp_path, figures):
    accuracy_vs_budget(RESULTS, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "trainable parameters ÷ parameters of one target" in drawn  # as text
    assert "prefers-color-scheme: dark" in drawn
    accuracy_vs_budget(RESULTS, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    assert "2 tasks\ntarget mlp:64 (N = 4,290), 2 seeds" in axes.get_title(loc="left")
    lines = {tuple(c[0].get_xdata()): c[0].get_ydata() for c in axes.containers}
    assert list(lines[2.0, 4.0]) == [95.0, 98.0]
    assert axes.get_ylabel() == "mean test accuracy ± standard deviation, %"


def test_the_picture_of_r_squared(tmp_path, figures):
    accuracy_vs_budget({**RESULTS, "score": "R²"}, tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    lines = {tuple(c[0].get_xdata()): c[0].get_ydata() for c in axes.containers}
    assert list(lines[2.0, 4.0]) == [0.95, 0.98]
    assert axes.get_ylabel() == "mean test R² ± standard deviation"


def test_labels_cover_neither_points_nor_each_other(tmp_path, figures):
    accuracy_vs_budget(RESULTS, tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    assert {text.get_text() for text in axes.texts} == {
        "sparse",
        "chunked",
        "chunked:hidden=8",
        "shared trunk",
    }
    boxes = [text.get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        for container in axes.containers:
            points = axes.transData.transform(container[0].get_xydata())
            assert not any(box.contains(*point) for point in points)


def test_a_folder_is_named_as_it_is(tmp_path, figures):
    config = {**RESULTS["config"], "data": {"source": "/some/where/my $x_$", "tasks": None}}
    accuracy_vs_budget({**RESULTS, "config": config}, tmp_path / "picture.svg")
    assert figures[0].axes[0].get_title(loc="left").startswith("my $x_$: 2 tasks")


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="`results` has no rows to draw"):
        accuracy_vs_budget({**RESULTS, "rows": []}, tmp_path / "picture.svg")


def test_near_budgets_are_labelled_and_do_not_fill_the_axis(tmp_path, figures):
    long = {**RESULTS["config"], "data": {"source": "digits", "tasks": "split:" + "0-1," * 40}}
    rows = [row("sparse", 4.98, 0.9, 0.01), row("experts", 5.0, 0.91, 0.01)]
    accuracy_vs_budget({**RESULTS, "config": long, "rows": rows}, tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    assert high / low >= 4
    assert "5" in [label.get_text() for label in axes.get_xticklabels()]
    assert len(max(axes.get_title(loc="left").splitlines(), key=len)) < 80


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (5, 2), (6, 2), (8, 2), (9, 3), (10, 2), (15, 3)]
)
def test_panels_are_labelled_at_the_edges_and_none_stands_alone_if_it_can_be(
    tmp_path, count, columns
):
    with panels([str(i) for i in range(count)], tmp_path / "a.svg", x="here", y="there") as drawn:
        pass
    places = [axes.get_subplotspec() for axes in drawn]
    assert {place.get_gridspec().ncols for place in places} == {columns}
    for axes, place in zip(drawn, places, strict=True):
        below = any(
            other.colspan.start == place.colspan.start and other.rowspan.start > place.rowspan.start
            for other in places
        )
        assert axes.get_xlabel() == ("" if below else "here")
        assert axes.get_ylabel() == ("there" if place.is_first_col() else "")
