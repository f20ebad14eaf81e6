"""The user's home folder in options, configs and names of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnncompress.config import merge
from cnncompress.config.settings import DecomposeSettings
from cnncompress.files.home import at_home


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~/runs", "{}/runs"),
        ("~", "{}"),
        ("cifar10:~/data", "cifar10:{}/data"),
        ("runs/~/a~b", "runs/~/a~b"),
        ("digits", "digits"),
        ("C:/runs", "C:/runs"),
        ("~nobody_of_this_name/x", "~nobody_of_this_name/x"),
        ("", ""),
    ],
)
def test_a_tilde_at_the_start_is_the_home_folder(given, path, home):
    assert at_home(given) == path.format(home)


def test_paths_stay_paths_and_the_rest_stays(home):
    assert at_home(Path("~/runs")) == home / "runs"
    assert at_home(None) is None
    assert at_home(3) == 3


def test_in_a_config(home):
    config = home / "config.yaml"
    config.write_text("model: digits_vgg\ndata: ~/photos\nout: ~/run\nweights: ~/best.pth\n")
    settings = merge(DecomposeSettings, config, {})
    assert (settings.data, settings.out, settings.weights) == (
        f"{home}/photos",
        home / "run",
        f"{home}/best.pth",
    )
