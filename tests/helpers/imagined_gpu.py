"""A GPU that is not there: tensors that say they lie on one and hold no numbers, so that whoever asks for a number fails.

Every branch for GPUs runs, with the shapes that it would have, by the rules that torch's compiler has for each operator. What
makes the host wait inside an operator of torch is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_fixed_shapes import FixedShapes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from detector.modeling import nms
from detector.modeling.rcnn import GeneralizedRCNN

GPU = torch.device("cuda", 0)


class NoWaits(FixedShapes):
    """Refuses what makes the host wait: shapes that depend on data, and copies between devices that are not queued."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {
            x.device.type for x in [*given, *tree_leaves(result)] if isinstance(x, Tensor) and (x.ndim or x is result)
        }
        if len(places) > 1:
            name, options = func.overloadpacket.__name__, kwargs or {}
            queued = options.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            assert name in ("_to_copy", "copy_") and queued and result.device.type == "cuda", f"{func} waits for a copy"
            self.copies += 1
        return result


@contextmanager
def imagined_gpu(model: GeneralizedRCNN, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model on a GPU that is not there, while the context is open."""
    monkeypatch.setattr(nms, "_compiled_kernel", lambda device: _no_numbers)
    with FakeTensorMode() as mode:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                held |= {name: _on_gpu(value) for name, value in held.items() if value is not None}
        model.preprocess.mean, model.preprocess.std = map(
            mode.from_tensor, (model.preprocess.mean, model.preprocess.std)
        )
        model.rpn.anchors._cells = [mode.from_tensor(cells) for cells in model.rpn.anchors._cells]
        monkeypatch.setattr(model, "to", lambda device: model)  # it is there
        yield


def _on_gpu(value: Tensor) -> Tensor:
    there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
    return nn.Parameter(there, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else there


def _no_numbers(boxes: Tensor, scores: Tensor, valid: Tensor, group: Tensor, **options: Any) -> Tensor:
    """In the place of the kernel of nms_triton.py, which needs memory."""
    assert boxes.shape[:2] == scores.shape == valid.shape == group.shape
    return torch.empty_like(valid)
