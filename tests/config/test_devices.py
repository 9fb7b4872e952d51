"""Devices and sizes of `max_memory`."""

import numpy as np

from transformers_qaig.config.devices import bytes_by_device


def test_sizes_and_devices_of_max_memory_may_be_numpys() -> None:
    memory = {np.int64(0): np.int64(5), "cpu": "1KB", "disk": np.float32(2.0)}
    assert bytes_by_device(memory) == {0: 5, "cpu": 1000, "disk": 2}
