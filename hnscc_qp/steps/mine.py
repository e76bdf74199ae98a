"""`mine`: the primary's false positives on the negative development slides."""

from __future__ import annotations

import time

from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.geometry import WINDOW_MPP
from hnscc_qp.models.checkpoint import PRIMARY, load_model
from hnscc_qp.models.device import choose_device
from hnscc_qp.patches.dataset import Part, PatchRow, rows_table, write_patches
from hnscc_qp.patches.labels import Label
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.steps import patches, tiles
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest, placement
from hnscc_qp.steps.hardtiles import write_hard_tiles
from hnscc_qp.training.mine import MinedWindows, mine_slide

STEP = "mine"
_REASON = "false positive of the primary"


def mine_negatives(context: Context) -> Manifest:
    """Scan the negative slides of training and validation patients (Tang et al. 2022, §2.4).

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
    wanted = [
        image
        for image in context.project.images
        if (member := members.get(image.entry_id)) and not member.positive and member.side is not Side.TEST
    ]
    settings = context.study.settings("mining", "scoring") | {"stain": context.stain}
    inputs = trained["outputs"] | {"split": split.seal}
    if context.study.training.recipe == "dense":
        # Its tumor windows come from there.
        inputs |= context.generation.need(tiles.STEP, command=f"hnscc-qp tiles {context.study.path}")[
            "outputs"
        ]
    inputs |= {f"image {image.entry_id}": placement(image) for image in wanted}
    if done := context.finished(STEP, settings, inputs):
        return done
    dense = context.study.training.recipe == "dense"
    primary, _ = load_model(
        context.generation.step(PRIMARY), recipe=context.study.training.recipe, stain=context.stain
    )
    device = choose_device(context.study.device)

    def mine(image: ImageEntry) -> tuple[list[PatchRow], MinedWindows]:
        slide = context.open_development(image, split)
        found = mine_slide(
            slide,
            primary=primary,
            device=device,
            settings=context.study.mining,
            scoring=context.study.scoring,
            progress=context.progress,
        )
        scale_x, scale_y = slide.pixel_size.qupath_px_per(WINDOW_MPP)
        member = members[image.entry_id]
        return [
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
                reason=_REASON,
                image_sha256=context.fingerprint(image),
            )
            for x, y in found.origins
        ], found

    mined, failed = context.each_image(wanted, mine, doing="mining hard negatives")
    rows = [row for some, _ in mined.values() for row in some]
    folder = context.generation.step(STEP)
    written = write_patches(
        folder,
        Part.DEVELOPMENT,
        ((rows_table(some), found.pixels) for some, found in mined.values()),
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
            "windows": sum(found.scanned for _, found in mined.values()),
            "false positives": {
                str(side): sum(row.side is side for row in rows) for side in (Side.TRAIN, Side.VALIDATION)
            },
        },
        started=started,
        failed=failed,
    )
    write_manifest(folder, manifest)
    return manifest
