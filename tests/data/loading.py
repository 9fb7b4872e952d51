"""A conversation about a picture or a video, and one sample loaded."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_qaig.data.samples import load_samples


def conversation(image: Any, question: str = "how many cats are there ?", answer: str = "2") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def one(dataset: Any, processor: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    (sample,) = load_samples(dataset, processor, num_samples=1, seed=0, **kwargs)
    return sample


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def asked(video: Any, **part: Any) -> list[dict[str, Any]]:
    content = [{"type": "video", "video": video, **part}, {"type": "text", "text": "what happens ?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "a red cat"}]


def frames_of(array: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in array]
