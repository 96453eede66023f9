"""The build: the extension, whose C kernel is compiled once per ISA and element type, and a module.

Metadata is in pyproject.toml.  Environment: FASTCE_OPENMP=auto|on|off (on: fail without OpenMP),
CFLAGS (added; -Werror, say).
"""

import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The flag names the same level that dispatch.c asks the CPU for.
ISAS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS = {
        "baseline": ["-march=x86-64"],
        "avx2": ["-march=x86-64-v3"],
        # gcc otherwise stays at 256 bits on AVX-512; tuned for no CPU in particular, its code
        # takes 1.02 to 1.06 times as long, on Zen 4 too
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mtune=icelake-server"],
    }
ELEMS = ["f32", "f64", "f16", "bf16"]

# CFLAGS in the environment replaces Python's own flags, so ours are complete without them.  No
# -ffast-math: it would turn off subnormals for the whole process.  -Wno-psabi: vectors are passed
# between inlined functions only.  -fwrapv: the maths on the bits of NaN may overflow.
FLAGS = ["-O3", "-DNDEBUG", "-g0", "-std=gnu11", "-fvisibility=hidden", "-fno-math-errno",
         "-fno-trapping-math", "-ffp-contract=fast", "-fwrapv", "-fopenmp-simd", "-Wall",
         "-Wextra", "-Wno-psabi"]  # fmt: skip

# Everything the extension is made of: an edited header rebuilds it, and an sdist has them all.
INPUTS = ["setup.py", *sorted(glob("csrc/*"))]


class BuildKernels(build_ext):
    """Compiles csrc/kernel.c per ISA and element type, then the extension around the objects."""

    def build_extension(self, ext):
        # Flags and environment do not show in time stamps, so each build is a whole one.
        self.force = True
        self.parallel = None
        ext.extra_compile_args = FLAGS
        if ext.name == "fastce._kernel":
            self.add_kernels(ext)
        super().build_extension(ext)

    def add_kernels(self, ext):
        openmp = self.openmp_flags()
        ext.extra_compile_args = FLAGS + openmp
        ext.extra_link_args = openmp

        def compile_kernel(isa, elem):
            return self.compiler.compile(
                ["csrc/kernel.c"],
                output_dir=os.path.join(self.build_temp, f"{isa}_{elem}"),
                macros=[("FASTCE_ISA", isa), (f"FASTCE_{elem}", None)],
                extra_postargs=FLAGS + ISAS[isa],
                depends=INPUTS,
            )

        # On all cores: one after the other they take three quarters of a minute.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            variants = [pool.submit(compile_kernel, isa, elem) for isa in ISAS for elem in ELEMS]
        ext.extra_objects = [path for variant in variants for path in variant.result()]

    def openmp_flags(self):
        """["-fopenmp"] if a library with it compiles and links, else [] and a loud warning."""
        wanted = os.environ.get("FASTCE_OPENMP", "auto")
        if wanted not in ("auto", "on", "off"):
            sys.exit(f"FASTCE_OPENMP is {wanted!r}, expected auto, on or off")
        if wanted == "off":
            return []
        flags = ["-fopenmp"]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint probe(void) { return omp_in_parallel(); }\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=flags)
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=flags
                )
            except Exception as error:  # whatever a compiler driver raises, there is no OpenMP
                if wanted == "on":
                    sys.exit(f"FASTCE_OPENMP is on, but the compiler has no OpenMP: {error}")
            else:
                return flags
        line = "*" * 78
        print(
            f"\n{line}\nfastce: this compiler has no OpenMP (-fopenmp); building WITHOUT OPENMP."
            f"\nThreads come from fastce's own pool; FASTCE_THREADING=openmp will be refused."
            f"\n{line}\n",
            file=sys.stderr,
            flush=True,
        )
        return []


setup(
    ext_modules=[
        Extension(
            "fastce._kernel",
            ["fastce/_kernel.pyx", "csrc/dispatch.c", "csrc/parallel.c", "csrc/call.c"],
            include_dirs=["csrc", np.get_include()],
            define_macros=[
                ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
                ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
            ],
            depends=INPUTS,
        ),
        # Plain Python, compiled as it is: the interpreter takes 0.25 microseconds to fill in 16
        # defaults and hand them on, a quarter of a call with 1 x 10 logits.
        Extension("fastce._cross_entropy", ["fastce/_cross_entropy.py"]),
    ],
    cmdclass={"build_ext": BuildKernels},
)
