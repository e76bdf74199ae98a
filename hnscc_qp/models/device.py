"""Where networks run."""

from __future__ import annotations

import torch

from hnscc_qp.errors import StudyError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is PyTorch's own name, such as `cuda:1`.

    Raises:
        StudyError: the device is unknown or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(
            f"device '{name}' can't be used here ({reason}); set device = \"auto\" in the study"
        ) from error
    return device
