"""Whether the CUDA kernels load and launch on this machine's torch and GPU: the first thing to run on a new one.

A few products of every width, checked; says which kernels answered. Exit status 1 if none did, or one was wrong.
"""

import sys

import torch

from transformers_qaig.formats.packing import CUDA_LAYOUT
from transformers_qaig.kernels import cuda, extension
from transformers_qaig.nn import QAIGLinear

if not torch.cuda.is_available():
    sys.exit("check_gpu: torch sees no CUDA device")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
if not cuda.load(torch.device("cuda")):
    sys.exit("check_gpu: no kernels answer here")
major, minor = torch.cuda.get_device_capability()
choice = cuda.choice(10 * major + minor)
where = f"{extension.origin()}, {extension.library_path()}" if choice.origin == cuda.LIBRARY else "compiled now"
print(f"kernels: {choice.origin} ({where}); {choice.reasons or 'nothing better'}")
torch.manual_seed(0)
for bits in (2, 3, 4, 8):
    codes = torch.randint(0, 2**bits, (512, 1024), dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (512, 8), dtype=torch.uint8)
    layer = QAIGLinear.from_codes(codes, torch.rand(512, 8).bfloat16() * 0.1, zero, bits=bits, group_size=128)
    weight = layer.dequantize(torch.float64)
    layer = layer.cuda()
    assert layer.to_kernel_layout(), "the layer was not prepared"
    assert layer.layout == CUDA_LAYOUT, layer.layout
    for rows in (1, 16, 100):
        x = torch.randn(rows, 1024).bfloat16()
        expected = x.double() @ weight.T
        error = float((layer(x.cuda()).cpu().double() - expected).norm() / expected.norm())
        print(f"{bits} bits, {rows} rows: relative error {error:.1e}")
        assert error < 4e-3, "that is wrong"
print("check_gpu: ok")
