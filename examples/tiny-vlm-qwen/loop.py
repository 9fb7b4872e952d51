"""The loop that both kinds of training share: a schedule, two optimizers, and a state to go on from."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

FIRST_SEED = 2_000_000
"""Training reads scenes from here on, which nothing else does."""


class Muon(Optimizer):
    """Momentum with orthogonal updates (Muon), in float32: PyTorch's own is in bfloat16, which most CPUs emulate.

    Args:
        parameters: matrices.
        rate: learning rate; an update has the root mean square of one of AdamW's.
    """

    def __init__(self, parameters: list[nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonal(matrix.grad.lerp(state["momentum"], group["momentum"]))
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Returns about the nearest orthogonal matrix, by five Newton-Schulz steps."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def options_of(description: str | None, steps: int, rate: float) -> argparse.ArgumentParser:
    """Returns the options that both scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=rate, help="learning rate; it falls to zero at the last step")
    parser.add_argument("--state", type=Path, required=True, help="file to go on from, written every 100 steps")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long; go on another time")
    return parser


def optimizers_of(module: nn.Module, matrices: list[nn.Parameter], rate: float) -> list[Optimizer]:
    """Returns Muon for the matrices and AdamW for the module's other parameters."""
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    return [AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0), Muon(matrices, rate)]


def train(
    module: nn.Module,
    optimizers: list[Optimizer],
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    options: argparse.Namespace,
) -> bool:
    """Trains from the state, or from the start; returns whether the last step was made.

    Args:
        module: what is trained.
        optimizers: from `optimizers_of`.
        loss_of: step → loss, and figures to print.
        options: those of `options_of`.
    """
    step = _load(options.state, module, optimizers) if options.state.exists() else 0
    start = time.monotonic()
    sums: dict[str, list[float]] = {}
    while step < options.steps and time.monotonic() - start < options.seconds:
        scale = min(1.0, (step + 1) / 50, 2 * (options.steps - step) / options.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * scale
        loss, figures = loss_of(step)
        loss.backward()
        figures |= {"gradient": nn.utils.clip_grad_norm_(module.parameters(), 1.0).item()}
        for optimizer in optimizers:
            optimizer.step()
        module.zero_grad(set_to_none=True)
        step += 1
        for name, value in figures.items():
            sums.setdefault(name, []).append(value)
        if step % 20 == 0:
            told = ", ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in sorted(sums.items()))
            print(f"step {step}: {told}; {time.monotonic() - start:.0f} s", flush=True)
            sums.clear()
        if step % 100 == 0 or step == options.steps:
            _save(options.state, module, optimizers, step)
    return step == options.steps


def _save(path: Path, module: nn.Module, optimizers: list[Optimizer], step: int) -> None:
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": value.contiguous() for name, value in state.items()}
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, {"step": str(step)})
    temporary.replace(path)


def _load(path: Path, module: nn.Module, optimizers: list[Optimizer]) -> int:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        names = list(file.keys())
        module.load_state_dict({n.removeprefix("model/"): file.get_tensor(n) for n in names if n.startswith("model/")})
        for name in names:
            if name.startswith("optimizer/"):
                _, number, index, key = name.split("/")
                states[int(number)].setdefault(int(index), {})[key] = file.get_tensor(name)
    for optimizer, state in zip(optimizers, states):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
