"""Whether a generation's secondary is part of its cascade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hnscc_qp.models.checkpoint import PRIMARY, load_model
from hnscc_qp.patches.split import Side
from hnscc_qp.steps.context import Context
from hnscc_qp.steps.lessons import Lesson
from hnscc_qp.training.report import Predictions
from hnscc_qp.training.worth import keeps, weigh


def decide_use(
    context: Context, lesson: Lesson, said: Mapping[str, Predictions], device: torch.device
) -> tuple[dict[str, Any], str]:
    """Hold the secondary against the primary on the validation windows that it was judged on.

    Args:
        context: of the study.
        lesson: of the secondary.
        said: what the secondary says, by side.
        device: where to compute.

    Returns:
        What the manifest is to say of it: `kept`, and the figures; and the reason in one line.
    """
    primary, _ = load_model(
        context.generation.step(PRIMARY), recipe=context.study.training.recipe, stain=context.stain
    )
    side = str(Side.VALIDATION)
    worth = weigh(lesson.predict(primary, device)[side], said[side])
    kept, reason = keeps(worth, context.study.mining.keep_secondary)
    return {"kept": kept, "beside a stricter primary": worth.as_json()}, reason
