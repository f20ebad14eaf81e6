"""Make a virtual environment with the project in it, unless it is there as wanted.

    python scripts/environment.py [EXTRAS [VERSIONS]]

EXTRAS is such as `[dev]`. VERSIONS is `locked` (those of requirements.lock, in .venv), `oldest` (those of
requirements-oldest.lock, in .venv-oldest) or `newest` (whatever pip finds today, in .venv-newest).
Prints the folder with its programs. Needs the standard library alone; the environment has the Python that runs this.
"""

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"locked": ".venv", "oldest": ".venv-oldest", "newest": ".venv-newest"}
LOCKS = {"locked": "requirements.lock", "oldest": "requirements-oldest.lock"}
PROGRAMS = "Scripts" if os.name == "nt" else "bin"
QUIET = ("-qq", "--disable-pip-version-check", "--no-input", "--no-warn-script-location")


def main(extras: str = "", versions: str = "locked") -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (the one file that an older Python may run)
        sys.exit("cnncompress needs Python 3.11 or newer: set PYTHON to one, such as PYTHON=python3.12")
    if versions not in FOLDERS:
        sys.exit(f"unknown versions '{versions}' (locked, oldest, newest)")
    folder = ROOT / FOLDERS[versions]
    with alone(folder.with_suffix(".lock")) as lock:
        if versions == "newest" or not installed(folder, extras, versions):
            print(f"installing cnncompress{extras} into {folder.name} (minutes the first time)", file=sys.stderr)
            install(folder, extras, versions, lock)
    print(folder / PROGRAMS)


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """One process at a time; the others wait. Children that inherit the descriptor keep it locked if this one dies."""
    with path.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def install(folder: Path, extras: str, versions: str, lock: int) -> None:
    made = folder / ".made"
    # What was made elsewhere, by another Python, or only half, is not mended but made anew.
    if not made.exists() or made.read_text() != maker():
        venv.create(folder, clear=True, with_pip=True)
    made.unlink(missing_ok=True)
    for stamp in folder.glob(".installed*"):
        if stamp.read_text() != wanted(versions):
            stamp.unlink()
    options = ["--constraint", LOCKS[versions]] if versions in LOCKS else ["--upgrade", "--upgrade-strategy", "eager"]
    for what in (["setuptools"], ["--no-build-isolation", "--editable", f".{extras}"]):
        command = [str(folder / PROGRAMS / "python"), "-m", "pip", "install", *QUIET, *options, *what]
        code = subprocess.run(command, cwd=ROOT, pass_fds=(lock,) if fcntl else ()).returncode
        if code:
            sys.exit(f"pip failed ({code}); run the same again once what it says above is mended")
    stamp_of(folder, extras).write_text(wanted(versions))
    made.write_text(maker())


def installed(folder: Path, extras: str, versions: str) -> bool:
    """Whether the environment is whole, made by this Python for this folder, and of today's requirements."""
    expected = {folder / ".made": maker(), stamp_of(folder, extras): wanted(versions)}
    return all(path.exists() and path.read_text() == text for path, text in expected.items())


def stamp_of(folder: Path, extras: str) -> Path:
    return folder / f".installed{extras}"


def maker() -> str:
    return f"{ROOT}\n{sys.version}\n"


def wanted(versions: str) -> str:
    files = [ROOT / "pyproject.toml", *(ROOT / name for key, name in LOCKS.items() if key == versions)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
