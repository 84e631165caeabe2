"""Tables and pictures of the results of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from sparsehyper.lab import plots
from sparsehyper.lab.studies.pages import Table, as_markdown

# Colour and marker of each line.
_STYLES = (
    *(
        (plots.VERMILION, "o"),
        (plots.ORANGE, "P"),
        (plots.PURPLE, "v"),
        (plots.BLUE, "s"),
        (plots.GREEN, "^"),
        (plots.DARK, "D"),
    ),
    (plots.SKY, "X"),
)


def tables(group: str, results: Mapping[str, Any]) -> list[Table]:
    """The tables of one group of results.

    Args:
        group: a name within ``results["groups"]``.
        results: what `sparsehyper.lab.bench.bench` returns.
    """
    found = results["groups"][group]
    if results["settings"].get("device") == "cuda":
        return _gpu(group, found)
    return _TABLES[group](found)


def markdown(results: Mapping[str, Any]) -> str:
    """All measurements as a page of Markdown without a heading."""
    machine, settings = results["machine"], results["settings"]
    n_in, n_out, fan_in = settings["sizes"]["layer"]
    head = (
        f"{results['date']}; "
        + (f"{machine['accelerator']}; " if settings.get("device") == "cuda" else "")
        + f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, kernels {'built' if machine['kernels'] else 'not built'}, "
        f"{_gigabytes(machine['memory'])} GB; "
        f"Python {machine['python']}, PyTorch {machine['torch']}; "
        f"{settings['rounds']} rounds, seed {settings['seed']}"
        + "".join(f"; {name}={value}" for name, value in machine["environment"].items())
        + f". The sparse layer has {n_in:,} inputs, {n_out:,} outputs and fan-in {fan_in}.\n"
    )
    found = [as_markdown(table) for group in results["groups"] for table in tables(group, results)]
    return "\n".join([head, *found])


def draw_time(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Time of a generator's forward and backward pass against N, on log axes, as a PNG.

    There is a line for each method, and one for the least time that moving the bytes of the default
    generator's layers takes.

    Args:
        results: what `sparsehyper.lab.bench.bench` returns, with the group ``generators``.
        path: picture to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = results["groups"]["generators"]["rows"]
    lines = _lines(rows, lambda row: row["ms"]["median"])
    floor = [
        (row["numel"], row["floor_ns"]["median"] * row["numel"] / 1e6)
        for row in rows
        if row["method"] == "sparse"
    ]
    _draw(lines, ("bandwidth floor of sparse", floor), "forward and backward, ms", path)


def draw_memory(results: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Peak memory of a generator's forward and backward pass against N; as `draw_time`.

    The reference line is the memory of the N generated numbers alone.
    """
    rows = results["groups"]["generators"]["rows"]
    lines = _lines(rows, lambda row: row["peak"] and row["peak"] / 1e6)
    alone = [(numel, 4 * numel / 1e6) for numel in sorted({row["numel"] for row in rows})]
    _draw(lines, ("generated parameters alone", alone), "peak memory, MB", path)


def _layers(found: Mapping[str, Any]) -> list[Table]:
    columns = ["method", "topology", "batch", "ms", "÷ floor", "thesis ÷"]
    return [
        Table(
            f"Sparse layer, {which}",
            columns,
            [
                [row["method"], row["topology"], str(row["batch"]), *_against_floor(row)]
                for row in rows
            ],
            [*_notes(rows), *_skipped(found)],
        )
        for which in dict.fromkeys(row["pass"] for row in found["rows"])
        for rows in [[row for row in found["rows"] if row["pass"] == which]]
    ]


def _generators(found: Mapping[str, Any]) -> list[Table]:
    columns = ["method", "N", "weights ÷ N", "ms", "ns ÷ N", "÷ floor", "thesis ÷", "peak ÷ 4 N"]
    rows = [
        [
            row["method"],
            f"{row['numel']:.0e}",
            _short(row["trainable"] / row["numel"]),
            _short(row["ms"]["median"]),
            _short(row["ns"]["median"]),
            *_against_floor(row)[1:],
            "–" if row["peak"] is None else _short(row["peak"] / (4 * row["numel"])),
        ]
        for row in found["rows"]
    ]
    flat = ", ".join(f"{_short(ratio)} {which}" for which, ratio in found["flatness"].items())
    note = f"The sparse generator's worst ÷ best ns ÷ N: {flat}."
    return [Table("Generators, forward + backward", columns, rows, [note, *_skipped(found)])]


def _adaptation(found: Mapping[str, Any]) -> list[Table]:
    fits = [
        [row["target"], f"{row['numel']:,}", str(row["tasks"]), str(row["images"]), *_timed(row)]
        for row in found["fits"]
    ]
    models = [
        [row["target"], row["method"], _spread(row["ms"]), _short(row["over"]["median"])]
        for row in found["models"]
    ]
    return [
        Table(
            "Fitting the embeddings of new tasks",
            ["target", "N", "tasks", "images of each", "ms", "÷ one task"],
            fits,
        ),
        Table(
            "A model of a task",
            ["target", "method", "ms", "÷ loading"],
            models,
            ["safetensors: the same state dict, from a file into a module that exists."],
        ),
    ]


def _steps(found: Mapping[str, Any]) -> list[Table]:
    single = [
        [row["method"], f"{row['numel']:,}", str(row["images"]), *_timed(row)]
        for row in found["single"]
    ]
    mixed = [
        [row["target"], row["method"], f"{row['tasks']} × {row['images']}", *_timed(row)]
        for row in found["mixed"]
    ]
    start = [[row["part"], _spread(row["ms"])] for row in found["start"]]
    return [
        Table(
            "Training step of a ResNet, one task",
            ["method", "N", "images", "ms", "÷ plain target"],
            single,
        ),
        Table(
            "Training step of a mixed batch",
            ["target", "method", "tasks × images", "ms", "÷ loop"],
            mixed,
        ),
        Table("A new process", ["part", "ms"], start),
    ]


def _scale(found: Mapping[str, Any]) -> list[Table]:
    case = ["target", "generator", "update"]
    names = [[row["target"], row["method"], row["optimizer"]] for row in found["rows"]]
    seconds = [
        [_short(row[f"{part}_seconds"]) for part in ("build", "generate", "step")]
        + [_short(row["over_plain"])]
        for row in found["rows"]
    ]
    parts = ("build_peak", "peak", "weights", "gradients", "state", "activations")
    bytes_ = [
        [_gigabytes(row[part]) for part in parts] + [f"{row['x']:.2f}"] for row in found["rows"]
    ]
    note = (
        "GB of 10⁹ bytes. Acts are the plain target's activations; x is what the peak holds "
        "besides the parts listed, in vectors of N numbers."
    )
    return [
        Table(
            "Large targets, time",
            [*case, "build s", "generate s", "step s", "÷ plain"],
            [a + b for a, b in zip(names, seconds, strict=True)],
            ["Steps are compared across processes, not turn by turn: a rough ratio."],
        ),
        Table(
            "Large targets, memory of a step",
            [*case, "build", "peak", "weights", "grads", "state", "acts", "x"],
            [a + b for a, b in zip(names, bytes_, strict=True)],
            [note, *_skipped(found)],
        ),
    ]


def _peers(found: Mapping[str, Any]) -> list[Table]:
    peers = list(dict.fromkeys(peer for row in found["rows"] for peer in row["over"]))
    rows = [
        [
            row["method"],
            f"{row['numel']:.0e}",
            _short(row["trainable"] / row["numel"]),
            _spread(row["ms"]),
            *(
                _short(row["over"][peer]["median"]) if peer in row["over"] else "–"
                for peer in peers
            ),
        ]
        for row in found["rows"]
    ]
    columns = ["library", "N", "weights ÷ N", "ms", *(f"÷ {peer}" for peer in peers)]
    return [Table("Other libraries, forward + backward", columns, rows, _skipped(found))]


def _gpu(group: str, found: Mapping[str, Any]) -> list[Table]:
    """The table of a group measured on a GPU."""
    speed = found["copy"]["bytes_per_second"]["median"] / 1e12
    notes = [f"A copy reads and writes {speed:.2f} TB/s.", *_skipped(found)]
    rows = found["rows"]
    if group == "checks":
        wrong = [row for row in rows if not row["right"]]
        notes.insert(0, f"{len(rows) - len(wrong)} of {len(rows)} results are the CPU's.")
        notes += [f"{row['check']}: {row['reason']}" for row in wrong if "reason" in row]
        cells = [
            [row["check"], _or_dash(row["error"], "{:.1e}"), f"{row['limit']:g}"]
            for row in sorted(rows, key=lambda row: row["right"])
        ]
        return [Table(_GPU_TITLES[group], ["check", "relative error", "at most"], cells, notes)]
    others = list(dict.fromkeys(other for row in rows for other in row["over"]))
    more = {name: unit for name, unit in _GPU_COLUMNS.items() if any(name in row for row in rows)}
    cells = [
        [
            row["work"],
            str(row["batch"]),
            row["method"],
            _spread(row["ms"]),
            *(_or_dash(row["over"].get(other, {}).get("median"), "{:.2f}") for other in others),
            *(_or_dash(row.get(name), "{:.3g}", unit) for name, (_, unit) in more.items()),
        ]
        for row in rows
    ]
    columns = ["work", "batch", "method", "ms", *(f"÷ {other}" for other in others)]
    return [
        Table(_GPU_TITLES[group], columns + [title for title, _ in more.values()], cells, notes)
    ]


_GPU_TITLES = {
    "checks": "A GPU against the CPU",
    "layers": "A sparse layer, forward + backward",
    "generators": "Generators, forward + backward",
    "steps": "Training step, one task",
    "mixed": "Training step of a mixed batch",
    "compiled": "Compiled training step",
}
# Titles and units of values that only some groups have.
_GPU_COLUMNS = {
    "peak": ("peak GB", 1e9),
    "build_seconds": ("build s", 1.0),
    "graphs": ("graphs", 1.0),
    "compile_seconds": ("compile s", 1.0),
}


_TABLES: dict[str, Callable[[Mapping[str, Any]], list[Table]]] = {
    "layers": _layers,
    "generators": _generators,
    "steps": _steps,
    "adaptation": _adaptation,
    "scale": _scale,
    "peers": _peers,
}


def _against_floor(row: Mapping[str, Any]) -> list[str]:
    over = row["over"]
    return [
        _spread(row["ms"]),
        _short(over["floor"]["median"]) if "floor" in over else "–",
        _short(1 / over["thesis"]["median"]) if "thesis" in over else "–",
    ]


def _timed(row: Mapping[str, Any]) -> list[str]:
    return [_spread(row["ms"]), f"{row['over']['median']:.3f}"]


def _notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(f"{row['method']}: {row['note']}." for row in rows if row["note"]))


def _skipped(found: Mapping[str, Any]) -> list[str]:
    return [
        f"Left out: {', '.join(str(part) for part in list(case.values())[:-1])}: {case['reason']}."
        for case in found["skipped"]
    ]


def _or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    return "–" if value is None else form.format(value / unit)


def _spread(values: Mapping[str, float]) -> str:
    return f"{_short(values['median'])} ({_short(values['low'])}–{_short(values['high'])})"


def _short(value: float) -> str:
    """A number with three significant digits, or rounded to an integer from 100 on.

    >>> [_short(value) for value in (0.01234, 1.5, 12.34, 123.4, 12345.6)]
    ['0.0123', '1.50', '12.3', '123', '12346']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _gigabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e9:.2f}"


def _lines(
    rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        found = value(row)
        if found is not None and found > 0:  # a peak too small to measure may be negative
            lines.setdefault(row["method"], []).append((row["numel"], found))
    return lines


def _draw(
    lines: Mapping[str, Sequence[tuple[int, float]]],
    reference: tuple[str, Sequence[tuple[int, float]]],
    label: str,
    path: str | PathLike[str],
) -> None:
    figure = plots.new_figure((7, 4.2))
    axes = figure.add_subplot(xscale="log", yscale="log")
    for (name, points), (colour, marker) in zip(lines.items(), _STYLES, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    name, points = reference
    axes.plot(*zip(*points, strict=True), color="black", linestyle="--", linewidth=1, label=name)
    axes.set_xlabel("N, generated parameters", color=plots.GREY)
    axes.set_ylabel(label, color=plots.GREY)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=plots.GREY)
    axes.legend(frameon=False)
    plots.save_figure(figure, path)
