from dataclasses import replace

import pytest
import torch
from torch import Tensor

from transformers_qaig.rounding.gptq import gptq
from transformers_qaig.rounding.hessian import Hessian, second_moment
from transformers_qaig.rounding.quant_grid import QuantizedWeight, minmax_grid
from transformers_qaig.rounding.scale_refit import refit_scales

N, K, GROUP = 24, 96, 16  # groups small enough that it gains 18 to 28 % with any data


def _case() -> tuple[Tensor, Hessian, QuantizedWeight]:
    weight = torch.randn(N, K)
    x = torch.randn(1, 300, 24) @ torch.randn(24, K) + 0.3 * torch.randn(1, 300, K) + 0.5
    hessian = Hessian.of(second_moment([(x, torch.ones(1, 300))]))
    grid = minmax_grid(weight, bits=2, group_size=GROUP, sym=False, storage_dtype=torch.float32)
    return weight, hessian, gptq(weight, hessian, grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_gets_worse_and_most_get_better(dtype: torch.dtype) -> None:
    weight, hessian, rounding = _case()
    refitted = refit_scales(weight, hessian, rounding, dtype)
    before, after = (hessian.loss(r.values - weight) for r in (rounding, refitted))
    assert (after <= before).all()
    assert after.sum() < 0.9 * before.sum()
    assert torch.equal(refitted.codes, rounding.codes)
    changed = refitted.grid.scale != rounding.grid.scale
    assert torch.equal(refitted.grid.scale[changed], refitted.grid.scale[changed].to(dtype).float())


def test_equals_least_squares_row_by_row_times_a_gain() -> None:
    weight, hessian, rounding = _case()
    refitted = refit_scales(weight, hessian, rounding, torch.float32)
    root = torch.linalg.cholesky(hessian.moment.double() + 1e-9 * torch.eye(K)).T  # e H eᵀ = ‖root e‖²
    levels = rounding.grid.grouped(rounding.codes.float()) - rounding.grid.zero_point.unsqueeze(-1)
    for row in range(N):
        columns = torch.block_diag(*levels[row].double()).T  # [K, G]
        scale = torch.linalg.lstsq(root @ columns, root @ weight[row].double()).solution
        y, y_q = root @ weight[row].double(), root @ columns @ scale
        scale = scale * (y @ y) / (y @ y_q)
        if torch.equal(refitted.grid.scale[row], rounding.grid.scale[row]):
            continue  # it was not better
        torch.testing.assert_close(refitted.grid.scale[row].double(), scale, rtol=0.02, atol=1e-3)


def test_outputs_are_as_large_as_they_were() -> None:
    weight, hessian, rounding = _case()
    refitted = refit_scales(weight, hessian, rounding, torch.float32)
    changed = (refitted.grid.scale != rounding.grid.scale).any(-1)
    along = ((weight @ hessian.moment) * refitted.values).sum(-1) / ((weight @ hessian.moment) * weight).sum(-1)
    torch.testing.assert_close(along[changed], torch.ones_like(along[changed]), rtol=1e-3, atol=1e-3)


def test_groups_without_codes_or_signal_keep_their_scale() -> None:
    weight, hessian, rounding = _case()
    codes = rounding.codes.clone()
    codes[:, :GROUP] = rounding.grid.zero_point[:, :1].to(torch.uint8)  # all values zero
    refitted = refit_scales(weight, hessian, replace(rounding, codes=codes), torch.float32)
    assert torch.isfinite(refitted.grid.scale).all()
    silent = Hessian.of(torch.zeros(K, K))
    assert torch.equal(refit_scales(weight, silent, rounding, torch.float32).grid.scale, rounding.grid.scale)
