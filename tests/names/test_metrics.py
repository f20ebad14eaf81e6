"""What the files of the metrics say of themselves is what is registered; the defaults are there."""

import subprocess
import sys

import pytest

from cnncompress.errors import UsageError
from cnncompress.metrics import REGISTRY
from cnncompress.names import metrics


def test_every_registered_metric_is_in_it():
    assert set(metrics.catalogue()) == set(REGISTRY) >= {metrics.DEFAULT, metrics.GUIDED, metrics.OF_INPUTS}


@pytest.mark.parametrize("name", REGISTRY)
def test_an_entry_says_what_the_class_says(name):
    entry, metric = metrics.entry(name), REGISTRY[name]
    assert (entry.name, entry.source, entry.needs) == (name, metric.source, metric.needs)
    assert entry.form == metric.__doc__.split("\n")[0] != ""


def test_what_images_must_tell():
    assert REGISTRY[metrics.DEFAULT].needs == ()
    assert REGISTRY[metrics.OF_INPUTS].needs == ("moment",)
    assert [name for name, metric in REGISTRY.items() if metric.labelled()] == ["mahalanobis"]
    assert [name for name, metric in REGISTRY.items() if metric.nats] == ["kronecker"]
    with pytest.raises(UsageError, match="did you mean 'kronecker'"):
        metrics.entry("kroneker")


def test_names_and_needs_are_known_without_torch():
    script = "import sys; from cnncompress.names.metrics import entry; "
    script += "print(entry('kronecker').needs, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('moment', 'gradient') False"
