"""Arguments of `transformers-qaig export`."""

from __future__ import annotations

from pathlib import Path

from .options import Commands, add_command

FORMATS = ("compressed-tensors", "mlx", "gguf", "awq", "gptq")


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    command = add_command(
        commands,
        "export",
        "MODEL OUT --format FORMAT",
        "write a quantized model in the format of another library",
        "Writes a quantized model in the format of vLLM, MLX, llama.cpp or others. No weight is rounded again.\n"
        "What the format cannot hold is refused before anything is written, with what would make it possible.",
        "  transformers-qaig export out/w4 out/w4-ct --format compressed-tensors\n"
        "  transformers-qaig export out/mixed out/mixed-ct --format compressed-tensors --for vllm\n"
        "  transformers-qaig export out/w3 out/w3-mlx --format mlx\n"
        "  transformers-qaig export out/w4 out/w4-gguf --format gguf",
    )
    command.add_argument("model", metavar="MODEL", help="folder of a quantized model")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    command.add_argument("--format", choices=FORMATS, required=True, help="what to write; see docs/guides/export.md")
    engines = "transformers or vllm; mlx-vlm; llama.cpp; vllm or openvino; vllm or gptqmodel"
    command.add_argument(
        "--for",
        dest="engine",
        metavar="ENGINE",
        help=f"who must be able to read it (default: the format's first): {engines}",
    )
