"""Arguments of `transformers-qaig evaluate`."""

from __future__ import annotations

from pathlib import Path

from .options import Commands, add_command, add_loading


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    command = add_command(
        commands,
        "evaluate",
        "MODEL",
        "how many answers survive, on your conversations",
        "Reads every answer of a data set with MODEL and counts those that it would give itself.\n"
        "With --reference, also compares MODEL's predictions with those of the full-precision model.",
        "  transformers-qaig evaluate out/w3 --dataset chats.jsonl --reference Qwen/Qwen2.5-VL-7B-Instruct\n"
        "  transformers-qaig evaluate out/w3 --dataset org/name:test --columns prompt=q response=a task=category\n"
        "  transformers-qaig evaluate out/w3 --dataset chats.jsonl --reference path/to/full --html changed.html\n"
        "  transformers-qaig evaluate out/w3 --dataset chats.jsonl --adapter out/adapter",
    )
    command.add_argument("model", metavar="MODEL", help="folder or Hub id of a model, quantized by any method or not")
    command.add_argument("data", metavar="DATA", nargs="?", help="the same as --dataset DATA")
    command.add_argument(
        "--dataset", metavar="DATA", help=".json or .jsonl file with answers, folder of a data set, or Hub id"
    )
    command.add_argument(
        "--columns", nargs="+", metavar="PART=COLUMN",
        help="columns of DATA: of image, prompt, response, task and others (default: found by name)",
    )  # fmt: skip
    command.add_argument("--reference", metavar="FULL", help="folder or Hub id of the model to compare with")
    command.add_argument(
        "--baseline", metavar="OTHER", help="with --reference: another quantized model, whose KL MODEL's is divided by"
    )
    command.add_argument("--adapter", metavar="PATH", help="folder or Hub id of a PEFT adapter, for MODEL alone")
    command.add_argument("--num-samples", type=int, default=128, metavar="N", help="conversations (default: 128)")
    command.add_argument("--seed", type=int, default=0, help="seed of their choice (default: 0)")
    command.add_argument(
        "--batch-size", type=int, metavar="N", help="questions at once (default: what memory has room for, at most 32)"
    )
    command.add_argument("--device", help="where to compute (default: the first accelerator, else the CPU)")
    output = command.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to a file")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with the questions that changed")
    output.add_argument("--plot", type=Path, metavar="FILE", help="draw figures by task; needs matplotlib")
    output.add_argument("--card", action="store_true", help="add the figures to the card of MODEL, a folder")
    output.add_argument(
        "--changes", type=int, default=20, metavar="N", help="questions that changed to describe (default: 20)"
    )
    add_loading(command)
