"""A Dockerfile's steps taken without Docker: each stage is a folder of its own.

BuildKit's own parser reads the file, docker-py reads ``.dockerignore``; the commands of ``RUN`` are
run by chroot, in namespaces of their own, as the user that the file names. An official Python image
on Debian is stood in for by Debian itself (debootstrap) with Debian's Python of the same minor
version. Needs Linux and root.
"""

import json
import os
import re
import shutil
import string
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dockerfile
from docker.utils.build import exclude_paths

SUITES = {"bookworm": "3.11"}
"""The Python of Debian's releases."""

RUN = r"""
set -eu
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$(dirname "$root$1")"; touch "$root$1"; fi
  mount --bind "$1" "$root$1"
  shift
done
shift
exec chroot "$root" "$@"
"""
"""A step: ``RUN root [path of this machine that is there, too]… -- command…``."""


@dataclass
class Image:
    """What a stage has come to.

    Attributes:
        root: its files.
        env: its variables.
        workdir: where its processes begin.
        user: ``uid:gid``, whose its processes are.
        shell: what runs ``RUN``.
        entrypoint: the program, and arguments that are always there.
        cmd: arguments that may be replaced.
        healthcheck: the command that tells whether it is well.
        stopsignal: what ends it.
        volumes: folders that are not in it.
        ports: that it listens on.
        labels: what is said about it.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stopsignal: str = "SIGTERM"
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """What a build is told of the machine that it runs on.

    Attributes:
        env: how pip reaches packages here.
        paths: files and folders of this machine that pip's settings name.
    """

    env: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    @classmethod
    def this(cls) -> "Machine":
        """This one, as pip is set up on it; and its name servers."""
        command = [sys.executable, "-m", "pip", "config", "list"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        env = {}
        for name, value in re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", told, re.M):
            env[f"PIP_{name.upper().replace('-', '_')}"] = value
        env |= {k: v for k, v in os.environ.items() if re.fullmatch(r"(?i)(https?|no)_proxy", k)}
        named = " ".join(env.values()).replace("file://", "").split()
        paths = [part for part in named if part.startswith("/") and Path(part).exists()]
        # The folder of an index lies beside what its pages point to.
        paths = [os.path.dirname(p) if p.endswith("/simple") else p for p in paths]
        return cls(env, [*dict.fromkeys(paths), "/etc/resolv.conf"])


def build(path: Path, context: Path, folder: Path, machine: Machine, args: dict[str, str]) -> Image:
    """Take the steps of a Dockerfile.

    Args:
        path: the Dockerfile.
        context: what ``COPY`` copies from.
        folder: an empty one, which gets a folder for each stage.
        machine: what steps are told of this machine.
        args: values of ``ARG``.

    Returns:
        the last stage.

    Raises:
        RuntimeError: when a step fails; with its output's end.
        ValueError: when a step is of a kind that is not known here.
    """
    ignored = (context / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    kept = exclude_paths(str(context), rules, dockerfile=str(path.relative_to(context)))
    builder = Builder(context, kept, folder, machine, args)
    for step in dockerfile.parse_file(str(path)):
        builder.take(step)
    return builder.image


class Builder:
    """Takes one step after the other; see ``build``."""

    def __init__(
        self, context: Path, kept: set[str], folder: Path, machine: Machine, args: dict[str, str]
    ) -> None:
        self.context = context
        self.kept = kept
        self.folder = folder
        self.machine = machine
        self.args = args
        self.image = Image(folder)
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Image] = {}

    def take(self, step: Any) -> None:
        """Take a step that was read by ``dockerfile``."""
        print(f"==> {step.original[:100]}", file=sys.stderr, flush=True)
        take = getattr(self, f"_{step.cmd.lower()}", None)
        if take is None:
            raise ValueError(f"line {step.start_line}: {step.cmd} is not known here")
        take(step)

    def _from(self, step: Any) -> None:
        name, *alias = step.value
        root = self.folder / f"stage-{len(self._stages)}"
        if alias:
            assert alias[0].upper() == "AS"
        self.image = base(name, root)
        self._arguments = {}
        self._stages[alias[1] if alias else str(len(self._stages))] = self.image

    def _arg(self, step: Any) -> None:
        name, _, default = step.value[0].partition("=")
        self._arguments[name] = self.args.get(name, default)

    def _env(self, step: Any) -> None:
        for name, value in zip(step.value[::2], step.value[1::2], strict=True):
            self.image.env[name] = self._expanded(unquoted(value))

    def _label(self, step: Any) -> None:
        pairs = zip(step.value[::2], step.value[1::2], strict=True)
        self.image.labels |= {name: unquoted(value) for name, value in pairs}

    def _workdir(self, step: Any) -> None:
        self.image.workdir = os.path.join(self.image.workdir, self._expanded(step.value[0]))
        inside(self.image.root, self.image.workdir).mkdir(parents=True, exist_ok=True)

    def _shell(self, step: Any) -> None:
        self.image.shell = list(step.value)

    def _user(self, step: Any) -> None:
        assert re.fullmatch(r"\d+:\d+", step.value[0]), "give a user by number, so do volumes"
        self.image.user = step.value[0]

    def _volume(self, step: Any) -> None:
        self.image.volumes += step.value

    def _expose(self, step: Any) -> None:
        self.image.ports += map(int, step.value)

    def _stopsignal(self, step: Any) -> None:
        self.image.stopsignal = step.value[0]

    def _healthcheck(self, step: Any) -> None:
        kind, *self.image.healthcheck = step.value
        assert kind == "CMD"
        assert step.json

    def _entrypoint(self, step: Any) -> None:
        assert step.json, "a shell would not hand on signals"
        self.image.entrypoint = list(step.value)

    def _cmd(self, step: Any) -> None:
        assert step.json
        self.image.cmd = list(step.value)

    def _copy(self, step: Any) -> None:
        *sources, target = step.value
        into = inside(self.image.root, os.path.join(self.image.workdir, target))
        stages = [flag.removeprefix("--from=") for flag in step.flags]
        many = len(sources) > 1 or target.endswith("/")
        for source in sources:
            if stages:
                begin = inside(self._stages[stages[0]].root, source)
                copy(begin, into / begin.name if many else into)
                continue
            found = [p for p in self.kept if p == source or p.startswith(f"{source}/")]
            if source not in found:
                raise RuntimeError(f"COPY {source}: it is not there, or .dockerignore names it")
            for part in sorted(found):
                rest = os.path.relpath(part, source)
                place = into / source if many else into
                end = place if rest == "." else place / rest
                if (self.context / part).is_dir():
                    end.mkdir(parents=True, exist_ok=True)
                else:
                    end.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(self.context / part, end)

    def _run(self, step: Any) -> None:
        assert not step.flags
        image = self.image
        command = list(step.value) if step.json else [*image.shell, step.value[0]]
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            **self.machine.env,
            **self._arguments,
            **image.env,
        }
        lent = [inside(image.root, path) for path in self.machine.paths]
        lent = [path for path in lent if not path.exists()]
        uid, gid = image.user.split(":")
        start = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        start += ["sh", "-c", RUN, "sh", str(image.root), *self.machine.paths, "--"]
        start += ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        start += ["env", "-C", image.workdir, "-i", *(f"{k}={v}" for k, v in variables.items())]
        done = subprocess.run(
            [*start, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for path in lent:
            subprocess.run(["rm", "--recursive", "--force", "--one-file-system", path], check=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"line {step.start_line}: {step.original[:60]} … ended with {done.returncode}: "
                f"{done.stdout[-2000:]}"
            )

    def _expanded(self, value: str) -> str:
        return string.Template(value).substitute({**self._arguments, **self.image.env})


def base(name: str, root: Path) -> Image:
    """What stands in for a base image.

    Raises:
        ValueError: when nothing does.
    """
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-(\w+)", name)
    if found is None or SUITES.get(found[2]) != found[1]:
        raise ValueError(f"there is nothing here that could stand in for {name}")
    with_python = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", with_python, found[2], str(root)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"debootstrap failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    for link in ("python", "python3"):
        (root / "usr" / "local" / "bin" / link).symlink_to("/usr/bin/python3")
    return Image(root, env={"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"})


def copy(begin: Path, end: Path) -> None:
    """Copy what is in a folder, or a file, with modes and owners."""
    end.parent.mkdir(parents=True, exist_ok=True)
    source = str(begin)
    if begin.is_dir():
        end.mkdir(exist_ok=True)
        source += "/."
    subprocess.run(["cp", "--archive", "--reflink=auto", source, str(end)], check=True)


def inside(root: Path, path: str) -> Path:
    """A path of an image on this machine."""
    return root / path.lstrip("/")


def unquoted(value: str) -> str:
    """A value of LABEL or ENV without its quotes."""
    return str(json.loads(value)) if value.startswith('"') else value
