"""Writing a network as a program."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from cnncompress.programs.export import BATCH_IS_FREE, ExportReport, Output, Runner, export_checked
from cnncompress.programs.network import read_program

SOURCES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def write_program(model: nn.Module, example: Tensor, path: Path) -> ExportReport:
    """Write a network by `torch.export` with a free batch size, so that `read_program` reads it again.

    `example` [N, c, h, w] is a batch of inputs. No line and no file name of the network's code goes along.
    CompressError where the network cannot be exported, calls an operator that is not listed, or gives other outputs
    when it is read back.
    """

    def write(net: nn.Module, inputs: Tensor, file: Path, *_: Path) -> Runner:
        program = torch.export.export(net, (inputs,), dynamic_shapes=BATCH_IS_FREE)
        for module in program.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in module.graph.nodes:
                    for key in SOURCES:
                        node.meta.pop(key, None)
        buffer = BytesIO()  # torch's own writer to a file aborts the process when the disk is full
        torch.export.save(program, buffer)
        file.write_bytes(buffer.getbuffer())
        return read_program(file)

    return export_checked(Output("torch.export", path), model, example, None, write)
