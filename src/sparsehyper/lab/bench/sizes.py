"""Sizes of the benchmarks: full ones, and tiny ones that only check that everything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of all benchmarks.

    Args:
        copy: bytes of the buffer that is copied to measure the speed of memory.
        layer: inputs, outputs and fan-in of the sparse layer.
        batches: batch sizes for the layer, in embeddings.
        compile: also measure the layer under `torch.compile`.
        generators: numbers of generated parameters.
        largest_slow: largest of these for the thesis's scheme and for indexed topologies.
        images: ``(batch, side)`` of the images in the training steps of the ResNet.
        mixed: ``(tasks, images per task)`` of a mixed batch.
        fitted_images: number of images of each new task whose embedding is fitted.
        together: number of new tasks that are fitted together.
        scale: targets of the scale benchmark, from `sparsehyper.lab.bench.targets.LARGE_TARGETS`.
        peers: numbers of generated parameters to compare with other libraries.
        gpu_generators: numbers of generated parameters on a GPU.
        gpu_images: number of images in a step of the MLP, the ResNet and ResNet-18 on a GPU.
        gpu_side: side of ResNet-18's images.
    """

    copy: int = 256 << 20
    layer: tuple[int, int, int] = (2_000_000, 4_000_000, 3)
    batches: tuple[int, ...] = (1, 8)
    compile: bool = True
    generators: tuple[int, ...] = (10**5, 10**6, 10**7, 10**8, 2 * 10**8)
    largest_slow: int = 10**7
    images: tuple[int, int] = (50, 32)
    mixed: tuple[int, int] = (10, 10)
    fitted_images: int = 100
    together: int = 100
    scale: tuple[str, ...] = ("resnet18", "vit_b16", "gpt2_small")
    peers: tuple[int, ...] = (10**6, 10**7)
    gpu_generators: tuple[int, ...] = (426_426, 11_689_512, 124_439_808)
    gpu_images: tuple[int, int, int] = (128, 50, 64)
    gpu_side: int = 224


FULL = Sizes()
QUICK = Sizes(
    copy=1 << 20,
    layer=(500, 1000, 3),
    batches=(1, 2),
    compile=False,
    generators=(20_000, 50_000),
    largest_slow=20_000,
    images=(2, 8),
    mixed=(2, 2),
    fitted_images=10,
    together=2,
    scale=("tiny",),
    peers=(20_000,),
    gpu_generators=(20_000,),
    gpu_images=(10, 10, 2),
    gpu_side=32,
)
