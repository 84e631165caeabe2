"""One hypernetwork for many tasks: many kinds of generators for any PyTorch module."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsehyper._public import *  # noqa: F403

    __version__: str


def __getattr__(name: str) -> Any:
    # Importing PyTorch takes seconds, which the help of the command line must not wait for.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sparsehyper")
    if name == "__all__" or not name.startswith("_"):
        public = importlib.import_module("sparsehyper._public")
        globals().update({known: getattr(public, known) for known in [*public.__all__, "__all__"]})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'sparsehyper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__"), "__version__"})
