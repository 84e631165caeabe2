"""Your own images as tasks: a folder of tasks, each a folder of classes.

    root/<task>/<class>/*.png                  a fifth of every class becomes the test set
    root/{train,test}/<task>/<class>/*.png     training and test set are given

Reads PNG, JPEG and WebP. Hidden files and files that are not images are ignored; a warning reports
images in other formats. Needs Pillow, from the ``data`` extra.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsehyper._util.checks import LARGEST_SIDE, check_integer
from sparsehyper.lab.data.images import channels_first, decode, in_threads, read_header
from sparsehyper.lab.data.source import Images, Source, Task
from sparsehyper.lab.data.splits import digests, hold_out

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Suffixes of image formats that are not read; a warning reports such files.
_OTHER_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".cr2", ".dcm", ".dib", ".dng", ".gif", ".heic", ".heif", ".ico"),
    *(".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".mpo", ".nef", ".pbm", ".pcx", ".pgm", ".pnm"),
    *(".ppm", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff"),
)
TEST_FRACTION = 0.2
_LAYOUT = "<task>/<class>/*.png, with or without train/ and test/ above"
_TRAINING_LAYOUT = f"{_LAYOUT}; put <class>/*.png into a folder of the task's name"
_TASKS_LAYOUT = f"{_LAYOUT}; for <class>/*.png give the `task`"
_ONE_TASK_LAYOUT = "<class>/*.png, with or without train/ and test/ above"
FORMATS_READ = "PNG, JPEG and WebP are read"

T = TypeVar("T")
# task → class → image files
_Tree = dict[str, dict[str, list[Path]]]


def load_folder(
    root: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Source:
    """Read a source from a folder, with the tasks that the folder defines.

    Images become grey if all files are grey, else RGB. Transparency is replaced by white, and the
    EXIF orientation is applied. Tasks and classes are sorted by name, with numbers by value.

    Args:
        root: the folder.
        image_size: (height, width), or one number for squares, to resize to; None if all images
            have the same size.
        seed: seed of the choice of test images where ``root`` has no ``train/`` and ``test/``; at
            least 0.

    Returns:
        A source whose classes are named ``task/class``, for ``make_tasks(source)``.

    Raises:
        FileNotFoundError: ``root`` is not a directory.
        ValueError: the layout is not as above, a task has no images or only one class, an image
            cannot be read, or sizes differ and ``image_size`` is None.
        ImportError: the ``data`` extra is not installed.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for file in ("shoes/boot/1", "shoes/boot/2", "shoes/clog/1", "shoes/clog/2"):
    ...         path = Path(root, f"{file}.png")
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         Image.effect_noise((8, 8), 50).save(path)
    ...     load_folder(root).classes
    ('shoes/boot', 'shoes/clog')
    """
    size = _check_size(image_size)
    check_integer("seed", seed, minimum=0)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`root` is not a directory: {root}")
    trees = [_scan(part, _TRAINING_LAYOUT) for part in _parts(root)]
    _check_trees(trees, root, _TRAINING_LAYOUT)
    ids = {pair: i for i, pair in enumerate((t, c) for t, names in trees[0].items() for c in names)}
    tasks = tuple(
        Task(task, tuple(ids[task, name] for name in names), tuple(names))
        for task, names in trees[0].items()
    )
    parts = _read(trees, ids, size)
    if len(parts) == 1:
        pixels, labels = parts[0]
        held = torch.from_numpy(hold_out(digests(pixels), labels.numpy(), TEST_FRACTION, seed))
        if not held.any():
            raise ValueError(f"no class in {root} has two different images, to test on one of them")
        parts = [Images(pixels[~held], labels[~held]), Images(pixels[held], labels[held])]
    train, test = parts
    return Source(root.resolve().name, tuple(map("/".join, ids)), train, test, tasks)


class LabelledTask(NamedTuple):
    """The images of one new task; labels are indices into ``classes``."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images | None  # None if the folder has no test/


def load_new_tasks(
    root: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    task: str | None = None,
    resize: bool = False,
) -> list[LabelledTask]:
    """Read new tasks for a trained model from a folder; no images are held out.

    Args:
        root: ``root/<task>/<class>/*.png`` or, with ``task``, ``root/<class>/*.png``; in either
            case with or without ``train/`` and ``test/`` above.
        image_shape: channels, height, width that the model takes.
        task: name of the one task that ``root`` holds.
        resize: resize images to that height and width; otherwise they must have it.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `load_folder`; also for colour images and a
            grey model.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`root` is not a directory: {root}")
    layout = _TASKS_LAYOUT if task is None else _ONE_TASK_LAYOUT
    trees = [_scan(part, layout, task) for part in _parts(root)]
    _check_trees(trees, root, layout)
    found = []
    for name, classes in trees[0].items():
        parts = [
            [(path, i) for i, c in enumerate(classes) for path in tree[name].get(c, [])]
            for tree in trees
        ]
        read = [
            Images(
                load_images([path for path, _ in part], image_shape, resize=resize),
                torch.tensor([label for _, label in part]),
            )
            for part in parts
        ]
        found.append(LabelledTask(name, tuple(classes), read[0], read[1] if read[1:] else None))
    return found


def load_images(
    paths: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool = False
) -> Tensor:
    """Read images for a trained model, uint8 ``[n, *image_shape]``.

    Args:
        paths: image files.
        image_shape: channels, height, width that the model takes.
        resize: resize images to that height and width; otherwise they must have it.

    Raises:
        ValueError: an image cannot be read, is in colour for a grey model, or has another size.
    """
    channels, *size = image_shape
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, the model takes {channels}")
    for path in paths:
        header = _readable(read_header, path)
        if channels == 1 and not header.grey:
            raise ValueError(
                f"image {path} is in colour, the model takes grey images; convert it to grey"
            )
        if not resize and list(header.size) != size:
            raise ValueError(
                f"image {path} is {header.size[0]} × {header.size[1]} (height × width), the model "
                f"takes {size[0]} × {size[1]}; use `resize`"
            )
    read = partial(decode, grey=channels == 1, size=(size[0], size[1]))
    arrays = in_threads(lambda path: _readable(read, path), paths)
    return torch.from_numpy(channels_first(np.stack(arrays)))


def find_images(place: str | os.PathLike[str]) -> list[Path]:
    """Find the images that a file, a folder or a glob names.

    Folders are searched recursively, without hidden files. Each folder is visited once, since links
    may form a cycle. A file named directly is taken whatever its suffix.

    Raises:
        FileNotFoundError: there are none.
    """
    place = os.fspath(place)
    matches = [Path(place)] if os.path.lexists(place) else sorted(_matches(place))
    found: list[Path] = []
    others: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for match in matches:
        if match.is_dir():
            files = [path for path in _walk(match, seen) if not path.is_dir()]
            found += filter(_is_image, files)
            others += filter(_is_other_format, files)
        else:
            found.append(match)
    _warn_ignored(others)
    if not found:
        raise FileNotFoundError(
            f"no image at {place!r}; give files, folders or globs; {FORMATS_READ}"
        )
    return found


def _matches(pattern: str) -> Iterator[Path]:
    """Paths that match a glob, each once; ``**`` is any folder below."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))
        return
    at = parts.index("**")
    for start in _matches(str(Path(*parts[:at]))) if at else [Path()]:
        for folder in _walk(start, set()):
            if folder.is_dir():
                yield from _matches(str(Path(glob.escape(str(folder)), *parts[at + 1 :])))


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and everything visible below it, in order, except folders in ``seen``."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(_visible(path))
        yield path


def _parts(root: Path) -> list[Path]:
    """``[root]``, or its ``train/`` and ``test/``."""
    given = {path.name: path for path in _visible(root) if path.is_dir()}
    if not {"train", "test"} & given.keys():
        if sorted(name.casefold() for name in given) == ["test", "train"]:
            raise ValueError(
                f"{root} has {' and '.join(f'{name}/' for name in given)}; name them train/ and "
                "test/, in lower case, if they are the parts of the data"
            )
        return [root]
    if given.keys() != {"train", "test"}:
        raise ValueError(
            f"{root} must have train/ and test/ and no other folder, or neither of them; got "
            f"{', '.join(f'{name}/' for name in given)}"
        )
    return [given["train"], given["test"]]


def _scan(part: Path, layout: str, task: str | None = None) -> _Tree:
    """The tasks in a folder, or the one ``task`` whose classes it holds."""
    others: list[Path] = []
    if task is not None:
        tree = {task: _classes(part, layout, others)}
    else:
        folders = _folders(part, layout, others)
        tree = {folder.name: _classes(folder, layout, others) for folder in folders}
    _warn_ignored(others)
    return tree


def _classes(task: Path, layout: str, others: list[Path]) -> dict[str, list[Path]]:
    classes = {}
    for folder in _folders(task, layout, others):
        files = _visible(folder)
        for path in files:
            if path.is_dir():
                raise ValueError(f"folder {path} is one level too deep; expected {layout}")
        classes[folder.name] = [path for path in files if _is_image(path)]
        others += filter(_is_other_format, files)
    return classes


def _folders(parent: Path, layout: str, others: list[Path]) -> list[Path]:
    """The subfolders of a folder; images of other formats beside them are added to ``others``."""
    folders = []
    for path in _visible(parent):
        if path.is_dir():
            _check_name(path)
            folders.append(path)
        elif _is_image(path):
            raise ValueError(f"image {path} is not in a class folder; expected {layout}")
        elif _is_other_format(path):
            others.append(path)
    return folders


def _visible(parent: Path) -> list[Path]:
    return sorted((p for p in parent.iterdir() if not p.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
    pieces = re.split(r"([0-9]+)", path.name)
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], path.name


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _is_other_format(path: Path) -> bool:
    return path.suffix.lower() in _OTHER_SUFFIXES


def _warn_ignored(others: list[Path]) -> None:
    if others:
        warnings.warn(
            f"images in other formats are ignored: {others[0]}"
            f"{f' and {len(others) - 1:,} more' if others[1:] else ''}; {FORMATS_READ}",
            stacklevel=2,
        )


def _check_name(folder: Path) -> None:
    """Raise ``ValueError`` unless a folder's name, that of a task or class, is valid text."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"folder {folder} is not named in UTF-8, as a task or class must be; rename it"
        ) from None


def _check_trees(trees: list[_Tree], root: Path, layout: str) -> None:
    train = trees[0]
    if not train:
        raise ValueError(f"{root} has no tasks; expected {layout}")
    for task, names in train.items():
        if not any(names.values()):
            raise ValueError(
                f"task {task!r} in {root} has no images; expected {layout}; {FORMATS_READ}"
            )
        if len(names) == 1:
            raise ValueError(
                f"task {task!r} in {root} has one class, {next(iter(names))!r}; "
                f"a task needs at least 2"
            )
        for name, files in names.items():
            if not files:
                raise ValueError(
                    f"class {name!r} of task {task!r} in {root} has no images; {FORMATS_READ}"
                )
    if len(trees) == 1:
        return
    for task in {**train, **trees[1]}:
        if task not in train or not any(trees[1].get(task, {}).values()):
            lacking = "test" if task in train else "train"
            raise ValueError(
                f"task {task!r} has no images in {root / lacking}; every task needs some in train/ "
                f"and in test/; {FORMATS_READ}"
            )
        for name in trees[1][task]:
            if name not in train[task]:
                raise ValueError(
                    f"class {name!r} of task {task!r} is in {root / 'test'} and not in "
                    f"{root / 'train'}"
                )


def _read(
    trees: list[_Tree], ids: dict[tuple[str, str], int], size: tuple[int, int] | None
) -> list[Images]:
    files = [
        (part, path, ids[task, name])
        for part, tree in enumerate(trees)
        for task, names in tree.items()
        for name, paths in names.items()
        for path in paths
    ]
    paths = [path for _, path, _ in files]
    headers = [_readable(read_header, path) for path in paths]
    sizes = Counter(header.size for header in headers)
    if size is None and len(sizes) > 1:
        seen = ", ".join(f"{h}×{w} ({n})" for (h, w), n in sizes.most_common(5))
        raise ValueError(
            f"images must be of one size (height × width), got {len(sizes)}: {seen}"
            f"{', …' if len(sizes) > 5 else ''}; give an `image_size` to resize them to"
        )
    grey = all(header.grey for header in headers)
    arrays = in_threads(lambda path: _readable(partial(decode, grey=grey, size=size), path), paths)
    pixels = torch.from_numpy(channels_first(np.stack(arrays)))
    part = torch.tensor([part for part, _, _ in files])
    labels = torch.tensor([label for _, _, label in files])
    return [Images(pixels[part == i], labels[part == i]) for i in range(len(trees))]


def _readable(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except OSError as error:
        raise ValueError(f"cannot read image {path}: {error}") from error


def _check_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`image_size` must be a number or (height, width), got {image_size!r}")
    for side in size:
        check_integer("image_size", side, minimum=1, maximum=LARGEST_SIDE)
    return size[0], size[1]
