"""Train the built-in digits network from nothing and write its weights into the package.

    python scripts/train_digits.py [--epochs 60] [--output FILE]

Takes a few minutes on two CPU cores. The same machine and versions give the same weights again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cnncompress.data import Augmented, Images, load_data, make_loader
from cnncompress.models.digits_vgg import PREPROCESSING, WEIGHTS, DigitsVGG


def accuracy(model: nn.Module, images: Images) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in make_loader(images, 256))
    return 100 * right / len(images)


def train(model: nn.Module, images: Images, epochs: int, seed: int) -> None:
    dataset = Augmented(images, PREPROCESSING, flip=False, seed=seed)
    batches = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=epochs * len(batches))
    for epoch in tqdm(range(epochs), unit="epoch", disable=None):
        dataset.set_epoch(epoch)
        model.train()
        for x, y in batches:
            loss = nn.functional.cross_entropy(model(x), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    data = load_data("digits", PREPROCESSING, 10)
    assert data.train is not None
    assert data.test is not None
    model = DigitsVGG()
    train(model, data.train, args.epochs, args.seed)
    save_file(model.state_dict(), args.output)
    size = args.output.stat().st_size
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {size:,} bytes in {args.output}")
    print(f"validation accuracy {accuracy(model, data.val):.2f} %, test accuracy {accuracy(model, data.test):.2f} %")


if __name__ == "__main__":
    main()
