"""Train a built-in network from nothing and write its weights into the package.

    python scripts/train_builtin.py photodigits_vgg [--epochs 20] [--output FILE]
    python scripts/train_builtin.py digits_vgg --epochs 60

Learns from the training images of its data set. The number of epochs and all else was fixed beforehand and the last
epoch's weights are taken: neither the validation nor the test images choose anything. Takes some ten minutes on two CPU
cores. The same machine and versions give the same weights again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cnncompress.data import Augmented, Images, load_data, make_loader
from cnncompress.data.photodigits import MOST, draw_photodigit
from cnncompress.models.builtin import BUILTIN
from cnncompress.network.preprocessing import Preprocessing

RATE = 2e-3
REDRAWN = 4  # drawings of each photodigit in an epoch


class Redrawn(Augmented):
    """Augmented photodigits of which every epoch sees `REDRAWN` new drawings each."""

    def __init__(self, dataset: Images, preprocessing: Preprocessing, *, flip: bool, seed: int) -> None:
        each = [i for i, number in enumerate(dataset.positions) if number % MOST < REDRAWN]
        super().__init__(dataset.subset(each), preprocessing, flip=flip, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the drawings and the other random numbers of an epoch."""
        super().set_epoch(epoch)
        self.dataset.read = self._draw

    def _draw(self, index: int) -> Image.Image:
        digit, drawing = divmod(index, MOST)
        return draw_photodigit(digit, REDRAWN * self.epoch + drawing)


def accuracy(model: nn.Module, images: Images) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in make_loader(images, 256))
    return 100 * right / len(images)


def train(model: nn.Module, dataset: Augmented, epochs: int) -> None:
    batches = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * len(batches))
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        model.train()
        losses = []
        for x, y in tqdm(batches, desc=f"epoch {epoch + 1}/{epochs}", leave=False, disable=None):
            scores = model(x.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(scores, y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.4f}", flush=True)


def save(model: nn.Module, path: Path) -> None:
    """Write the weights: kernels as float16, which costs no accuracy, the rest as it is."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file({name: value.half() if value.dim() > 1 else value for name, value in state.items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(name for name, one in BUILTIN.items() if one.weights))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    network = BUILTIN[args.network]
    output = args.output or network.weights
    data = load_data(network.data, network.preprocessing, 10)
    assert data.train is not None
    assert data.test is not None
    model = network.build().to(memory_format=torch.channels_last)
    kind = Redrawn if network.data == "photodigits" else Augmented
    train(model, kind(data.train, network.preprocessing, flip=False, seed=args.seed), args.epochs)
    save(model, output)
    model.load_state_dict(load_file(output))
    size = output.stat().st_size
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {size:,} bytes in {output}")
    print(f"validation accuracy {accuracy(model, data.val):.2f} %, test accuracy {accuracy(model, data.test):.2f} %")


if __name__ == "__main__":
    main()
