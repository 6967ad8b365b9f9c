"""A Dockerfile's instructions, and the shell script that does what they do, without a container engine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath

_KNOWN = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(NAME, rest) of each instruction, continued lines joined; ValueError for one that is not known here."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]
    unknown = {name for name, _ in found} - _KNOWN
    if unknown:
        raise ValueError(f"instructions that are not known here: {sorted(unknown)}")
    return [(name, rest) for name, rest in found]


def installs_system_packages(command: str) -> bool:
    """Whether a RUN's command is for the base image's own package manager."""
    return command.startswith("apt-get ")


def build_script(text: str, context: Path, root: Path, arguments: dict[str, str]) -> str:
    """A bash script that builds the image into the folder `root` instead of /, its system packages left out.

    `arguments` are those of --build-arg; absolute paths of the image lie below `root`, sources come from `context`.
    """

    def inside(path: str) -> str:
        return str(root / path.lstrip("/")) if path.startswith("/") else path

    script = ["set -euo pipefail"]
    for name, rest in instructions(text):
        if name == "ARG":
            key, _, value = rest.partition("=")
            script.append(f"export {key}={shlex.quote(arguments.get(key, value))}")
        elif name == "ENV":
            key, _, value = rest.partition("=")
            script.append(f'export {key}="{re.sub(r"^/.*?(?=:|$)", lambda found: inside(found[0]), value)}"')
        elif name == "WORKDIR":
            script.append(f"mkdir -p {inside(rest)} && cd {inside(rest)}")
        elif name == "COPY":
            *sources, target = rest.split()
            folder = target if target.endswith("/") else str(PurePosixPath(target).parent)
            script.append(f"mkdir -p {inside(folder)}")
            script += [f"cp -r {shlex.quote(str(context / source))} {inside(target)}" for source in sources]
        elif name == "RUN" and not installs_system_packages(rest):
            script.append(rest)
    return "\n".join(script) + "\n"
