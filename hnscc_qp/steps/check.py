"""`patches --check`: what is wrong with the labels, before anything is learnt from them.

It changes nothing of the study: all it writes is a report in `check/` beside the study file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hnscc_qp.errors import AnnotationError, CohortError, HnsccQpError, SlideReadError
from hnscc_qp.files import write_json
from hnscc_qp.generation import make_manifest
from hnscc_qp.geometry import WINDOW_MPP, Grid
from hnscc_qp.patches.cases import ImageCase, SkippedImage, case_of
from hnscc_qp.patches.contactsheet import (
    KINDS,
    DrawnShapes,
    Picture,
    SheetRow,
    draw_picture,
    sample_windows,
    write_sheet,
)
from hnscc_qp.patches.labels import Label, WindowLabels, label_windows
from hnscc_qp.patches.lint import Finding, Severity, lint_annotations, lint_windows
from hnscc_qp.patches.neardup import Fingerprint, fingerprint_slide, near_duplicates
from hnscc_qp.patches.split import Side
from hnscc_qp.qupath.objects import PathObject
from hnscc_qp.qupath.project import ImageEntry
from hnscc_qp.slides.reader import Slide, require_mpp
from hnscc_qp.slides.tissue import find_tissue
from hnscc_qp.steps.cohort import check_classes, sides_of
from hnscc_qp.steps.context import Context, Manifest

STEP = "check"
SHEET_FILE = "contact-sheet.html"
REPORT_FILE = "check.json"
_EACH = 24
"""Pictures of a kind."""
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found out about one image."""

    entry: ImageEntry
    objects: tuple[PathObject, ...]
    case: ImageCase | None
    """None if it takes no part, or contradicts itself."""
    slide: Slide
    grid: Grid
    windows: WindowLabels | None
    fingerprint: Fingerprint | None
    findings: tuple[Finding, ...]


def check_labels(context: Context) -> Manifest:
    """Look for contradictions, and make the contact sheet.

    An image that `patches` would refuse is among the manifest's `failed`.

    Raises:
        HnsccQpError: not one image could be looked at.
    """
    started = time.time()
    checked, failed = context.each_image(
        context.project.images, lambda image: _check(context, image), doing="checking labels"
    )
    findings = [finding for one in checked.values() for finding in one.findings]
    findings += [Finding(Severity.ERROR, "can't be read", name, reason) for name, reason in failed.items()]
    cases = {entry_id: one.case for entry_id, one in checked.items() if one.case}
    sides, problems = _sides(context, checked, cases)
    findings += problems + _duplicates(checked, sides)
    findings.sort(key=lambda finding: (_RANK[finding.severity], finding.image, finding.rule))
    rows = [_row(one, sides.get(one.case.patient) if one.case else None) for one in checked.values()]
    folder = context.study.root / STEP
    pictures, unreadable = _pictures(context, checked)
    findings += unreadable
    write_sheet(
        folder / SHEET_FILE, study_name=context.study.name, pictures=pictures, findings=findings, rows=rows
    )
    refused = failed | {
        finding.image: finding.message for finding in findings if finding.severity is Severity.ERROR
    }
    manifest = make_manifest(
        step=STEP,
        settings=context.study.settings("classes", "truth", "cohort", "split", "patches"),
        inputs={},
        counts={
            "images": len(checked),
            "findings": {
                severity.value: sum(finding.severity is severity for finding in findings)
                for severity in Severity
            },
            "windows": {row.image: dict(row.windows) for row in rows},
            "pictures": {kind: len(pictures[kind]) for kind in KINDS},
        },
        started=started,
        failed=refused,
    )
    manifest |= {
        "findings": [finding.as_json() for finding in findings],
        "files": [str(folder / SHEET_FILE), str(folder / REPORT_FILE)],
    }
    write_json(folder / REPORT_FILE, manifest)
    return manifest


def _check(context: Context, image: ImageEntry) -> _Checked:
    study = context.study
    objects = context.objects(image)
    slide = context.open_as_scanned(image)
    require_mpp(slide, WINDOW_MPP)
    grid = Grid.of_method(slide.size, slide.pixel_size)
    unreadable: list[SlideReadError] = []
    tissue = find_tissue(slide, grid, on_unreadable=unreadable.append)  # as when patches are cut
    findings = lint_annotations(
        objects, image=image.name, size=slide.size, grid=grid, tissue=tissue, classes=study.classes
    )
    if unreadable:
        places = f"{len(unreadable)} places can't be decoded and are taken for no tissue ({unreadable[0]})"
        findings.append(Finding(Severity.WARNING, "damaged", image.name, places))
    if not tissue.any():
        findings.append(Finding(Severity.WARNING, "no tissue", image.name, "no tissue was found on it"))
    case: ImageCase | None = None
    windows: WindowLabels | None = None
    try:
        found = case_of(image, objects, cohort=study.cohort, classes=study.classes)
        if isinstance(found, SkippedImage):
            findings.append(Finding(Severity.WARNING, "takes no part", image.name, f"it {found.reason}"))
        else:
            case = found
            findings += [Finding(Severity.NOTE, "status", image.name, note) for note in case.notes]
            windows = label_windows(
                objects,
                name=image.name,
                size=slide.size,
                grid=grid,
                tissue=tissue,
                classes=study.classes,
                positive=case.positive,
                settings=study.patches,
            )
            findings += lint_windows(windows, image=image.name, positive=case.positive)
    except (CohortError, AnnotationError) as error:
        findings.append(Finding(Severity.ERROR, "contradiction", image.name, str(error)))
    return _Checked(
        image, objects, case, slide, grid, windows, fingerprint_slide(slide, grid, tissue), tuple(findings)
    )


def _sides(
    context: Context, checked: Mapping[str, _Checked], cases: Mapping[str, ImageCase]
) -> tuple[dict[str, Side], list[Finding]]:
    """Patient → side, and what keeps the study from having any."""
    problems: list[Finding] = []
    sides: dict[str, Side] = {}
    everything = context.study.name
    try:
        check_classes(context, (one.objects for one in checked.values()), complete=True)
    except AnnotationError as error:
        problems.append(Finding(Severity.ERROR, "classes", everything, str(error)))
    try:
        sides = sides_of(context, cases.values())
    except HnsccQpError as error:
        problems.append(Finding(Severity.ERROR, "split", everything, str(error)))
    return sides, problems


def _duplicates(checked: Mapping[str, _Checked], sides: Mapping[str, Side]) -> list[Finding]:
    """Slides that look the same though they are of different patients."""
    looks = {entry_id: one.fingerprint for entry_id, one in checked.items() if one.fingerprint}
    findings = []
    for first, second, apart in near_duplicates(looks):
        one, other = checked[first], checked[second]
        if not (one.case and other.case) or one.case.patient == other.case.patient:
            continue
        of_one, of_other = sides.get(one.case.patient), sides.get(other.case.patient)
        across = of_one is not of_other
        message = f"looks like {other.entry.name} ({apart:.0%} of the hash differs)".replace("%", " %")
        if across:
            message += f" but is for {of_one} and the other for {of_other}; give them one patient"
        else:
            message += " but is said to be of another patient"
        severity = Severity.WARNING if across else Severity.NOTE
        findings.append(Finding(severity, "near duplicate", one.entry.name, message))
    return findings


def _row(one: _Checked, side: Side | None) -> SheetRow:
    counts: Counter[str] = Counter()
    if one.windows is not None:
        for label in Label:
            for reason, count in one.windows.count_reasons(label).items():
                counts[f"{label.name.lower()}: {reason}"] += count
    return SheetRow(one.entry.name, str(side) if side else "", counts)


def _pictures(
    context: Context, checked: Mapping[str, _Checked]
) -> tuple[dict[str, list[Picture]], list[Finding]]:
    labelled = {entry_id: one.windows for entry_id, one in checked.items() if one.windows is not None}
    chosen = sample_windows(labelled, each=_EACH, seed=context.study.patches.seed)
    drawn = {
        entry_id: DrawnShapes.of(checked[entry_id].objects, context.study.classes) for entry_id in labelled
    }
    pictures: dict[str, list[Picture]] = {kind: [] for kind in KINDS}
    unreadable: dict[str, Finding] = {}
    with context.progress.task(
        "drawing pictures", total=sum(map(len, chosen.values())), unit="windows"
    ) as task:
        for kind, picked in chosen.items():
            for entry_id, index in picked:
                one = checked[entry_id]
                try:
                    picture = draw_picture(
                        one.slide,
                        one.grid,
                        labelled[entry_id],
                        index,
                        image=one.entry.name,
                        drawn=drawn[entry_id],
                    )
                    pictures[kind].append(picture)
                except HnsccQpError as error:
                    unreadable[entry_id] = Finding(
                        Severity.WARNING, "can't be decoded", one.entry.name, str(error)
                    )
                task.advance(note=one.entry.name)
    return pictures, list(unreadable.values())
