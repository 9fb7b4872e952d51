"""Where torchvision's operators are stood in for, and where they must not be."""

import sys

import pytest
import torch

from tests import torchvision_on_cpu


@pytest.mark.parametrize(("attribute", "value"), [("cuda", "13.0"), ("hip", "7.0")])
def test_a_torch_for_gpus_has_its_own(monkeypatch, attribute, value):
    defined = []
    monkeypatch.setattr(torch.version, attribute, value)
    monkeypatch.setattr(torch.library, "Library", lambda *arguments: defined.append(arguments))
    monkeypatch.setattr(torchvision_on_cpu, "_library", None)
    path = list(sys.path)
    torchvision_on_cpu.make_importable()
    assert (defined, sys.path) == ([], path)


@pytest.mark.skipif(torch.version.cuda is not None or torch.version.hip is not None, reason="torch is built for GPUs")
def test_a_torch_for_cpus_has_the_schemas():
    for name in ("nms", "qnms"):
        assert str(getattr(torch.ops.torchvision, name).default._schema).startswith(f"torchvision::{name}")
