"""One forward pass of somebody else's network: its errors in one line, and the answers in what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cnncompress.errors import CompressError, is_out_of_memory
from cnncompress.network.copying import undone

ROUNDING_SHARE = 1e-4  # of the largest output: what the order of additions may change
ANSWER_NAMES = ("logits", "out")  # the names of the answers among several outputs


def run(model: nn.Module, inputs: Tensor) -> Any:
    """The network's outputs for a batch of inputs, of any type; CompressError in one line if its forward pass fails.

    The batch stays as it is, whatever the network does to its input. Too little memory stays the exception that it is.
    Sparse answers are refused: few operations take them.
    """
    try:
        output = model(inputs.clone())
    except CompressError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        if is_out_of_memory(error):
            raise
        what = _further_inputs(model) or _failure(model, inputs, error)
        raise CompressError(f"the forward pass of {type(model).__name__} {what}") from error
    if any(isinstance(x, Tensor) and x.layout is not torch.strided for x in tree_leaves(output)):
        raise CompressError(f"{type(model).__name__} returns a sparse tensor; let it return a dense one, of to_dense()")
    return output


def _further_inputs(model: nn.Module) -> str | None:
    """The message for a forward pass that needs more than the images, or None."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # not every callable tells
        return None
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) < 2:
        return None
    return (
        f"takes {len(needed)} inputs ({', '.join(needed)}): "
        "give a factory of a network that takes the images alone and sets the others itself"
    )


def _failure(model: nn.Module, inputs: Tensor, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if len(inputs) > 1:
        try:
            model(inputs[:1])
            return (
                f"takes one image but fails on a batch of {len(inputs)}: {reason}; "
                "give --batch-size 1, or let its forward pass take the batch size from its input"
            )
        except Exception:  # it fails on a single image too: the first error tells all
            pass
    hint = "; if it takes images of another size, give --input-size" if _is_about_size(reason) else ""
    return f"fails on an input of {'×'.join(map(str, inputs.shape))}: {reason}{hint}"


def _is_about_size(reason: str) -> bool:
    """Whether a forward pass seems to fail because its images are of a wrong size."""
    words = ("shape", "size", "dimension", "channels", "cannot be multiplied")
    return any(word in reason.lower() for word in words)


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The answers of a network to a batch of inputs, [n, ...]; CompressError as `run` and `logits`."""
    answers = logits(run(model, inputs))
    if len(inputs) == 1 and answers.shape[:1] != (1,):
        return answers[None]  # its own squeeze() took the batch away
    if answers.shape[:1] != (len(inputs),):
        raise CompressError(
            f"{type(model).__name__} answers a batch of {len(inputs)} with a tensor of {tuple(answers.shape)}, not one "
            "answer an image; let its forward pass take the batch size from its input"
        )
    return answers


def logits(output: Any) -> Tensor:
    """The answers in what a network returns, a tensor of floating point.

    Of several outputs they are those called `logits` or `out`, the only tensor of a mapping, the first of a tuple.
    CompressError for anything else.
    """
    answers = getattr(output, "logits", output)
    if isinstance(answers, Mapping):
        named = next((name for name in ANSWER_NAMES if name in answers), None)
        tensors = [value for value in answers.values() if isinstance(value, Tensor)]
        if named is None and len(tensors) != 1:
            raise CompressError(
                f"the network returns {_kind(answers)}, not a tensor of logits; call the answers logits"
            )
        answers = tensors[0] if named is None else answers[named]
    elif (isinstance(answers, tuple) and answers) or (
        isinstance(answers, list) and answers and isinstance(answers[0], Tensor)
    ):
        answers = logits(answers[0])  # not the first of a list of detections
    if not isinstance(answers, Tensor):
        raise CompressError(f"the network returns {_kind(answers)}, not a tensor of logits")
    if not answers.is_floating_point():
        raise CompressError(f"the network returns {answers.dtype}, not logits; let it return what it decides by")
    return answers


def same_outputs(outputs: Any, expected: Any) -> bool:
    """Whether two outputs of networks are the same up to rounding, whatever tensors and containers they are made of."""
    ones, others = tree_leaves(outputs), tree_leaves(expected)
    return len(ones) == len(others) and all(_same(a, b) for a, b in zip(ones, others, strict=True))


def _same(value: Any, expected: Any) -> bool:
    if not isinstance(value, Tensor) or not isinstance(expected, Tensor):
        return type(value) is type(expected)
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    if value.is_meta or not value.numel():
        return True
    if value.is_complex():
        value, expected = torch.view_as_real(value.resolve_conj()), torch.view_as_real(expected.resolve_conj())
    value, expected = value.double(), expected.double()
    scale = float(expected.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(value, expected, rtol=0, atol=ROUNDING_SHARE * scale, equal_nan=True)


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output))}"
    if isinstance(output, tuple | list) and output:
        return f"a {type(output).__name__} of {_kind(output[0])}"
    return f"a {type(output).__name__}"


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; what forward passes leave behind in the network is undone afterwards (`undone`)."""
    with undone(model), torch.no_grad():
        model.eval()
        yield


def takes_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Whether a network answers images [n, c, h, w] in channels_last as it does others; its kernels stay as they are.

    On a CPU most networks then take less time, and hardly any takes more.
    """
    other = images.contiguous(memory_format=torch.channels_last)
    try:
        with inference(model):
            expected = run(model, images)
        with inference(model):  # begins with the same random numbers
            return same_outputs(run(model, other), expected)
    except CompressError:
        return False
