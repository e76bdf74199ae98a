"""How a recipe's settings shape a training: its optimizer, its learning rate, its length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hnscc_qp.models.checkpoint import Classifier
from hnscc_qp.study import DenseRecipe, Training, WindowRecipe

_WARM_UP = 0.05
"""Share of a dense training in which its learning rate rises."""


@dataclass(slots=True)
class Course:
    """How the settings of a recipe bear on the loop."""

    epochs: int
    patience: int
    """Epochs without a better validation loss before training stops."""
    averaging: float
    """Decay of the running average of the weights; 0 for none."""
    learning_rate: Callable[[int, int], float]
    """Of epoch (from 1) and batch."""
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, classifier: Classifier, settings: Training, batches: int) -> Course:
        """The course of a classifier's recipe, with so many batches in an epoch."""
        if classifier.recipe == "window":
            return cls._of_windows(classifier, settings.window)
        return cls._of_tiles(classifier, settings.dense, batches)

    @classmethod
    def _of_windows(cls, classifier: nn.Module, recipe: WindowRecipe) -> Course:
        def learning_rate(epoch: int, _: int) -> float:
            return recipe.learning_rate * recipe.decay ** ((epoch - 1) // recipe.decay_epochs)

        optimizer = torch.optim.Adam(_groups(classifier, recipe.weight_decay), lr=recipe.learning_rate)
        return cls(recipe.epochs, recipe.patience, 0.0, learning_rate, optimizer)

    @classmethod
    def _of_tiles(cls, classifier: nn.Module, recipe: DenseRecipe, batches: int) -> Course:
        total = recipe.epochs * batches

        def learning_rate(epoch: int, batch: int) -> float:
            done = ((epoch - 1) * batches + batch + 1) / total
            falling = (1 + math.cos(math.pi * done)) / 2
            return recipe.learning_rate * falling * min(1.0, done / _WARM_UP)

        optimizer = torch.optim.AdamW(_groups(classifier, recipe.weight_decay), lr=recipe.learning_rate)
        # A rate that falls to the end of the last epoch is not cut short.
        return cls(recipe.epochs, recipe.epochs, recipe.averaging, learning_rate, optimizer)


def _groups(classifier: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay holds for weights, not for biases and batch norms, as in the paper's MATLAB."""
    parameters = list(classifier.parameters())
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
