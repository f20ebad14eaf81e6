import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from cnncompress.statistics import layers as statistics_layers
from cnncompress.statistics import load_statistics
from tests.statistics.helpers import collect

SCRIPT = """
import sys
import torch
from torch import distributed as dist
from cnncompress.errors import CompressError
from cnncompress.statistics import collect_statistics, save_statistics
import network

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model, data = network.build()
share = [batch for i, batch in enumerate(data) if i % world == rank]
options = dict(positions=3, progress=False)
for case, metrics in network.CASES.items():
    found = collect_statistics(model, share if case != "empty" or not rank else [], metrics, **options)
    save_statistics(sys.argv[1] + f"/{case}{rank}", found)
limited = collect_statistics(model, share, images=3, **options)
assert limited["0"].images == 3
bad = [(x * (float("nan") if rank else 1), y) for x, y in share]
try:
    collect_statistics(model, bad, **options)
except CompressError as error:
    print(f"process {rank}: {error}", flush=True)
dist.destroy_process_group()
"""

NETWORK = """
import torch
from torch import nn
from cnncompress.statistics import layers
layers.WIDEST_MOMENT = 30
CASES = {"all": ["kronecker", "mahalanobis"], "empty": ["data-covariance"]}

def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(54, 5),
    )
    return model, [(torch.randn(1 + i % 2, 3, 8, 8), torch.arange(1 + i % 2)) for i in range(5)]
"""


@pytest.mark.slow
def test_two_processes_get_the_result_of_one(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "network.py").write_text(textwrap.dedent(NETWORK))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):  # the error of one is the error of all
        assert re.search(f"process {rank}: .*the input of layer 0 is not finite", done.stdout)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(statistics_layers, "WIDEST_MOMENT", 30)
    import network

    model, data = network.build()
    for case, metrics in network.CASES.items():
        alone = collect(model, data if case == "all" else data[::2], metrics, positions=3)
        for rank in range(2):
            found = load_statistics(tmp_path / f"{case}{rank}")
            assert found.keys() == alone.keys()
            for name, one in alone.items():
                assert (found[name].images, found[name].rows) == (one.images, one.rows)
                for field in ("mean", "moment", "samples", "gradient", "sensitivity"):
                    torch.testing.assert_close(
                        getattr(found[name], field), getattr(one, field), rtol=1e-4, atol=1e-6, msg=f"{name} {field}"
                    )
    assert alone["5"].samples is not None
