"""Refuses to shard packed layers over several devices."""

from __future__ import annotations

from .arguments import loading_arguments


def refuse_tensor_parallel() -> None:
    """Raises `NotImplementedError` if the running `from_pretrained` would shard tensors over devices.

    Transformers shards every parameter along one of its own dimensions. The words of a packed row are one bit stream.
    Its scales and zero points belong to groups of columns. Zero points are packed along the rows.
    """
    config = loading_arguments().get("distributed_config")
    size = getattr(config, "tp_size", None) or 1
    if size > 1:
        raise NotImplementedError(
            f"`tp_plan` with {size} processes: packed layers cannot be sharded, since their words, scales and "
            "zero points are packed along different dimensions. Use `device_map='auto'` in one process to spread the "
            "layers, or load the whole model in every process with `device_map={'': device}`."
        )
