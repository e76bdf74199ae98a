"""A simulated review over several rounds: what learning from verdicts brings, beside retraining without.

    python benchmarks/review_rounds.py FOLDER --cohort demo|camelyon [--camelyon PROJECT] [--weights FILE]

A script plays the pathologist; truth outlines decide what it says. It works on a project as QuPath's export
holds it (GeoJSON beside the project): it accepts, rejects, redraws and adds, and gives the slides that it has
reviewed their status. Everything else is the command line: `run`, then in each round `pull`,
`retrain --promote` and `push`. A slide is known to training once it was reviewed, some from the start.

The control gets the same commands, as often, on a copy of the project that nobody reviews: the same number of
iterations, on what was known at the start. Both are judged on slides of patients that no round shows, see
`roundfigures.py`. What is done is not done twice: the same command goes on, and prints what there is.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapely
from roundfigures import TUMOR, Case, annotation, outlines, report
from shapely.geometry.base import BaseGeometry

from hnscc_qp.demo import draw_cohort
from hnscc_qp.generation import current_generation
from hnscc_qp.progress import SILENT
from hnscc_qp.qupath.create import NewImage, create_project
from hnscc_qp.qupath.geojson import read_geojson, write_geojson
from hnscc_qp.qupath.objects import ObjectType, PathClass, PathObject
from hnscc_qp.qupath.project import open_project
from hnscc_qp.studyfile import load_study

REJECTED = PathClass(("AI", "Rejected"), (128, 128, 128))
REVIEWER = "simulated"
ACCEPT, REJECT = 0.85, 0.10
"""The share of a detection in true tumor from which it is accepted, and up to which it is rejected."""
SMALLEST_MISSED_UM2 = 2_500
ROUNDS = 3

STUDY = """\
name = "{name}"
project = "project"
backend = "embedded"
device = "cpu"

[classes]
tumor = ["Tumor"]

[split]
by = "file"
file = "sides.csv"

[patches]
stride_px = 20
per_class = 2000

[training]
recipe = "dense"
seed = {seed}
weights = {weights}
input_px = 32

[training.dense]
epochs = 4
epoch_tiles = {tiles}

[retraining]
epochs = 1.0
learning_rate = {learning_rate}

[mining]
stride_px = 20
keep_secondary = "{keep}"

[scoring]
probabilities = true
"""


def main() -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cohort", choices=("demo", "camelyon"), default="demo")
    parser.add_argument("--camelyon", type=Path, help="the CAMELYON project")
    parser.add_argument("--fold", type=int, choices=(0, 1), default=0, help="camelyon: which half tests")
    parser.add_argument("--weights", default="none", help="pretrained weights, or none")
    parser.add_argument("--tiles", type=int, default=160, help="tiles of each of the first four epochs")
    parser.add_argument(
        "--later-tiles", type=int, default=240, help="tiles of each later training of a stage"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the trainings")
    parser.add_argument("--keep-secondary", choices=("if_better", "always"), default="if_better")
    parser.add_argument("--learning-rate", type=float, default=0.3, help="factor in fine-tuning")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further round after so long")
    asked = parser.parse_args()
    end = time.monotonic() + asked.minutes * 60
    cases = (
        demo_cases(asked.folder)
        if asked.cohort == "demo"
        else camelyon_cases(asked.camelyon, fold=asked.fold)
    )
    arms = {arm: asked.folder / arm for arm in ("review", "control")}
    start = asked.folder / "start"
    if not (start / "study.toml").exists():
        make_study(start, cases, asked)
    todo = [(start, 0), *((arms[arm], n) for n in range(1, ROUNDS + 1) for arm in arms)]
    todo = [(folder, number) for folder, number in todo if not (folder / f"round-{number}.json").exists()]
    for index, (folder, number) in enumerate(todo):
        if index and time.monotonic() > end:
            print("out of time; the same command goes on", flush=True)  # noqa: T201
            break
        if not folder.exists():
            shutil.rmtree(asked.folder / ".copy", ignore_errors=True)
            shutil.copytree(start, asked.folder / ".copy")
            # Both stages then train for one short epoch, whatever there was to start from.
            file = asked.folder / ".copy" / "study.toml"
            text = file.read_text().replace("epochs = 4", "epochs = 1")
            file.write_text(
                text.replace(f"epoch_tiles = {asked.tiles}", f"epoch_tiles = {asked.later_tiles}")
            )
            (asked.folder / ".copy").rename(folder)
        began = time.monotonic()
        play_round(folder, number, cases)
        note = {
            "seconds": round(time.monotonic() - began),
            "generation": current_generation(load_study(folder)).name,
        }
        (folder / f"round-{number}.json").write_text(json.dumps(note))
    report(asked.folder, cases, rounds=ROUNDS)


def play_round(folder: Path, number: int, cases: Sequence[Case]) -> None:
    """One round of one arm; round 0 makes the first generation."""
    if number == 0:
        command("run", folder)
        return
    before = folder / f"before-{number}.txt"
    if not before.exists():
        before.write_text(current_generation(load_study(folder)).name)
    retrained = current_generation(load_study(folder)).name != before.read_text()
    if retrained:  # stopped before it was handed over
        pass
    elif folder.name == "review":
        said = folder / f"said-{number}.json"
        if not said.exists():  # a review that was stopped is over
            said.write_text(json.dumps(review(folder, number, cases)))
        command("pull", folder)
        command("retrain", folder, "--promote", "--by", REVIEWER)
    else:
        command("retrain", folder, "--promote", "--force", "--by", "control")
    command("push", folder)


def command(*arguments: object) -> None:
    """Run the command line; its words go to a file."""
    folder = Path(str(arguments[1]))
    with (folder / "commands.log").open("a") as log:
        log.write(f"$ hnscc-qp {' '.join(map(str, arguments))}\n")
        log.flush()
        subprocess.run(
            [sys.executable, "-m", "hnscc_qp", *map(str, arguments)], check=True, stdout=log, stderr=log
        )


def demo_cases(folder: Path) -> list[Case]:
    """Two cohorts of twelve drawn nodes: one is only tested on, of the other four are known at first."""
    cases = []
    for seed in (1, 2):
        study = load_study(draw_cohort(folder / f"drawn-{seed}", seed=seed, progress=SILENT))
        parts = {1: "train", 2: "train", 3: "validation", 4: "validation", 5: "round 1", 6: "round 1"}
        parts |= {7: "round 2", 8: "round 2", 9: "round 3", 10: "round 3", 11: "round 2", 12: "round 1"}
        for number, case in enumerate(_cases(study.project, study.slides), start=1):
            part = "test" if seed == 2 else parts[number]
            cases.append(Case(f"{seed}-{case.name}", *_rest(case), part=part))
    return cases


def camelyon_cases(project: Path, *, fold: int) -> list[Case]:
    """Slides in the order of their names; neighbours may be of one original slide, so halves are held out."""
    found = sorted(_cases(project, (project / "slides",)), key=lambda case: case.name)
    if fold:
        positive, negative = ([one for one in found if one.positive is flag] for flag in (True, False))
        found = positive[::-1] + negative[::-1]
    parts = ["train", "validation", "round 1", "round 2", "round 3", "test", "test"]
    parts += ["train", "validation", "test", "test"]
    return [Case(case.name, *_rest(case), part=part) for case, part in zip(found, parts, strict=True)]


def _cases(project_path: Path, slides: tuple[Path, ...]) -> list[Case]:
    project = open_project(project_path, backend="embedded", slide_folders=slides)
    found = []
    for image in project.images:
        objects = project.objects(image)
        of_class = {
            name: shapely.union_all([o.roi for o in objects if o.path_class and str(o.path_class) == name])
            for name in ("Tumor", "Necrosis")
        }
        assert image.size is not None
        truth = shapely.difference(of_class["Tumor"], of_class["Necrosis"])
        found.append(
            Case(image.name, project.slide_path(image), image.size, image.pixel_size, truth, part="")
        )
    return found


def _rest(case: Case) -> tuple[Any, ...]:
    return case.slide, case.size, case.pixel_size, case.truth


def make_study(folder: Path, cases: Sequence[Case], asked: argparse.Namespace) -> None:
    """A project in which only the slides known from the start have annotations and a status."""
    images = []
    for case in cases:
        known = not case.part.startswith("round")
        metadata = {"patient": case.name}
        if known:
            metadata["status"] = "positive" if case.positive else "negative"
        images.append(
            NewImage(
                slide=case.slide,
                name=case.name,
                size=case.size,
                levels=[(1.0, *case.size)],
                pixel_size=case.pixel_size,
                metadata=metadata,
                annotations=outlines(case) if known else (),
            )
        )
    create_project(folder / "project", images, path_classes=[TUMOR])
    with (folder / "sides.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("patient", "side"))
        for case in cases:
            table.writerow((case.name, "train" if case.part.startswith("round") else case.part))
    weights = asked.weights if asked.weights == "none" else str(Path(asked.weights).resolve())
    (folder / "study.toml").write_text(
        STUDY.format(
            name=asked.cohort,
            weights=json.dumps(weights),
            tiles=asked.tiles,
            learning_rate=asked.learning_rate,
            seed=asked.seed,
            keep=asked.keep_secondary,
        )
    )


def taken_over(item: PathObject, roi: BaseGeometry) -> PathObject:
    """A detection as the annotation that a pathologist makes of it: it keeps the id."""
    notes = {"AI origin": str(item.id), "AI reviewer": REVIEWER, "AI reviewed at": now()}
    drawn = annotation(roi, "")
    values = {name: getattr(drawn, name) for name in PathObject.__slots__}
    return PathObject(**(values | {"id": item.id, "name": "from AI", "metadata": notes}))


def review(folder: Path, number: int, cases: Sequence[Case]) -> dict[str, int]:
    """Play the pathologist: this round's slides in full, on those known before whatever is no tumor."""
    said = {"accepted": 0, "rejected": 0, "redrawn": 0, "missed": 0}
    project_file = folder / "project" / "project.qpproj"
    value = json.loads(project_file.read_text(encoding="utf-8"))
    for entry_id, case in enumerate(cases, start=1):
        new = case.part == f"round {number}"
        known = case.part in ("train", "validation", *(f"round {n}" for n in range(1, number)))
        if not (new or known):
            continue
        name = f"{entry_id} {case.name}.geojson"
        pushed = folder / "project" / "ai-detections" / name
        found = read_geojson(pushed).objects if pushed.exists() else ()
        file = folder / "project" / "annotations" / name
        there = list(read_geojson(file).objects) if file.exists() else []
        covered = [o.roi for o in there if o.type is ObjectType.ANNOTATION]
        for item in found:
            inside = item.roi.intersection(case.truth).area / item.roi.area
            if inside <= REJECT:
                verdict = f"rejected by {REVIEWER}, {now()}"
                there.append(_as(item, path_class=REJECTED, name=verdict))
                said["rejected"] += 1
            elif new and inside >= ACCEPT:
                there.append(taken_over(item, item.roi))
                covered.append(item.roi)
                said["accepted"] += 1
            elif new:
                touched = [p for p in shapely.get_parts(case.truth) if p.intersects(item.roi)]
                outline = shapely.union_all(touched).difference(shapely.union_all(covered).buffer(0.5))
                if outline.area > SMALLEST_MISSED_UM2:
                    there.append(taken_over(item, outline))
                    covered.append(outline)
                    said["redrawn"] += 1
            else:
                there.append(item)  # nobody touches what is right on a slide that was reviewed before
        if new:
            left = case.truth.difference(shapely.union_all(covered).buffer(0.5))
            for part in shapely.get_parts(left):
                if part.area > SMALLEST_MISSED_UM2:
                    there.append(annotation(part, case.name))
                    said["missed"] += 1
            status = "positive" if case.positive else "negative"
            value["images"][entry_id - 1]["metadata"]["status"] = status
        if there:
            write_geojson(file, there)
    project_file.write_text(json.dumps(value), encoding="utf-8")
    return said


def _as(item: PathObject, **changed: Any) -> PathObject:
    values = {name: getattr(item, name) for name in PathObject.__slots__}
    notes = {**item.metadata, "AI reviewer": REVIEWER, "AI reviewed at": now()}
    return PathObject(**(values | {"metadata": notes} | changed))


def now() -> str:
    """UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    main()
