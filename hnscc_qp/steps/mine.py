"""`mine`: the primary's false positives on the negative development slides, and what review rejected."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import STEP_PX, WINDOW_MPP
from hnscc_qp.models.checkpoint import PRIMARY, load_model
from hnscc_qp.models.device import choose_device
from hnscc_qp.patches.dataset import PatchRow, rows_table, write_patches
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.seal import Member
from hnscc_qp.patches.split import Side
from hnscc_qp.patches.stored import Part
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.review.verdicts import LessonKind
from hnscc_qp.steps import patches, tiles
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest, placement
from hnscc_qp.steps.hardtiles import write_hard_tiles
from hnscc_qp.steps.negatives import negative_windows, read_windows
from hnscc_qp.training.mine import MinedWindows, mine_slide

STEP = "mine"
_REASON = "false positive of the primary"
_REJECTED = "rejected in review"


def mine_negatives(context: Context) -> Manifest:
    """Scan the negative slides of training and validation patients (Tang et al. 2022, §2.4).

    A generation that `retrain` makes also takes the nontumor tissue of their positive slides
    (`mining.positive_slides`), and every window of the regions that reviewers rejected.

    Raises:
        StepError: there is no primary yet.
        HnsccQpError: not one slide could be scanned.
    """
    started = time.time()
    trained = context.generation.need(
        PRIMARY, command=f"hnscc-qp train {context.study.path} --stage {PRIMARY}"
    )
    split = read_members(context.generation.step(patches.STEP))
    members = split.by_entry
    wanted = [image for image in context.project.images if _is_mined(context, image, members)]
    settings = context.study.settings("mining", "scoring") | {"stain": context.stain}
    del settings["mining"]["keep_secondary"]  # it decides nothing here
    inputs = trained["outputs"] | {"split": split.seal}
    if context.study.training.recipe == "dense":
        # Its tumor windows come from there.
        inputs |= context.generation.need(tiles.STEP, command=f"hnscc-qp tiles {context.study.path}")[
            "outputs"
        ]
    inputs |= {f"image {image.entry_id}": placement(image) for image in wanted}
    # Annotations decide what on a positive slide is nontumor, and where review rejected.
    labelled = [image for image in wanted if members[image.entry_id].positive or _rejected(context, image)]
    inputs |= {f"annotations {image.entry_id}": context.fingerprint(image) for image in labelled}
    if done := context.finished(STEP, settings, inputs):
        return done
    dense = context.study.training.recipe == "dense"
    primary, _ = load_model(
        context.generation.step(PRIMARY), recipe=context.study.training.recipe, stain=context.stain
    )
    device = choose_device(context.study.device)

    def mine(image: ImageEntry) -> tuple[list[PatchRow], NDArray[np.uint8], int]:
        slide = context.open_development(image, split)
        member = members[image.entry_id]
        found = MinedWindows.none()
        if _is_scanned(context, member):
            found = mine_slide(
                slide,
                primary=primary,
                device=device,
                settings=context.study.mining,
                scoring=context.study.scoring,
                progress=context.progress,
            )
        origins, pixels, reasons = found.origins, found.pixels, [_REASON] * len(found)
        if image in labelled:
            nontumor, rejected = negative_windows(context, image, slide, positive=member.positive)
            kept = np.flatnonzero(nontumor[tuple(found.origins.T[::-1] // STEP_PX)])
            origins, pixels, reasons = origins[kept], pixels[kept], reasons[: len(kept)]
            there = set(map(tuple, origins.tolist()))
            new = np.array([one for one in rejected.tolist() if tuple(one) not in there], np.int64)
            new, of_new = read_windows(slide, new.reshape(-1, 2))
            origins, pixels = np.concatenate([origins, new]), np.concatenate([pixels, of_new])
            reasons += [_REJECTED] * len(new)
        scale_x, scale_y = slide.pixel_size.qupath_px_per(WINDOW_MPP)
        rows = [
            PatchRow(
                entry_id=image.entry_id,
                slide=image.name,
                patient=member.patient,
                side=member.side,
                x_px=int(x),
                y_px=int(y),
                x_qupath=float(x * scale_x),
                y_qupath=float(y * scale_y),
                label=Label.NONTUMOR,
                reason=reason,
                image_sha256=context.fingerprint(image),
            )
            for (x, y), reason in zip(origins, reasons, strict=True)
        ]
        return rows, pixels, found.scanned

    mined, failed = context.each_image(wanted, mine, doing="mining hard negatives")
    rows = [row for some, _, _ in mined.values() for row in some]
    folder = context.generation.step(STEP)
    written = write_patches(
        folder,
        Part.DEVELOPMENT,
        ((rows_table(some), pixels) for some, pixels, _ in mined.values()),
        count=len(rows),
        split=split,
    )
    if dense:
        written |= write_hard_tiles(context, folder, rows, split)
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={f"mined {name}": value for name, value in written.items()},
        counts={
            "images": len(mined),
            "windows": sum(scanned for _, _, scanned in mined.values()),
            "false positives": {
                str(side): sum(row.side is side for row in rows) for side in (Side.TRAIN, Side.VALIDATION)
            },
            "rejected in review": sum(row.reason == _REJECTED for row in rows),
        },
        started=started,
        failed=failed,
    )
    write_manifest(folder, manifest)
    return manifest


def _is_mined(context: Context, image: ImageEntry, members: Mapping[str, Member]) -> bool:
    member = members.get(image.entry_id)
    if member is None or member.side is Side.TEST:
        return False
    return _is_scanned(context, member) or _rejected(context, image)


def _is_scanned(context: Context, member: Member) -> bool:
    """Whether the primary looks at the whole slide: at negative ones, later on at positive ones too."""
    wish = context.study.mining.positive_slides
    return not member.positive or wish == "always" or (wish == "retrain" and bool(context.generation.parent))


def _rejected(context: Context, image: ImageEntry) -> bool:
    taught = context.lessons.get(image.entry_id)
    return taught is not None and bool(taught.of(LessonKind.HARD_NEGATIVE))
