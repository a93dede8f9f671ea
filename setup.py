"""What is compiled when the package is built; everything else about it stands in pyproject.toml.

    walk.c             always, where there is a compiler
    what a call runs   where the package is built to be used (`pip install .`, a wheel, an image): by mypyc, from the
    through            same sources, at two thirds of the CPU a call

An editable install runs those sources themselves, so that what is edited is what runs. So does whoever has no compiler,
or sets UNDERSTUDY_INTERPRETED. Which sources are fit to be compiled, tests/test_compiled.py says.
"""

import os
import sys
from contextlib import chdir
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ON_EVERY_CALLS_WAY = (
    "policies/adaptive.py",
    "policies/balance.py",
    "policies/breaker.py",
    "policies/budget.py",
    "policies/chain.py",
    "policies/deadline.py",
    "policies/limit.py",
    "policies/observe.py",
    "policies/quota.py",
    "policies/retry.py",
    "policies/service.py",
    "policies/usual.py",
    "proxy/http/chunked.py",
    "proxy/http/door.py",
    "proxy/http/exchange.py",
    "proxy/http/forwarding.py",
    "proxy/http/hall.py",
    "proxy/http/heads.py",
    "proxy/http/incoming.py",
    "proxy/http/request_head.py",
    "proxy/http/response_head.py",
    "proxy/http/stepping.py",
    "proxy/http/upstream.py",
    "proxy/http/upstream_stream.py",
    "proxy/tiers/upstream.py",
)
MYPY = (
    "--explicit-package-bases",
    "--namespace-packages",
    "--follow-imports=silent",
    # what is installed beside it must not decide what is made of it
    "--no-site-packages",
    "--ignore-missing-imports",
    # a field that mypy believes to be None, or a flag to be down, because nobody here has touched it since
    "--warn-unreachable",
    "--enable-error-code=redundant-expr",
)


def compiled() -> list[Extension]:
    """The modules on every call's way, by mypyc; none where they are to be interpreted."""
    if "bdist_wheel" not in sys.argv or os.environ.get("UNDERSTUDY_INTERPRETED"):
        return []
    from mypyc.build import mypycify

    names = ROOT / ".names"
    names.mkdir(exist_ok=True)
    if not (names / "understudy").exists():
        (names / "understudy").symlink_to("..")
    sources = [f"understudy/{source}" for source in ON_EVERY_CALLS_WAY]
    # a module's name is its path from here
    with chdir(names):
        into = str(ROOT / "build")
        made = mypycify([*MYPY, *sources], opt_level="2", debug_level="0", group_name="understudy", target_dir=into)
    for extension in made:
        # half a megabyte less in each worker than -O2 with every function to be seen, and as fast
        extension.extra_compile_args += ["-Os", "-fvisibility=hidden"]
    # what the others lean on comes first
    return sorted(made, key=lambda extension: "__mypyc" not in extension.name)


class Build(build_ext):
    """Builds everything that can be built here. Of what is compiled from Python all or nothing: half would not load."""

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            if extension not in self.extensions:
                continue
            try:
                self.build_extension(extension)
            except Exception as error:
                self.warn(f"{extension.name} is not compiled: {error}")
                self._leave_out(PYTHON if extension in PYTHON else [extension])

    def _leave_out(self, extensions: list[Extension]) -> None:
        self.extensions = [one for one in self.extensions if one not in extensions]
        for one in extensions:
            Path(self.get_ext_fullpath(one.name)).unlink(missing_ok=True)


PYTHON = compiled()
WALK = Extension("understudy.indexes._walk", ["indexes/walk.c"], depends=["indexes/walk.c"], extra_compile_args=["-O3"])
setup(ext_modules=[WALK, *PYTHON], cmdclass={"build_ext": Build})
