"""`new`: a QuPath project and a study file from slides, ready to annotate."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from hnscc_qp.errors import CohortError, HnsccQpError, StudyError
from hnscc_qp.files import write_text
from hnscc_qp.progress import Progress
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.jvm import PaquoProject, find_qupath
from hnscc_qp.qupath.objects import PathClass
from hnscc_qp.qupath.ownership import AI_TUMOR
from hnscc_qp.qupath.qpdata import IMAGE_TYPES
from hnscc_qp.slides.reader import Slide, open_slide

TUMOR = "Tumor"
OTHER_CLASSES = ("Necrosis", "Stroma", "Ignore*")
_QUPATH_COLORS = {
    "Tumor": (200, 0, 0),
    "Stroma": (150, 200, 150),
    "Necrosis": (50, 50, 50),
    "Ignore*": (180, 180, 180),
}
"""Those of QuPath's own classes, so that nothing looks unfamiliar."""
IMAGE_TYPE = "BRIGHTFIELD_H_E"
"""What every slide of a new project is."""
_SLIDE_COLUMN = "slide"
_THUMBNAIL_PX = 1000

STUDY_TOML = """\
# A study for hnscc-qp. What is left out has the value of the paper (Tang et al. 2022).
# Annotate in QuPath and save; then: hnscc-qp doctor {folder}   and   hnscc-qp run {folder}

name = {name}
project = "project/project.qpproj"
slides = [{slides}]     # searched by file name for slides that were moved
backend = "auto"   # a QuPath found through PAQUO_QUPATH_DIR, else none
device = "auto"    # CUDA where there is one

# What the classes mean. Every class named here must have been drawn somewhere: take the # away
# once it is. A class that is not named decides nothing.
[classes]
tumor = ["Tumor"]
# nontumor = [{nontumor}]     # drawn inside a tumor, they are carved out of it
# ignored = [{ignored}]     # no window that touches one is used

# Keys of the images' metadata in QuPath (right-click an image > Edit metadata).
[cohort]
patient = "patient"     # images of one patient are never split between training and test
status = "status"       # positive or negative; an image with a tumor annotation is positive without
unannotated = "skip"    # or "negative": what an image with neither is
"""


def make_study(
    folder: Path,
    slides: Sequence[Path],
    *,
    patients: Path | None,
    classes: Sequence[str] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write `project/project.qpproj` and `study.toml` into a new folder.

    QuPath keeps the image type in the image's `data.qpdata`, which only QuPath writes. So it is set to H&E
    where a QuPath is found; elsewhere `notes` say why not, and `next` what to choose.

    Args:
        folder: new or empty.
        slides: files; they are named by their absolute paths and stay where they are.
        patients: a CSV table with a column `slide`, matched by file name; the others become metadata.
        classes: to annotate with besides `Tumor`; None gives `OTHER_CLASSES`.
        progress: told of each slide.

    Returns:
        `study`, `project`, `images`, `notes`, `next` (what to do now, in lines) and `failed`:
        slide → reason, for slides that can't be read and were left out.

    Raises:
        StudyError: the folder is not empty, or the table can't be read.
        CohortError: two slides have one name, or two rows are about one slide.
        HnsccQpError: not one slide can be read; the first reason.
    """
    _need_empty(folder)
    _need_different_names(slides)
    path_classes = [*map(_path_class, _class_names(classes)), AI_TUMOR]
    table = {} if patients is None else _read_patients(patients)
    images: list[NewImage] = []
    failed: dict[str, str] = {}
    first: HnsccQpError | None = None
    with progress.task("reading slides", total=len(slides), unit="slides") as task:
        for path in slides:
            try:
                images.append(_new_image(open_slide(path.absolute()), table.get(_key(path.name), {})))
            except HnsccQpError as error:
                first = first or error
                failed[str(path)] = str(error)
                progress.warn(str(error))
            task.advance(note=path.name)
    if first is not None and not images:
        raise first
    project = create_project(folder / "project", images, path_classes=path_classes)
    study_file = folder / "study.toml"
    write_text(study_file, _study_text(folder, images, path_classes))
    typed, why_not = _set_image_type(project)
    return {
        "study": str(study_file),
        "project": str(project),
        "images": [
            _row(image) | {"image_type": IMAGE_TYPES[IMAGE_TYPE] if image.name in typed else None}
            for image in images
        ],
        "notes": [*_notes(images, slides, table, patients), *why_not],
        "next": _next(folder, project, images, typed=len(typed) == len(images)),
        "failed": failed,
    }


def _set_image_type(project_file: Path) -> tuple[set[str], list[str]]:
    """The names of the images that are H&E for QuPath now, and why others are not."""
    try:
        find_qupath()
        project = PaquoProject(project_file)
    except HnsccQpError as error:
        return set(), [f"the image type is left to QuPath, which could not be asked here: {error}"]
    typed: set[str] = set()
    why_not = []
    for image in project.images:
        try:
            project.set_image_type(image, IMAGE_TYPE)
            typed.add(image.name)
        except HnsccQpError as error:
            why_not.append(f"the image type is left to QuPath: {error}")
    return typed, why_not


def _need_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f"{folder} is not an empty folder; give one that is new")


def _need_different_names(slides: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in slides:
        other = seen.setdefault(_key(path.name), path)
        if other is not path:
            raise CohortError(
                f"{other} and {path} have the same name, by which slides are told apart; "
                "give each slide once, and rename one if they are different"
            )


def _class_names(classes: Sequence[str] | None) -> list[str]:
    names = [TUMOR, *(OTHER_CLASSES if classes is None else classes)]
    for name in names:
        if not all(part and part == part.strip() for part in name.split(": ")) or not name.isprintable():
            raise StudyError(f"QuPath can't hold a class named {name!r}; choose another --class")
    return list(dict.fromkeys(names))


def _path_class(name: str) -> PathClass:
    return PathClass(tuple(name.split(": ")), _QUPATH_COLORS.get(name))


def _key(name: str) -> str:
    # macOS stores umlauts as two characters, others as one.
    return unicodedata.normalize("NFC", name)


def _read_patients(path: Path) -> dict[str, dict[str, str]]:
    """Metadata by slide name, from a table with commas, semicolons or tabs (as Excel saves it)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}; give a CSV file") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not UTF-8; save it as 'CSV UTF-8' in Excel") from error
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", restval="")
    columns = [name.strip() for name in rows.fieldnames or ()]
    lower = [name.lower() for name in columns]
    if _SLIDE_COLUMN not in lower:
        raise StudyError(
            f"{path} has no column '{_SLIDE_COLUMN}' for the slides' file names; "
            f"its columns are {', '.join(columns) or 'none'}"
        )
    if len(set(lower)) < len(lower):
        raise StudyError(f"{path} has two columns of one name; rename one")
    rows.fieldnames = [name.lower() if name.lower() in _KNOWN else name for name in columns]
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        values = {key: str(value).strip() for key, value in row.items() if key}
        name = PureWindowsPath(values.pop(_SLIDE_COLUMN)).name  # takes / and \ alike
        if not name:
            continue
        if _key(name) in table:
            raise CohortError(f"{path} has two rows about {name}; keep one (line {rows.line_num})")
        table[_key(name)] = {key: value for key, value in values.items() if value}
    return table


_KNOWN = (_SLIDE_COLUMN, "patient", "status")
"""Columns that the study file names, so their case must not matter."""


def _new_image(slide: Slide, metadata: Mapping[str, str]) -> NewImage:
    width, height = slide.size
    levels = [(1.0, width, height)]
    for level in slide.levels[1:]:
        downsample = sum(level.downsample) / 2
        levels.append((downsample, int(width / downsample), int(height / downsample)))
    return NewImage(
        slide=slide.path,
        name=slide.name,
        size=slide.size,
        levels=levels,
        pixel_size=None if slide.pixel_size_source is None else slide.pixel_size,
        metadata=metadata,
        thumbnail=Image.fromarray(slide.thumbnail(_THUMBNAIL_PX)),
    )


def _study_text(folder: Path, images: Sequence[NewImage], classes: Sequence[PathClass]) -> str:
    names = [str(one) for one in classes if str(one) not in (TUMOR, str(AI_TUMOR))]
    ignored = [name for name in names if name.endswith("*")]
    nontumor = [name for name in names if name not in ignored]
    folders = dict.fromkeys(image.slide.parent for image in images)
    return STUDY_TOML.format(
        folder=_one_line(str(folder)),
        name=_toml(folder.resolve().name),
        slides=", ".join(_toml(str(one)) for one in folders),
        nontumor=", ".join(map(_toml, nontumor or OTHER_CLASSES[:2])),
        ignored=", ".join(map(_toml, ignored or OTHER_CLASSES[2:])),
    )


def _toml(text: str) -> str:
    """A TOML string: JSON's is one, but for the characters it leaves as they are."""
    escaped = "".join(
        f"\\u{ord(one):04x}" if ord(one) < 32 or ord(one) == 127 else {'"': '\\"', "\\": "\\\\"}.get(one, one)
        for one in text
    )
    return f'"{escaped}"'


def _one_line(text: str) -> str:
    return text if text.isprintable() else "."


def _row(image: NewImage) -> dict[str, Any]:
    size = image.pixel_size
    return {
        "image": image.name,
        "size_px": list(image.size),
        "mpp": None if size is None else [size.x, size.y],
        "metadata": dict(image.metadata),
    }


def _notes(
    images: Sequence[NewImage], slides: Sequence[Path], table: Mapping[str, object], patients: Path | None
) -> list[str]:
    notes = []
    unscaled = [image.name for image in images if image.pixel_size is None]
    if unscaled:
        notes.append(
            f"without a pixel size: {', '.join(unscaled)}; set it in QuPath (Image tab → Pixel width, "
            "Pixel height) and save, else they can't be used"
        )
    if patients is not None:
        given = {_key(path.name): path.name for path in slides}
        if unknown := sorted(set(table) - set(given)):
            notes.append(f"{patients} has rows about slides that were not given: {', '.join(unknown)}")
        if missing := [name for key, name in given.items() if key not in table]:
            notes.append(f"{patients} has no row about {', '.join(missing)}; each is a patient of its own")
    return notes


def _next(folder: Path, project: Path, images: Sequence[NewImage], *, typed: bool) -> list[str]:
    lines = [f"open {project} in QuPath"]
    if not typed:
        lines.append(
            f"where QuPath asks for the image type, choose {IMAGE_TYPES[IMAGE_TYPE]}; "
            "or run qupath_scripts/set_image_type.groovy for the project"
        )
    lines.append(f"outline every tumor with the class {TUMOR}, and save (Ctrl+S)")
    if not any("status" in image.metadata for image in images):
        lines.append("say which slides are negative: metadata 'status' = negative (Edit metadata)")
    return [*lines, f"hnscc-qp doctor {folder}", f"hnscc-qp run {folder}"]
