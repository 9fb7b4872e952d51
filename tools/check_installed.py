"""Runs a packed layer in the installation at hand and checks who answered: `check_installed.py <origin>`.

The origin of the library is "prebuilt", "built at first use" or "none", which must warn once and name the remedy.
"""

import logging
import sys

import torch

import transformers_qaig
from transformers_qaig import QAIGLinear
from transformers_qaig.kernels import env, extension

expected = sys.argv[1]
warnings: list[str] = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("transformers.qaig").addHandler(handler)

torch.manual_seed(0)
codes, zero = torch.randint(0, 8, (48, 128), dtype=torch.uint8), torch.randint(0, 8, (48, 2), dtype=torch.uint8)
layer = QAIGLinear.from_codes(codes, torch.rand(48, 2) * 0.1, zero, bits=3, group_size=64)
x = torch.randn(5, 128)
for _ in range(2):
    torch.testing.assert_close(layer(x), x @ layer.dequantize().T, rtol=1e-4, atol=1e-4)

answering = {backend.op: backend.name for backend in reversed(env.collect().backends) if backend.device == "cpu"}
print(f"{transformers_qaig.__file__}: library {extension.origin()}, qaig::linear on {answering['linear']}")
assert (extension.origin() or "none") == expected, (extension.origin(), extension.why_not())
assert answering["linear"].startswith("reference" if expected == "none" else "cpu ("), answering
assert len(warnings) == (expected == "none"), warnings
assert all("g++" in warning for warning in warnings), warnings
