"""Our balanced feature pyramid gives the recorded maps and gradients of mmdetection's."""

from __future__ import annotations

import pytest
import torch
from golden_rules import GRADIENT, Fill, filled, golden, record_errors, relative_error

from detector.interop.mmdetection import BFP as ROWS
from detector.interop.names import rename
from detector.necks.bfp import BFP

REFINEMENTS = {"bfp_conv": "conv", "bfp_non_local": "non_local"}


def ours(theirs: str, refine: str) -> str:
    """Our name of a tensor of the pyramid alone, by the rows of a whole detector, where it is the second neck."""
    names = {name.removeprefix("pyramid.neck.refine.") for name in rename(f"neck.1.{theirs}", ROWS)}
    [name] = names & set(BFP([8], [4], width=8, refine=refine).refine.state_dict())
    return name


@pytest.mark.parametrize("entry", REFINEMENTS)
def test_neck(entry):
    file, refine = golden("necks_mmdet"), REFINEMENTS[entry]
    record = file["entries"][entry]
    neck = BFP([8] * 4, [4, 8, 16, 32], refine=refine).eval()
    neck.refine.load_state_dict(
        {ours(key, refine): tensor for key, tensor in filled(record, file["seed_text"]).items()}
    )
    make = Fill(file["seed_text"]).normal
    p = [torch.from_numpy(make(f"p{i}", shape)).float() for i, shape in enumerate(record["inputs"], start=2)]
    p = [x.requires_grad_() for x in p]
    found = neck.balance(p)
    tolerance = max(1e-5, 5 * record["noise_float64_over_std"], 5 * record["noise_other_kernels_over_std"])
    for level, expected in zip(found, record["outputs"], strict=True):
        assert max(record_errors(level, expected)) < tolerance
    loss = sum((level**2).mean() for level in found)
    assert relative_error(float(loss.detach()), record["loss_value"]) < 1e-5
    loss.backward()
    for level, expected in zip(p, record["input_grad_norms"], strict=True):
        assert relative_error(float(level.grad.double().norm()), expected, below=0) < GRADIENT
    grads = {key: float(tensor.grad.double().norm()) for key, tensor in neck.refine.named_parameters()}
    for key, expected in record["grad_norms"].items():
        assert relative_error(grads[ours(key, refine)], expected, below=0) < GRADIENT


def test_every_entry_of_the_family_is_compared():
    assert {e for e in golden("necks_mmdet")["entries"] if e.startswith("bfp")} == set(REFINEMENTS)
