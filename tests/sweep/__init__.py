"""The sweep over model families: `python -m tests.sweep` quantizes a tiny model of each class of Transformers."""
