"""The C kernels: with OpenMP, else without it, else none. Everything else is in pyproject.toml."""

import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

# (compile, link) by kind of compiler.
PLAIN = {"msvc": (["/O2", "/std:c11", "/utf-8"], [])}
OPENMP = {"msvc": (["/openmp"], [])}
if sys.platform == "darwin":  # a second OpenMP beside PyTorch's ends the process there
    OPENMP["unix"] = ([], [])


class BuildKernels(build_ext):
    """Builds an extension with OpenMP, or else without it."""

    def build_extension(self, ext):
        kind = self.compiler.compiler_type
        compile_plain, link_plain = PLAIN.get(kind, (["-O3"], []))
        compile_openmp, link_openmp = OPENMP.get(kind, (["-fopenmp"], ["-fopenmp"]))
        ext.extra_compile_args = compile_plain + compile_openmp
        ext.extra_link_args = link_plain + link_openmp
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, CompileError) as error:
            self.warn(f"no OpenMP, so the kernels will use one thread: {error}")
            ext.extra_compile_args, ext.extra_link_args = compile_plain, link_plain
            super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "sparsehyper._util._kernels",
            ["src/sparsehyper/_util/_kernels.c"],
            py_limited_api=True,
            optional=True,  # without a compiler the package is installed without kernels
        )
    ],
)
