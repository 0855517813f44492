"""The extension module memfsd.fuse._hook; everything else about the package is in pyproject.toml."""

import subprocess

from setuptools import Extension, setup


def fuse3(what: str) -> list[str]:
    try:
        return subprocess.check_output(["pkg-config", what, "fuse3"], text=True).split()
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit("memfsd needs libfuse 3 to build: apt-get install gcc pkg-config libfuse3-dev fuse3") from None


setup(
    ext_modules=[
        Extension(
            "memfsd.fuse._hook",
            sources=["memfsd/fuse/_hook.c"],
            define_macros=[("_GNU_SOURCE", None), ("_FILE_OFFSET_BITS", "64"), ("FUSE_USE_VERSION", "35")],
            extra_compile_args=[*fuse3("--cflags"), "-Wall", "-Wextra"],
            extra_link_args=fuse3("--libs"),
        )
    ]
)
