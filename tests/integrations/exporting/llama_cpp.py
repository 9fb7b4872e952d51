"""Asks llama.cpp questions about pictures. It is a process of its own: a failed assertion there ends the process.

python llama_cpp.py FOLDER < questions.json > answers.json
"""

import json
import sys

import xllamacpp


def main(folder: str) -> None:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = f"{folder}/model.gguf", f"{folder}/mmproj.gguf"
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.warmup = 512, 1, 0, False
    settings.cpuparams.n_threads, settings.mmproj_use_gpu, settings.use_jinja = 1, False, True
    server = xllamacpp.Server(settings)
    print(json.dumps([ask(server, **question) for question in json.load(sys.stdin)]))


def ask(server: xllamacpp.Server, picture: str, text: str) -> list[int]:
    """Returns the tokens of a greedy answer."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
    reply = server.handle_chat_completions(
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 12,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 1,
            "cache_prompt": False,
        }
    )
    (choice,) = reply["choices"]
    return [token["id"] for token in choice["logprobs"]["content"]]


if __name__ == "__main__":
    main(sys.argv[1])
