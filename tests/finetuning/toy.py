"""A data set, networks and short cuts for the tests of fine-tuning."""

import torch
from torch import nn
from torch.utils.data import Dataset

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.finetuning import FinetuneSettings, Lessons, finetune


class Toy(Dataset):
    """Noisy images of three classes, each with a pattern of its own; `on_item(epoch, index)` runs before each."""

    def __init__(self, n=48, seed=0, noise=1.0):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(99))
        self.labels = [i % 3 for i in range(n)]
        self.images = patterns[self.labels] + noise * torch.randn(n, 3, 8, 8, generator=generator)
        self.epoch, self.skipped = 0, {}
        self.on_item = lambda epoch, index: None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.on_item(self.epoch, index)
        # An augmentation that follows from epoch and index.
        shift = (7 * self.epoch + index) % 3 - 1 if self.epoch else 0
        return self.images[index].roll(shift, -1), self.labels[index]


def chain(cin, cout, rank):
    stages = (
        ConvSpec(cin, rank, (3, 1), padding=(1, 0)),
        ConvSpec(rank, cout, (1, 3), padding=(0, 1), bias=True),
    )
    return FactoredLayer(stages)


def linear_chain(cin, cout, rank):
    return FactoredLayer((ConvSpec(cin, rank, linear=True), ConvSpec(rank, cout, bias=True, linear=True)))


def network(dropout=0.25):
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        chain(8, 8, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 3),
    ]
    return nn.Sequential(*layers).eval()


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def settings(**changes):
    return FinetuneSettings(**{"epochs": 2, "batch_size": 8, "lr": 0.02, "seed": 5, **changes})


def tune(tmp_path, model, train=None, val=None, resume=False, **changes):
    torch.set_num_threads(1)
    return finetune(
        model,
        Lessons(train or Toy(), val or Toy(24, seed=1)),
        settings(**changes),
        tmp_path / "checkpoints",
        device="cpu",
        resume=resume,
    )


def history_of(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Auxiliary(nn.Module):
    """Gives a pair in train mode, as torchvision's GoogLeNet does."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(192, 3)
        self.aux = nn.Linear(192, 3)

    def forward(self, x):
        x = x.flatten(1)
        return (self.body(x), self.aux(x)) if self.training else self.body(x)
