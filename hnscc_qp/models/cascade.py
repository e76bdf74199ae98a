"""Primary and secondary as one module: a window is tumor if both stages call it tumor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hnscc_qp.errors import CheckpointError
from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.models.dense import DenseCascade, DenseClassifier
from hnscc_qp.models.networks import WindowClassifier, fold_batch_norms


class Cascade(nn.Module):
    """Both stages of the window recipe, for inference; the primary alone if there is no secondary.

    Tang et al. 2022, §2.4–2.5.
    """

    def __init__(self, primary: WindowClassifier, secondary: WindowClassifier | None) -> None:
        """Copy the stages for inference; later changes to them are not seen."""
        super().__init__()
        self.primary = fold_batch_norms(primary)
        self.secondary = None if secondary is None else fold_batch_norms(secondary)
        self.eval()

    @torch.inference_mode()
    def call_tumor(self, windows: Tensor) -> Tensor:
        """Call windows, (n, 3, 40, 40) uint8 RGB at 1.0 µm/px; (n,) bool, true where both stages say tumor.

        The secondary sees the primary's positives only, a few of a hundred windows on most slides.
        """
        tumor = _says_tumor(self.primary, windows)
        if self.secondary is not None and tumor.any():
            positives = tumor.nonzero().squeeze(1)
            tumor[positives] = _says_tumor(self.secondary, windows[positives])
        return tumor


AnyCascade = Cascade | DenseCascade
"""Both stages, of either recipe."""


def make_cascade(primary: Classifier, secondary: Classifier | None) -> AnyCascade:
    """Join two stages of one recipe.

    Raises:
        CheckpointError: their recipes differ.
    """
    if isinstance(primary, WindowClassifier) and not isinstance(secondary, DenseClassifier):
        return Cascade(primary, secondary)
    if isinstance(primary, DenseClassifier) and not isinstance(secondary, WindowClassifier):
        return DenseCascade(primary, secondary)
    assert secondary is not None
    raise CheckpointError(
        f"the primary has the recipe '{primary.recipe}', the secondary '{secondary.recipe}'; "
        "train the secondary again"
    )


def _says_tumor(classifier: nn.Module, windows: Tensor) -> Tensor:
    logits: Tensor = classifier(windows)
    return logits[:, 1] > logits[:, 0]
