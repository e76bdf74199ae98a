"""`compare`: AI against manual review, slide by slide, lesion by lesion, reader by reader."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hnscc_qp.errors import CohortError, HnsccQpError, ReadersError, StepError
from hnscc_qp.files import sha256_file, sha256_json
from hnscc_qp.generation import make_manifest, write_manifest
from hnscc_qp.patches.labels import Label, annotated_meanings
from hnscc_qp.patches.seal import SealedSplit
from hnscc_qp.qupath.project import ImageEntry, open_project
from hnscc_qp.review.cohort import set_figures, set_of, sweep
from hnscc_qp.review.comparison import (
    Bound,
    Comparison,
    LeftOut,
    SetName,
    SideName,
    ThresholdResult,
    write_comparison,
)
from hnscc_qp.review.disagreements import list_disagreements
from hnscc_qp.review.measure import MeasuredSlide, SlideFacts, measure_slide
from hnscc_qp.review.readers import Calls, compare_readers, read_calls
from hnscc_qp.review.tabulate import write_tables
from hnscc_qp.scoring.score_map import read_score_map
from hnscc_qp.steps import calibrate, patches, score
from hnscc_qp.steps.cohort import read_members
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.publish import publish
from hnscc_qp.steps.trained import cascade_hash

STEP = "compare"
COMPARISON_FILE = "comparison.json"
_SETS: tuple[SetName, ...] = get_args(SetName)


@dataclass(frozen=True, slots=True)
class ReaderSource:
    """Where a reader's calls come from: a CSV, or a QuPath project with their annotations."""

    name: str | None
    """Of the reader; of a CSV with several, None."""
    path: Path
    is_project: bool = False


def parse_reader(text: str, *, is_project: bool, root: Path | None = None) -> ReaderSource:
    """`NAME=PATH`, or of a CSV `PATH` alone.

    Args:
        text: as people write it.
        is_project: of a QuPath project.
        root: that a relative path counts from; else where we are.

    Raises:
        ReadersError: a project without a name, or nothing there.
    """
    root = root or Path()
    name, equals, path = text.partition("=")
    if not equals or (root / text).exists():
        name, path = "", text
    if is_project and not name:
        raise ReadersError(f"whose annotations are those of {path}? write NAME={path}")
    if not (root / path).exists():
        raise ReadersError(
            f"there is no {root / path}; name a {'QuPath project' if is_project else 'CSV file'}"
        )
    return ReaderSource(name or None, root / path, is_project)


def compare_study(context: Context, *, readers: Sequence[ReaderSource] = ()) -> Manifest:
    """Compare every scored slide with its annotations; `comparison.json`, a CSV of each part, and the report.

    Slides whose status nobody stated are left out, positive slides without an outline are left out of areas
    and lesions; both are counted and named. A slide that can't be measured is named, and the others are
    done.

    Args:
        context: of the study.
        readers: whose calls to compare with, besides those that the study names.

    Raises:
        StepError: there is no threshold yet, or slides were scored again since it was chosen.
        ReadersError: a reader's calls can't be used.
        CohortError: no scored slide takes part in the study.
        HnsccQpError: not one slide can be measured; the first reason.
    """
    started = time.time()
    scored = context.generation.need(score.STEP, command=f"hnscc-qp score {context.study.path}")
    calibrated = context.generation.need(calibrate.STEP, command=f"hnscc-qp calibrate {context.study.path}")
    members = read_members(context.generation.step(patches.STEP))
    _check_fresh(context, scored, calibrated, members)
    named, root = context.study.readers, context.study.root
    sources = [parse_reader(text, is_project=False, root=root) for text in named.calls]
    sources += [parse_reader(text, is_project=True, root=root) for text in named.projects]
    calls = _read_readers(context, [*sources, *readers])
    settings = context.study.settings("classes", "truth") | {
        "patches": {key: context.study.settings("patches")["patches"][key] for key in _ANNOTATION_RULES}
    }
    inputs = (
        dict(scored["outputs"])
        | dict(calibrated["outputs"])
        | {"cohort": members.sha256}
        | {f"reader {name}": sha256_json(dict(sorted(of.items()))) for name, of in calls.items()}
        | _fingerprints(context, scored["outputs"])
    )
    if done := context.finished(STEP, settings, inputs):
        return done
    images, left_out = _taking_part(context, scored["outputs"], members)
    threshold = _threshold(context.generation.step(calibrate.STEP), calibrated)
    measured, failed = context.each_image(
        images, lambda image: _measure(context, image, members, threshold), doing="comparing slides"
    )
    slides = list(measured.values())
    left_out += [LeftOut(name, reason, "everything") for name, reason in failed.items()]
    left_out += [
        LeftOut(one.result.image, "positive, but no tumor is outlined", "areas and lesions")
        for one in slides
        if not one.result.outlined
    ]
    comparison = _compare(context, slides, threshold, left_out=left_out, calls=calls)
    folder = context.generation.step(STEP)
    write_comparison(folder / COMPARISON_FILE, comparison)
    tables = write_tables(folder, comparison)
    published = publish(context, comparison, folder)
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={name: sha256_file(folder / name) for name in (COMPARISON_FILE, *tables)},
        counts=_counts(comparison),
        started=started,
        failed=failed,
        notes=list(comparison.notes),
    )
    manifest["to open"] = [str(path.relative_to(context.generation.path)) for path in published]
    write_manifest(folder, manifest)
    return manifest


_ANNOTATION_RULES = ("nested", "open_shapes", "outside_image", "nontumor_on_positive")


def _check_fresh(context: Context, scored: Manifest, calibrated: Manifest, members: SealedSplit) -> None:
    """The threshold must have been chosen on these scores, and by this truth and split."""
    chosen_by = calibrated["inputs"]
    changed = None
    if any(chosen_by.get(entry) != sha256 for entry, sha256 in scored["outputs"].items()):
        changed = "slides were scored again"
    elif chosen_by.get("cohort") != members.sha256:
        changed = "the cohort has changed"
    if changed:
        raise StepError(
            f"{changed} since the threshold was chosen; run: hnscc-qp calibrate {context.study.path}"
        )


def _fingerprints(context: Context, scored: Mapping[str, str]) -> dict[str, str]:
    """Of every scored image's annotations; one that can't be read is found out when it is measured."""
    found = {}
    for image in context.project.images:
        if image.entry_id in scored:
            try:
                found[f"annotations {image.entry_id}"] = context.fingerprint(image)
            except HnsccQpError:
                found[f"annotations {image.entry_id}"] = "unreadable"
    return found


def _taking_part(
    context: Context, scored: Mapping[str, str], members: SealedSplit
) -> tuple[list[ImageEntry], list[LeftOut]]:
    """Images to compare, and those that can't be, with the reason."""
    images, left_out = [], []
    for image in context.project.images:
        if image.entry_id not in scored:
            left_out.append(LeftOut(image.name, "not scored", "everything"))
        elif image.entry_id not in members.by_entry:
            reason = f"neither a '{context.study.cohort.status}' in its metadata nor a tumor annotation"
            left_out.append(LeftOut(image.name, reason, "everything"))
        else:
            images.append(image)
    if not images:
        raise CohortError(
            "no scored slide has a manual truth to compare with; give images a "
            f"'{context.study.cohort.status}' or outline tumor, then run hnscc-qp patches"
        )
    return images, left_out


def _threshold(folder: Path, calibrated: Manifest) -> ThresholdResult:
    try:
        chosen = json.loads((folder / calibrate.THRESHOLD_FILE).read_text(encoding="utf-8"))
        bound = chosen["bound"]
        return ThresholdResult(
            votes=chosen["votes"],
            levels=chosen["levels"],
            score=chosen["score"],
            min_lesion_um2=chosen["min_lesion_um2"],
            separates=chosen["separates"],
            interval=tuple(chosen["interval"]) if chosen["interval"] else None,
            sentence=chosen["sentence"],
            bound=Bound(**{name: bound[name] for name in Bound.__slots__}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(
            f"{folder / calibrate.THRESHOLD_FILE} is missing, damaged or of an earlier version; run hnscc-qp "
            "calibrate with --force"
        ) from error


def _measure(
    context: Context, image: ImageEntry, members: SealedSplit, threshold: ThresholdResult
) -> MeasuredSlide:
    member = members.by_entry[image.entry_id]
    path = score.score_map_file(context, image)
    score_map = read_score_map(path)
    side: SideName = "train"
    if member.side != "train":
        side = "test" if member.side == "test" else "validation"
    return measure_slide(
        SlideFacts(
            image=image.name,
            entry_id=image.entry_id,
            patient=member.patient,
            side=side,
            positive=member.positive,
            score_map=path.relative_to(context.generation.path).as_posix(),
        ),
        context.open_as_scanned(image),
        score_map,
        context.objects(image),
        threshold_score=threshold.score,
        min_lesion_um2=threshold.min_lesion_um2,
        model_hash=cascade_hash(score_map.provenance),
        classes=context.study.classes,
        settings=context.study.patches,
    )


def _compare(
    context: Context,
    measured: Sequence[MeasuredSlide],
    threshold: ThresholdResult,
    *,
    left_out: Sequence[LeftOut],
    calls: Mapping[str, Calls],
) -> Comparison:
    by_set = {name: [one for one in measured if set_of(one.result) == name] for name in _SETS}
    slides = [one.result for one in measured]
    ai = {one.image: one.call == "positive" for one in slides if one.call != "no tissue"}
    truth = {one.image: one.truth == "positive" for one in slides}
    patients = {one.image: one.patient for one in slides}
    readers = compare_readers(ai, calls, truth, patients) if calls else None
    return Comparison(
        study=context.study.name,
        generation=context.generation.name,
        model=", ".join(sorted({one.model for one in measured})),
        threshold=threshold,
        figures=tuple(
            set_figures(
                name, of_set, threshold_votes=threshold.votes, min_lesion_um2=threshold.min_lesion_um2
            )
            for name, of_set in by_set.items()
            if of_set
        ),
        slides=tuple(slides),
        left_out=tuple(left_out),
        lesions=tuple(lesion for one in measured for lesion in one.lesions),
        truth_lesions=tuple(lesion for one in measured for lesion in one.truth),
        sweep=tuple(
            row
            for name, of_set in by_set.items()
            if of_set
            for row in sweep(name, of_set, levels=threshold.levels, min_lesion_um2=threshold.min_lesion_um2)
        ),
        readers=readers,
        disagreements=list_disagreements(measured, calls),
        notes=_notes(measured, by_set, left_out, readers.notes if readers else ()),
    )


def _notes(
    measured: Sequence[MeasuredSlide],
    by_set: Mapping[SetName, Sequence[MeasuredSlide]],
    left_out: Sequence[LeftOut],
    of_readers: Sequence[str],
) -> tuple[str, ...]:
    notes = []
    for name, of_set in by_set.items():
        statuses = {one.result.truth for one in of_set}
        if not of_set:
            notes.append(f"there is no {name} slide")
        elif "positive" not in statuses:
            notes.append(f"no {name} slide is positive: sensitivity, AUC and lesions can't be judged there")
        elif "negative" not in statuses:
            notes.append(f"no {name} slide is negative: specificity and AUC can't be judged there")
    if by_set["development"]:
        notes.append("development slides taught the models and chose the threshold: their figures flatter")
    for what in ("everything", "areas and lesions"):
        if count := sum(one.what == what for one in left_out):
            notes.append(f"{count} slide{'' if count == 1 else 's'} left out of {what}; see left_out.csv")
    return (*notes, *of_readers, *(line for one in measured for line in one.notes))


def _read_readers(context: Context, sources: Sequence[ReaderSource]) -> dict[str, Calls]:
    names = [image.name for image in context.project.images]
    if sources and (twice := sorted({name for name in names if names.count(name) > 1})):
        raise ReadersError(
            f"the project has several images called {', '.join(twice)}, so a reader's calls can't be told "
            "apart; rename one in QuPath"
        )
    calls: dict[str, Calls] = {}
    for source in sources:
        if source.is_project:
            assert source.name is not None
            new: Mapping[str, Calls] = {source.name: _calls_of_project(context, source.path, names)}
        else:
            new = read_calls(source.path, names, name=source.name)
        if again := sorted(calls.keys() & new.keys()):
            raise ReadersError(
                f"there are two readers called {', '.join(again)}; name one as NAME={source.path}"
            )
        calls |= new
    return calls


def _calls_of_project(context: Context, path: Path, names: Sequence[str]) -> dict[str, bool]:
    """A slide of the reader's project is positive if it has a tumor annotation; images are told by name."""
    project = open_project(path, backend=context.study.backend, slide_folders=context.study.slides)
    calls = {}
    for image in project.images:
        if image.name in names:
            meanings = annotated_meanings(project.objects(image), context.study.classes)
            calls[image.name] = any(meaning is Label.TUMOR for _, meaning in meanings)
    if not calls:
        raise ReadersError(f"{path} has no image of this project's names; name a copy of it")
    return calls


def _counts(comparison: Comparison) -> dict[str, Any]:
    """The headline figures, in short."""
    counts: dict[str, Any] = {
        "slides": len(comparison.slides),
        "left out": len(comparison.left_out),
        "regions": len(comparison.lesions),
        "lesions": len(comparison.truth_lesions),
        "lesions missed": sum(not one.found for one in comparison.truth_lesions),
        "disagreements": len(comparison.disagreements),
    }
    values = comparison.to_json()
    for figures in values["figures"]:
        counts[figures["set"]] = {
            name: value for name, value in figures.items() if name not in ("set", "roc", "froc")
        } | {"froc": figures["froc"]["score"] if figures["froc"] else None}
    if comparison.readers:
        counts["readers"] = values["readers"]["readers"]
        counts["fleiss"] = comparison.readers.fleiss
        counts["fleiss slides"] = comparison.readers.fleiss_slides
        counts["fleiss with ai"] = comparison.readers.fleiss_with_ai
    return counts
