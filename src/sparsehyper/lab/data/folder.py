"""Your own images as tasks: a folder of tasks, each a folder of classes.

    root/<task>/<class>/*.png                  a fifth of every class becomes the test set
    root/{train,test}/<task>/<class>/*.png     training and test set are given
    root/{train,val,test}/<task>/<class>/*.png and the images to validate on

The images are read as `image_files` describes.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sparsehyper._util.checks import LARGEST_SIDE, check_integer
from sparsehyper.lab.data.image_files import (
    FORMATS_READ,
    decode_files,
    header_of,
    is_image,
    is_other_format,
    load_images,
    visible,
    warn_ignored,
)
from sparsehyper.lab.data.source import Images, Source, Task
from sparsehyper.lab.data.splits import digests, hold_out

TEST_FRACTION = 0.2
_PARTS = ("train", "test", "val")
_LAYOUT = "<task>/<class>/*.png, with or without train/ and test/ above"
_TRAINING_LAYOUT = f"{_LAYOUT}; put <class>/*.png into a folder of the task's name"
_TASKS_LAYOUT = f"{_TRAINING_LAYOUT} (`adapt --task NAME` takes it as it is)"
_ONE_TASK_LAYOUT = "<class>/*.png, with or without train/ and test/ above"

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
    classes = tuple(map("/".join, ids))
    return Source(root.resolve().name, classes, parts[0], parts[1], tasks, *parts[2:])


class LabelledTask(NamedTuple):
    """The images of one new task; labels are indices into ``classes``."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images | None = None  # None if the folder has no test/
    val: Images | None = None  # None if the folder has no val/

    @property
    def examples(self) -> Images:
        """All images but those of the test, to learn the task from."""
        if self.val is None:
            return self.train
        return Images(*map(torch.cat, zip(self.train, self.val, strict=True)))


def load_new_tasks(
    root: str | os.PathLike[str],
    image_shape: tuple[int, ...],
    *,
    task: str | None = None,
    resize: bool = False,
) -> list[LabelledTask]:
    """Read new tasks for a trained model from a folder; no images are held out.

    Args:
        root: ``root/<task>/<class>/*.png`` or, with ``task``, ``root/<class>/*.png``; in either
            case with or without ``train/`` and ``test/`` above, and ``val/``.
        image_shape: channels, height, width that the model takes.
        task: name of the one task that ``root`` holds.
        resize: resize images to that height and width; otherwise they must have it.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `load_folder`; also for colour images and a
            grey model.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of images at {root}")
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
        found.append(_without_tested(LabelledTask(name, tuple(classes), *read)))
    return found


def _without_tested(task: LabelledTask) -> LabelledTask:
    """The task without the images to learn from that are among its test images too."""
    if task.test is None:
        return task
    tested = digests(task.test.pixels)
    kept: list[Images | None] = []
    dropped = 0
    for images in (task.train, task.val):
        if images is None:
            kept.append(None)
            continue
        own = torch.from_numpy(~np.isin(digests(images.pixels), tested))
        dropped += int((~own).sum())
        kept.append(Images(images.pixels[own], images.labels[own]))
    train, val = kept
    assert train is not None
    if lacking := set(range(len(task.classes))) - set(train.labels.tolist()):
        raise ValueError(
            f"class {task.classes[min(lacking)]!r} of task {task.name!r} has no image to learn "
            "from that is not among its test images; give it others"
        )
    if dropped:
        warnings.warn(
            f"task {task.name!r} is learned without {dropped} images that are among its test "
            "images too",
            stacklevel=4,
        )
    return task._replace(train=train, val=val)


def _parts(root: Path) -> list[Path]:
    """``[root]``, or its ``train/``, ``test/`` and, if there is one, ``val/``."""
    given = {path.name: path for path in visible(root) if path.is_dir()}
    if not {"train", "test"} & given.keys():
        if sorted(name.casefold() for name in given) == ["test", "train"]:
            raise ValueError(
                f"{root} has {' and '.join(f'{name}/' for name in given)}; name them train/ and "
                "test/, in lower case, if they are the parts of the data"
            )
        return [root]
    if not {"train", "test"} <= given.keys() <= set(_PARTS):
        raise ValueError(
            f"{root} must have train/ and test/, maybe val/, and no other folder, or none of them; "
            f"got {', '.join(f'{name}/' for name in given)}"
        )
    return [given[part] for part in _PARTS if part in given]


def _scan(part: Path, layout: str, task: str | None = None) -> _Tree:
    """The tasks in a folder, or the one ``task`` whose classes it holds."""
    others: list[Path] = []
    if task is not None:
        tree = {task: _classes(part, layout, others)}
    else:
        folders = _folders(part, layout, others)
        tree = {folder.name: _classes(folder, layout, others) for folder in folders}
    warn_ignored(others)
    return tree


def _classes(task: Path, layout: str, others: list[Path]) -> dict[str, list[Path]]:
    classes = {}
    for folder in _folders(task, layout, others):
        files = visible(folder)
        for path in files:
            if path.is_dir():
                raise ValueError(f"folder {path} is one level too deep; expected {layout}")
        classes[folder.name] = [path for path in files if is_image(path)]
        others += filter(is_other_format, files)
    return classes


def _folders(parent: Path, layout: str, others: list[Path]) -> list[Path]:
    """The subfolders of a folder; images of other formats beside them are added to ``others``."""
    folders = []
    for path in visible(parent):
        if path.is_dir():
            _check_name(path)
            folders.append(path)
        elif is_image(path):
            raise ValueError(f"image {path} is not in a class folder; expected {layout}")
        elif is_other_format(path):
            others.append(path)
    return folders


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
    for part, tree in zip(_PARTS[1:], trees[1:], strict=False):
        for task in {**train, **tree}:
            if task not in train or not any(tree.get(task, {}).values()):
                lacking = part if task in train else "train"
                raise ValueError(
                    f"task {task!r} has no images in {root / lacking}; every task needs some in "
                    f"train/ and in {part}/; {FORMATS_READ}"
                )
            for name in tree[task]:
                if name not in train[task]:
                    raise ValueError(
                        f"class {name!r} of task {task!r} is in {root / part} and not in "
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
    headers = [header_of(path) for path in paths]
    sizes = Counter(header.size for header in headers)
    if size is None and len(sizes) > 1:
        seen = ", ".join(f"{h}×{w} ({n})" for (h, w), n in sizes.most_common(5))
        raise ValueError(
            f"images must be of one size (height × width), got {len(sizes)}: {seen}"
            f"{', …' if len(sizes) > 5 else ''}; make them so, or train with an "
            "`image_size` to resize them to"
        )
    pixels = decode_files(paths, grey=all(header.grey for header in headers), size=size)
    part = torch.tensor([part for part, _, _ in files])
    labels = torch.tensor([label for _, _, label in files])
    return [Images(pixels[part == i], labels[part == i]) for i in range(len(trees))]


def _check_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`image_size` must be a number or (height, width), got {image_size!r}")
    for side in size:
        check_integer("image_size", side, minimum=1, maximum=LARGEST_SIDE)
    return size[0], size[1]
