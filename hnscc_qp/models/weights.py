"""Pretrained weights as files: torchvision's own, downloaded once, or safetensors beside the study."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hnscc_qp.errors import WeightsError
from hnscc_qp.files import sha256_file

_DOWNLOAD_TIMEOUT_S = 10.0
_ATTEMPTS = 3


def find_weights(network_name: str, weights: str, *, imagenet_url: str) -> Path:
    """Find the file with the weights of a network; torchvision's is downloaded unless it is there.

    Args:
        network_name: as in `networks.NETWORKS`.
        weights: `imagenet`, a safetensors file, or a folder. In a folder, `<network>.safetensors` or
            `<network>-<anything>.safetensors` is taken, else torchvision's own file, such as
            `resnet50-0676ba61.pth`.
        imagenet_url: where torchvision has its weights.

    Raises:
        WeightsError: there is no such file, or it can't be downloaded.
    """
    if weights == "imagenet":
        return _cached(imagenet_url)
    path = Path(weights)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, network_name, file_name_of(imagenet_url))
    raise WeightsError(
        f'there are no weights at {path}; correct the path, or set weights = "imagenet" or "none"'
    )


def read_weights(path: Path, *, imagenet_url: str) -> dict[str, Tensor]:
    """Read tensors by name: safetensors, or torchvision's own file if its hash is the one it is known by.

    Raises:
        WeightsError: it is neither, or damaged.
    """
    if path.name == file_name_of(imagenet_url):
        if not _has_named_hash(path):
            raise WeightsError(f"{path} is damaged (its hash is not in its name); download it again")
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return tensors
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} can't be read as safetensors ({error}); convert the weights to safetensors, "
            'or set weights = "imagenet" or "none"'
        ) from error


def file_name_of(url: str) -> str:
    """The last part of a URL's path."""
    return PurePosixPath(urlparse(url).path).name


def _in_folder(folder: Path, network_name: str, torchvision_name: str) -> Path:
    found = sorted(
        {*folder.glob(f"{network_name}.safetensors"), *folder.glob(f"{network_name}-*.safetensors")}
    )
    if len(found) > 1:
        raise WeightsError(
            f"{folder} holds several weights of {network_name}: {', '.join(path.name for path in found)}; "
            "leave one of them there"
        )
    if found:
        return found[0]
    if (folder / torchvision_name).is_file():
        return folder / torchvision_name
    raise WeightsError(
        f"{folder} holds no weights of {network_name}; put {network_name}.safetensors or torchvision's "
        f"{torchvision_name} there"
    )


def _cached(url: str) -> Path:
    """torchvision's file in torch's own cache, where a damaged one is replaced."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name_of(url)
    if not path.exists() or not _has_named_hash(path):
        _download(url, path)
    return path


def _has_named_hash(path: Path) -> bool:
    return sha256_file(path).startswith(_hash_digits(path))


def _hash_digits(path: Path) -> str:
    """torchvision's file names end in the first digits of the hash."""
    return path.stem.rpartition("-")[2]


def _download(url: str, path: Path) -> None:
    """Fetch to a file beside, check its hash, rename: an interrupted download leaves nothing half done.

    A connection that breaks is tried again; the hash tells a body that ended early from a whole one.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
                torch.hub.download_url_to_file(url, str(path), _hash_digits(path), progress=False)
        except (OSError, RuntimeError) as error:
            if attempt < _ATTEMPTS and _was_interrupted(error):
                continue
            reason = getattr(error, "reason", None) or error
            raise WeightsError(
                f"ImageNet weights can't be downloaded from {url} ({reason}); run it again, pass --weights "
                'FILE or DIR (safetensors, or that file), or weights = "none" to train from scratch'
            ) from error
        else:
            return


def _was_interrupted(error: Exception) -> bool:
    """Tell a download that broke off, of which another attempt may come through, from one refused."""
    # torch.hub raises RuntimeError for a wrong hash alone; urllib's own errors have a `reason`.
    return isinstance(error, RuntimeError | ConnectionError | TimeoutError)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let no connection hang; torch's download knows no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
