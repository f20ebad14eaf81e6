# %% [markdown]
# # A network made smaller, step by step
#
# `photodigits_vgg` is a small VGG that reads handwritten digits drawn on photographs; it and its images come with the
# package and with scikit-learn, so that all of this runs offline.

# %%
import tempfile
from pathlib import Path

import torch

import cnncompress as cc

torch.manual_seed(0)
loaded = cc.load_model("photodigits_vgg")
network, preprocessing = loaded.model, loaded.preprocessing
data = cc.load_data("photodigits", preprocessing, 10)
test = cc.load_data("photodigits:test", preprocessing, 10).val
print(f"{len(data.train)} training images, {len(data.val)} to validate on, {len(test)} to test on")

# %% [markdown]
# What it costs, and where: nearly all of its multiply-accumulates are in five convolutions.

# %%
example = torch.zeros(1, 3, 40, 40)
before = cc.profile(network, example)
for layer in before.layers:
    print(f"{layer.layer:12} {layer.spec!s:14} {layer.params:8,} params {layer.macs / before.macs:6.1%} of the MACs")

# %% [markdown]
# Two hundred training images, without their labels, are enough to plan and to correct. A quarter of the
# MACs, whatever that does to the time:

# %%
images = torch.stack([data.train[i][0] for i in range(0, len(data.train), len(data.train) // 200)])
compressed = cc.compress(network, images, cc.Budget(macs=0.25), allow_slower=True)
small = compressed.network
print(compressed.plan)

# %% [markdown]
# Every replaced layer is a chain of plain layers. The network that went in is as it was.

# %%
print(small.features[4])

# %% [markdown]
# Smaller by what, and at which price? Neither the plan nor the correction has seen the test images.

# %%
after = cc.profile(small, example)
networks = {"before": network, "after": small}
accuracy = {name: cc.evaluate(net, cc.make_loader(test, 256)).top1 for name, net in networks.items()}
print(f"MACs    {before.macs / 1e6:6.1f} M → {after.macs / 1e6:6.1f} M")
print(f"params  {before.params / 1e3:6.0f} K → {after.params / 1e3:6.0f} K")
print(f"top-1   {accuracy['before']:6.2f} % → {accuracy['after']:6.2f} %")
assert after.macs <= 0.25 * before.macs
assert accuracy["after"] > accuracy["before"] - 5

# %% [markdown]
# A run is a folder with the network and its evidence. It opens without the methods, and executes nothing.

# %%
folder = Path(tempfile.mkdtemp()) / "photodigits"
cc.save(compressed, folder)
again = cc.load(folder)
assert torch.equal(again(images[:8]), small(images[:8]))
for path in sorted(folder.iterdir()):
    print(f"{path.name:18} {path.stat().st_size:9,} bytes")
