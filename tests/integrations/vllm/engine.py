"""Starts vLLM's OpenAI-compatible server on the loopback interface, asks it, and stops it in any case."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = os.environ.get("QAIG_VLLM_PYTHON", "")
"""The Python of `.venv-vllm`, which `make vllm` names."""
IS_SHORT = os.environ.get("QAIG_VLLM_SHORT") == "1"
START_SECONDS, ANSWER_SECONDS = 900, 120
NEW_TOKENS = 12


def environment() -> dict[str, str]:
    """Of a process of the engine: one thread, one worker, nothing from the network, no place outside the machine."""
    return {
        **os.environ,
        "PYTHONPATH": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }


@contextmanager
def served(folder: Path, log: Path, *options: str, dtype: str = "float32") -> Iterator[str]:
    """Yields the server's address. It and all its processes are gone afterwards, whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype,
        "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--distributed-executor-backend", "uni",
        "--served-model-name", "model", *options,
    ]  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), cwd=log.parent, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(server, address, log)
        yield address
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the engine ended with {server.returncode}:\n{log.read_text()[-6000:]}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the engine was not ready after {START_SECONDS} s:\n{log.read_text()[-6000:]}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and every process in its session."""
    for sign, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    server.wait(20)


def ask(address: str, picture: Any, question: str) -> list[int]:
    """Asks one question about a picture, with greedy decoding; returns the answer's tokens."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": question}]
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "return_token_ids": True,
    }
    return _tokens(f"{address}/v1/chat/completions", body)


def complete(address: str, prompt: list[int]) -> list[int]:
    """Returns the tokens that follow some, with greedy decoding."""
    body = {
        "model": "model",
        "prompt": prompt,
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return _tokens(f"{address}/v1/completions", body)


def _tokens(address: str, body: dict[str, Any]) -> list[int]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
        return json.load(reply)["choices"][0]["token_ids"]


def data_url(picture: Any) -> str:
    """Returns a picture as a PNG in a URL."""
    stored = io.BytesIO()
    picture.save(stored, "PNG")
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()


def ask_all(address: str, questions: list[tuple[Any, str]]) -> list[list[int]]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda question: ask(address, *question), questions))
