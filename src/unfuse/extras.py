"""Optional packages: the command that installs them into the running environment.

pip reads the extras of ``unfuse[dsec]`` from the package that is installed, from a clone or not, and asks no index for
it. So the command needs the pip of this environment.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def install_command(requirement: str) -> str:
    """Return the command that adds a package to the running environment.

    Args:
        requirement: a package, or this one with an extra, as ``unfuse[dsec]``.
    """
    argument = f'"{requirement}"' if "[" in requirement else requirement
    return f"{_pip()} install {argument}"


def _pip() -> str:
    here = Path(sys.executable).parent
    found = shutil.which("pip")
    if found is not None and Path(found).parent == here:
        return "pip"
    python, folder = Path(sys.executable), Path.cwd()
    # As the README types it: an environment inside this folder is not activated there.
    executable = python.relative_to(folder) if python.is_relative_to(folder) else python
    return f"{shlex.quote(os.fspath(executable))} -m pip"
