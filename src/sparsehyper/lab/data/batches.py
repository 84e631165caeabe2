"""The training stream: the images of each step, as a pure function of seed, epoch and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from sparsehyper._util.checks import WIDEST, check_choice, check_integer
from sparsehyper._util.devices import to_device
from sparsehyper._util.random import integers, seeded, uniform
from sparsehyper.lab.data.tasks import Batch, TaskSplit
from sparsehyper.lab.data.transforms import affine, crop_and_flip

AUGMENTATIONS = ("crop", "flip", "affine")
# The furthest that "affine" goes from the image as it is.
_TURN = 15.0  # degrees
_SIZE = 0.2  # change of scale: factors from 0.8 to 1.2
_SHIFT = 0.1  # of each side


class Batches:
    """Endless batches of one task or several.

    In each epoch the images of every task are shuffled and cut into pieces of
    ``batch_size // tasks_per_batch`` images. The last piece is filled up from the start of the same
    shuffle. The pieces of all tasks are then shuffled, and each step takes the next
    ``tasks_per_batch`` of them. So an epoch shows every image, and all batches have the same size.

    Args:
        split: the images, usually ``tasks.train``.
        batch_size: number of images per step, over all processes.
        tasks_per_batch: number of pieces per batch; 1 for batches of one task. Two pieces of a
            batch may belong to the same task.
        seed: seed of all shuffles and augmentations, at least 0.
        augment: any of ``"crop"``, a window of the same size moved by up to an eighth of each side,
            with the image continued by reflection; ``"flip"``, which mirrors half of the images
            left to right; and ``"affine"``, which shifts each image by up to a tenth of each side,
            turns it by up to 15 degrees and scales it by 0.8 to 1.2, with its edges continued.
        shard: (rank, processes): of every batch only rows rank, rank + processes, … .

    Attributes:
        steps_per_epoch: number of steps after which every image has been seen.

    Raises:
        ValueError: ``batch_size`` is not a multiple of ``tasks_per_batch`` or of the processes,
            there are fewer tasks than ``tasks_per_batch``, or ``augment`` or ``shard`` is invalid.

    >>> from sparsehyper.lab.data import Split, load_source, make_tasks
    >>> tasks = make_tasks(load_source("digits"), Split(2))
    >>> batches = Batches(tasks.train, batch_size=20, tasks_per_batch=2, augment=["crop"])
    >>> x, y, task = batches.batch(epoch=3, step=0)
    >>> x.shape, task.unique().numel() <= 2
    (torch.Size([20, 1, 8, 8]), True)
    """

    steps_per_epoch: int

    def __init__(
        self,
        split: TaskSplit,
        batch_size: int,
        *,
        tasks_per_batch: int = 1,
        seed: int = 0,
        augment: Sequence[str] = (),
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        check_integer("batch_size", batch_size, minimum=1, maximum=WIDEST)
        check_integer("tasks_per_batch", tasks_per_batch, minimum=1)
        check_integer("seed", seed, minimum=0)
        if isinstance(augment, str):
            raise TypeError(f"`augment` must be a sequence of names, got {augment!r}")
        for name in augment:
            check_choice("augment", name, AUGMENTATIONS)
        rank, processes = shard
        check_integer("shard", processes, minimum=1, context=" processes")
        check_integer("shard", rank, minimum=0, context=" as the rank")
        if rank >= processes:
            raise ValueError(f"`shard` must have a rank below {processes} processes, got {rank}")
        if tasks_per_batch > len(split.counts):
            raise ValueError(
                f"`tasks_per_batch` must be at most the {len(split.counts)} tasks there are, got "
                f"{tasks_per_batch}"
            )
        for what, divisor in (
            ("`tasks_per_batch`", tasks_per_batch),
            ("the processes of `shard`", processes),
        ):
            if batch_size % divisor:
                raise ValueError(
                    f"`batch_size` must be a multiple of {what}, {divisor}, got {batch_size}"
                )
        if 0 in split.counts:
            raise ValueError(f"`split` has no images of task {split.counts.index(0)}")
        self._split = split
        self._batch_size = batch_size
        self._tasks_per_batch = tasks_per_batch
        self._seed = seed
        self._augment = frozenset(augment)
        self._shard = slice(rank, None, processes)
        self._piece = batch_size // tasks_per_batch
        pieces = sum(-(-count // self._piece) for count in split.counts)
        self.steps_per_epoch = -(-pieces // tasks_per_batch)
        self._order_of = -1
        self._order: tuple[Tensor, Tensor]

    def batch(self, epoch: int, step: int) -> Batch:
        """Make one batch; it does not depend on which batches were made before.

        Args:
            epoch: number of the epoch, at least 0.
            step: step within the epoch, in ``0..steps_per_epoch - 1``.

        Returns:
            ``batch_size`` images, or this process's share of them, piece by piece.

        Raises:
            ValueError: ``epoch`` or ``step`` is out of range.
        """
        check_integer("epoch", epoch, minimum=0)
        check_integer("step", step, minimum=0)
        if step >= self.steps_per_epoch:
            raise ValueError(f"`step` must be in 0..{self.steps_per_epoch - 1}, got {step}")
        if epoch != self._order_of:
            self._order, self._order_of = self._shuffle(epoch), epoch
        pieces = slice(step * self._tasks_per_batch, (step + 1) * self._tasks_per_batch)
        task, index = (part[pieces] for part in self._order)
        task = task.repeat_interleave(self._piece)[self._shard]
        index = index.flatten()[self._shard]
        return self._split.batch(task, index, self._augmentation(epoch, step))

    def _shuffle(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch's pieces in order: the task of each, and the indices of its images."""
        rng = _rng(self._seed, epoch, 0)
        cut = []
        for count in self._split.counts:
            order = torch.randperm(count, generator=rng)
            places = torch.arange(-(-count // self._piece) * self._piece) % count
            cut.append(order[places].view(-1, self._piece))
        index = torch.cat(cut)
        task = torch.arange(len(cut)).repeat_interleave(torch.tensor([len(c) for c in cut]))
        order = torch.randperm(len(index), generator=rng)
        # The last step is filled up with the first pieces.
        order = order[torch.arange(self.steps_per_epoch * self._tasks_per_batch) % len(order)]
        return task[order], index[order]

    def _augmentation(self, epoch: int, step: int) -> Callable[[Tensor], Tensor] | None:
        if not self._augment:
            return None
        # Draw for the whole batch, so that several processes see the same batch as one would.
        rng, size = _rng(self._seed, epoch, 1 + step), [self._batch_size]
        down = right = flip = None
        if "crop" in self._augment:
            _, height, width = self._split.image_shape
            down = _moves(height, size, rng)[self._shard]
            right = _moves(width, size, rng)[self._shard]
        if "flip" in self._augment:
            flip = integers(2, size, rng)[self._shard].bool()
        changes: list[Callable[[Tensor], Tensor]] = []
        if down is not None or flip is not None:
            changes.append(partial(_crop_and_flip, down, right, flip))
        if "affine" in self._augment:
            turn = _within(_TURN, size, rng)[self._shard]
            factor = 1 + _within(_SIZE, size, rng)[self._shard]
            shift = _within(_SHIFT, [*size, 2], rng)[self._shard]
            changes.append(partial(affine, turn=turn, size=factor, shift=shift))
        return lambda x: reduce(lambda images, change: change(images), changes, x)


def _crop_and_flip(
    down: Tensor | None, right: Tensor | None, flip: Tensor | None, x: Tensor
) -> Tensor:
    """`crop_and_flip` on the images' device, with what was drawn on the CPU in one copy."""
    drawn = [each for each in (down, right, flip) if each is not None]
    there = iter(to_device(torch.stack([each.long() for each in drawn]), x.device))
    down, right, flip = (None if each is None else next(there) for each in (down, right, flip))
    return crop_and_flip(x, down, right, None if flip is None else flip.bool())


def _rng(*key: int) -> torch.Generator:
    return seeded(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def _moves(side: int, size: list[int], rng: torch.Generator) -> Tensor:
    reach = min(max(1, side // 8), side - 1)
    return integers(2 * reach + 1, size, rng) - reach


def _within(most: float, shape: list[int], rng: torch.Generator) -> Tensor:
    """Float32, uniform in [-most, most]."""
    return uniform(shape, most**2 / 3, rng)
