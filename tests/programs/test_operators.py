"""Which operators a stored program may call."""

import pytest
import torch

from cnncompress.programs.operators import find_operator


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",  # opens, and with `shared` makes, a file
        "torch.ops.aten.add.out",
        "torch.ops.aten.mean.names_out",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.relu.none_such",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.conv2d.__init__",
        "torch.ops.aten.relu",
        "torch.ops.prim.Print.default",
        "torch.ops.load_library",
        "torch.load",
        "torch.hub.load",
        "torch.os.system",
        "torch.ops.aten.os.system",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "_operator.pow",
        "_operator.__import__",
        "math.factorial",
        "builtins.eval",
        "os.system",
        "",
        ".",
        "torch.ops.aten..",
    ],
)
def test_what_is_no_operator_of_a_network(target):
    with pytest.raises((KeyError, ValueError)):
        find_operator(target)


def test_operators_of_networks():
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(find_operator("torch.ops.aten.relu.default")(x), torch.tensor([0.0, 2.0]))
    assert torch.equal(find_operator("torch.ops.aten.mul.Tensor")(x, x), torch.tensor([1.0, 4.0]))
    assert find_operator("torch.ops.aten.relu_.default") is not None
    assert find_operator("torch.ops.aten._assert_scalar.default") is None
    assert find_operator("torch.ops.aten.sym_size.int")(x, 0) == 2


def test_sizes_are_computed_and_stay_sizes():
    assert find_operator("_operator.floordiv")(7, 2) == 3
    assert [find_operator(f"math.{name}")(2.5) for name in ("floor", "ceil")] == [2, 3]
    assert [find_operator(f"math.{name}")(-2.5) for name in ("floor", "ceil")] == [-3, -2]
    with pytest.raises(ValueError, match="too large"):
        find_operator("_operator.mul")(2**40, 2**40)
