"""The environment that the scripts make, and the lock files that it is made from."""

import importlib.util
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-oldest.lock")
PYTHONS = ("3.11", "3.12", "3.13")


def locked(name, python):
    """The version of every package in a lock file for a Python on Linux."""
    on = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    lines = map(Requirement, (ROOT / name).read_text().splitlines())
    return {r.name: Version(str(r.specifier)[2:]) for r in lines if r.marker is None or r.marker.evaluate(on)}


def declared():
    """What pyproject.toml asks for, with the extras that the scripts install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = Requirement(next(text for text in extras["dev"] if text.startswith("cnncompress[")))
    texts = [*project["dependencies"], *extras["dev"], *(text for extra in own.extras for text in extras[extra])]
    return [r for r in map(Requirement, texts) if r.name != "cnncompress"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_are_complete_and_within_the_ranges(name, python):
    versions = locked(name, python)
    for requirement in declared():
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


def test_the_oldest_are_the_lower_bounds():
    versions = locked("requirements-oldest.lock", "3.11")
    for requirement in declared():
        for bound in requirement.specifier:
            named = Version(bound.version).release
            assert versions[requirement.name.lower()].release[: len(named)] == named, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_name_no_place(name):
    assert "//" not in (ROOT / name).read_text()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """scripts/environment.py in an empty project, where pip and venv only keep a diary."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    diary = []

    def create(folder, clear, **_):
        diary.append("venv")
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()

    def pip(command, **_):
        diary.append(f"pip {command[-1]}")
        if module.stop:
            raise KeyboardInterrupt
        return SimpleNamespace(returncode=0)

    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.lock").touch()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "venv", SimpleNamespace(create=create))
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=pip))
    module.stop, module.diary = False, diary
    return module


WHOLE = ["pip setuptools", "pip .[dev]"]


def made(environment, *arguments):
    environment.diary.clear()
    environment.main(*(arguments or ["[dev]"]))
    return environment.diary


def test_set_up_once(environment, capsys, tmp_path):
    assert made(environment) == ["venv", *WHOLE]
    assert made(environment) == []
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / ".venv" / environment.PROGRAMS)] * 2


def test_other_extras_are_added(environment, tmp_path):
    made(environment, "")
    assert made(environment) == WHOLE
    assert made(environment, "") == []
    (tmp_path / "requirements.lock").write_text("other")
    assert made(environment) == WHOLE
    assert made(environment, "") == ["pip setuptools", "pip ."]


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_changed_requirements_are_installed(environment, tmp_path, name):
    made(environment)
    (tmp_path / name).write_text("other")
    assert made(environment) == WHOLE


def test_what_was_interrupted_is_made_anew(environment, tmp_path):
    made(environment)
    (tmp_path / "requirements.lock").write_text("other")
    environment.stop = True
    with pytest.raises(KeyboardInterrupt):
        made(environment)
    environment.stop = False
    assert made(environment) == ["venv", *WHOLE]


def test_another_python_makes_it_anew(environment, monkeypatch):
    made(environment)
    monkeypatch.setattr(environment.sys, "version", "3.99")
    assert made(environment) == ["venv", *WHOLE]


def test_the_newest_are_looked_for_every_time(environment):
    assert made(environment, "[dev]", "newest") == ["venv", *WHOLE]
    assert made(environment, "[dev]", "newest") == WHOLE


def test_two_at_once_make_it_once(environment):
    threads = [threading.Thread(target=environment.main, args=("[dev]",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert environment.diary == ["venv", *WHOLE]
