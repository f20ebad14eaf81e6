import numpy as np
import torch
from torch import nn

from cnncompress.network.layers import layers_of
from cnncompress.network.positions import image_seeds
from tests.statistics.helpers import collect, images, small_network


def drawn_label(logits, image, seed):
    """The class drawn for an image: the inverse distribution function at the image's own random number."""
    chance = np.random.default_rng(image_seeds(image[None], seed)[0]).random()
    return int((logits.double().softmax(0).cumsum(0) < chance).sum())


def output_gradients(model, x, label):
    """d loss / d output of every layer [positions, F] for one image: at a zero added to the output of each layer."""
    found = {}
    for name, layer in layers_of(model).items():
        extra = {}

        def add(module, args, output, extra=extra):
            extra["e"] = torch.zeros_like(output, requires_grad=True)
            return output + extra["e"]

        handle = layer.register_forward_hook(add)
        loss = -model(x[None])[0].log_softmax(0)[label]
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, extra["e"])
        found[name] = gradient[0].flatten(1).T if gradient.dim() == 4 else gradient.reshape(-1, gradient.shape[-1])
    return found


def test_gradient_is_the_mean_over_images_of_the_sum_over_positions():
    model, x = small_network(), images(7)
    found = collect(model, [x[:4], x[4:]], "kronecker", seed=3)
    labels = [drawn_label(model(v[None])[0].detach(), v, 3) for v in x]
    assert len(set(labels)) > 1
    expected = dict.fromkeys(layers_of(model), 0)
    for v, label in zip(x, labels, strict=True):
        for name, g in output_gradients(model, v, label).items():
            expected[name] = expected[name] + g.double().T @ g.double() / 7
    for name, value in expected.items():
        torch.testing.assert_close(found[name].gradient.double(), value, rtol=1e-4, atol=1e-8)


def test_drawn_labels_follow_the_softmax():
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x)

    model = Bias()
    chances = torch.tensor([0.7, 0.2, 0.1])
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(chances.log())
    found = collect(model, [torch.randn(4000, 4)], "kronecker")["fc"]
    # E[(p − δ)(p − δ)ᵀ] over δ ~ p is diag(p) − ppᵀ; standard errors are below 0.008
    assert (found.gradient - (chances.diag() - chances[:, None] * chances)).abs().max() < 0.03


def test_inplace_operations_linear_positions_and_constant_inputs_keep_their_gradients():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.table = nn.Linear(2, 4)
            self.head = nn.Linear(4, 3)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            position = self.act(self.table(torch.ones(5, 2)))
            return self.head(self.act(self.first(x)) + position).mean(1)

    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(1, 5, 3)
    found = collect(model, [x], "kronecker")
    label = drawn_label(model(x)[0].detach(), x[0], 0)
    for name, g in output_gradients(model, x[0], label).items():
        torch.testing.assert_close(found[name].gradient, g.T @ g, rtol=1e-4, atol=1e-8)
    assert found["table"].gradient.abs().max() > 0


def test_sensitivity_is_the_mean_square_of_single_gradients():
    model, x = small_network(), images(5)
    labels = torch.tensor([0, 4, 2, 2, 1])
    found = collect(model, [(x[:3], labels[:3]), (x[3:], labels[3:])], "mahalanobis")
    for name, layer in layers_of(model).items():
        total = torch.zeros_like(layer.weight, dtype=torch.float64)
        for image, label in zip(x, labels, strict=True):
            scores = model(image[None])[0]
            order = [int(c) for c in scores.argsort(descending=True) if c != label][:3]
            for wrong in order:
                loss = -torch.log_softmax(model(image[None])[0], 0)[wrong]
                total += torch.autograd.grad(loss, layer.weight)[0].double() ** 2
        expected = total / (5 * 3)
        expected = expected if expected.dim() == 4 else expected[:, :, None, None]
        torch.testing.assert_close(found[name].sensitivity.double(), expected, rtol=1e-4, atol=1e-10)
        assert found[name].rows == 0
        assert found[name].moment is None
