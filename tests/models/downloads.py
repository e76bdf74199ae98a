"""ImageNet weights from a server on this machine, as torchvision publishes them; it may break off."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hnscc_qp.models import networks


def use_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let MobileNet-v2's ImageNet weights lie at this address."""
    architecture = dataclasses.replace(networks._ARCHITECTURES["mobilenet_v2"], imagenet_url=url)
    monkeypatch.setitem(networks._ARCHITECTURES, "mobilenet_v2", architecture)


def publish(folder: Path, network: nn.Module, *, name: str = "network") -> Path:
    """The weights as torchvision publishes them, with the first digits of their hash in the name."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "saved"
    torch.save(network.state_dict(), saved)
    path = folder / f"{name}-{hashlib.sha256(saved.read_bytes()).hexdigest()[:8]}.pth"
    saved.rename(path)
    return path


class BreakingServer(http.server.SimpleHTTPRequestHandler):
    """Sends half of the file and closes, as often as it is told to."""

    breaks = 0
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if type(self).asked > type(self).breaks:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        return None

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[tuple[type[BreakingServer], str]]:
    """A server of the folder's files, and its address."""
    handler = type("Handler", (BreakingServer,), {})
    made = partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
