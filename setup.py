"""The extension modules; everything else about the package is in pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

GUESTS = Path(__file__).parent / "kvmsim" / "cpu" / "guests"


class BuildGuests(build_py):
    """Guest programs are data, built here, so that a wheel has them. For another processor: CROSS_COMPILE=, or none."""

    def run(self) -> None:
        if subprocess.run(["make", "-s", "-C", GUESTS], check=False).returncode:
            self.announce("kvmsim's guest programs were not built: install gcc, binutils and make for x86-64", 3)
        super().run()


def fuse3(what: str) -> list[str]:
    try:
        return subprocess.check_output(["pkg-config", what, "fuse3"], text=True).split()
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit("memfsd needs libfuse 3 to build: apt-get install gcc pkg-config libfuse3-dev fuse3") from None


setup(
    cmdclass={"build_py": BuildGuests},
    ext_modules=[
        Extension(
            "memfsd.fuse._hook",
            sources=["memfsd/fuse/_hook.c"],
            define_macros=[("_GNU_SOURCE", None), ("_FILE_OFFSET_BITS", "64"), ("FUSE_USE_VERSION", "35")],
            extra_compile_args=[*fuse3("--cflags"), "-Wall", "-Wextra"],
            extra_link_args=fuse3("--libs"),
        ),
        Extension(
            "memfsd.common._ring",
            sources=["memfsd/common/_ring.c"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
        # Needs nothing of unicorn, which calls it: built whether or not the extra is wanted.
        Extension(
            "kvmsim.cpu.x86._fill",
            sources=["kvmsim/cpu/x86/_fill.c", "kvmsim/cpu/x86/_call_site.c"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
    ],
)
