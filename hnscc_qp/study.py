"""The settings of a study, frozen and validated; `studyfile` reads them.

Every setting that bears on a result stands here with its default, which is the paper's
(Tang et al. 2022) unless the comment says otherwise.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Share = Annotated[float, Field(ge=0, lt=1)]
Names = tuple[str, ...]


class Classes(_Settings):
    """QuPath class names and what a window under them is."""

    tumor: Annotated[Names, Field(min_length=1, strict=False)] = ("Tumor",)
    nontumor: Annotated[Names, Field(strict=False)] = ()
    """Necrosis, tumour-associated stroma: carved out of the tumor around it."""
    ignored: Annotated[Names, Field(strict=False)] = ()
    """Artefacts and doubtful places: no window of it is shown to the network."""
    region: Annotated[Names, Field(strict=False)] = ()
    """The annotated part of a positive slide: outside it, what nobody drew is not taken for nontumor."""

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Classes:
        names = [*self.tumor, *self.nontumor, *self.ignored, *self.region]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named under more than one meaning: {', '.join(twice)}")
        return self


class Truth(_Settings):
    """Where annotations come from; several sources add up. See docs/truth-sources.md."""

    source: Literal["qupath", "mask", "asap", "geojson"] = "qupath"
    pattern: str = ""
    """The file of a slide, from the study's folder on: `{slide}` is the slide file's name without its
    ending, `{folder}` its folder. If empty: `{folder}/{slide}.mask.png`, `.xml` or `.geojson`."""
    classes: dict[str, str] = Field(default_factory=dict)
    """What a mask's values (`255`), ASAP's groups or GeoJSON's classes are called here; `""` for nothing."""
    holes: Annotated[Names, Field(strict=False)] = ("_2", "Exclusion")
    """ASAP groups that are cut out of all others; `_2` is CAMELYON16's."""
    frame: Literal["qupath", "file"] = "qupath"
    """What a mask covers: the image as QuPath shows it, or the whole file."""
    missing: Literal["error", "none"] = "error"
    """What a missing file is: an error, or no annotations. A negative slide needs no file."""

    @model_validator(mode="after")
    def _is_whole(self) -> Truth:
        if "{" in self.pattern.replace("{slide}", "").replace("{folder}", ""):
            raise ValueError("a pattern knows {slide} and {folder} only")
        if self.source == "mask":
            if not self.classes:
                raise ValueError('a mask needs classes, such as classes = { 255 = "Tumor" }')
            odd = [value for value in self.classes if not value.isdecimal()]
            if odd:
                raise ValueError(f"a mask's values are whole numbers, not {', '.join(odd)}")
        return self

    @property
    def file_pattern(self) -> str:
        """`pattern`, or the source's usual one."""
        endings = {"mask": ".mask.png", "asap": ".xml", "geojson": ".geojson"}
        return self.pattern or "{folder}/{slide}" + endings.get(self.source, "")


class Stain(_Settings):
    """Stain normalisation, for training and scoring alike; the paper has none. See docs/stain.md."""

    normalisation: Literal["none", "macenko", "reinhard"] = "none"
    reference: str = ""
    """A picture of stained tissue that slides are normalised to; if empty, a fixed, published reference."""


class Cohort(_Settings):
    """Where the project keeps patient, slide status and date of surgery: keys of QuPath's image metadata."""

    patient: str = "patient"
    status: str = "status"
    surgery_date: str = "surgery date"
    unannotated: Literal["skip", "negative"] = "skip"
    """What an image with neither a status nor a tumor annotation is."""


class Split(_Settings):
    """Which patients are held out. Patients are never torn apart, and who once tested never trains."""

    by: Literal["patient", "date", "fold", "file"] = "patient"
    """How: at random by patient; by date of surgery, later patients test (the paper's way, where dates are
    known); one of several folds, alike in status; or as a CSV file says."""
    test: Share = 0.3
    """Share of patients, within each status, kept for the test set; by date, of all patients."""
    test_patients: Annotated[Names, Field(strict=False)] = ()
    """If given, exactly these patients are the test set."""
    test_from: date | None = None
    """By date: the first day of test, as `2019-03-31`; without it the day that comes nearest to `test`."""
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=1)] = 1
    """By fold: which of the `folds` tests, from 1. Each fold is a study of its own, in its own folder."""
    file: str | None = None
    """By file: a CSV with `side` (train, validation, test, or development) and `patient` or `slide`."""
    validation: Share = 0.3
    """Share of development patients, within each status, kept for validation (70/30)."""
    seed: int = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Split:
        if self.fold > self.folds:
            raise ValueError(f"fold = {self.fold} of {self.folds} folds; choose 1 to {self.folds}")
        if (self.by == "file") != (self.file is not None):
            raise ValueError("by = 'file' and file = '...' go together; set both or neither")
        if self.test_patients and self.by != "patient":
            raise ValueError(f"test_patients and by = '{self.by}' exclude each other; delete one")
        if self.test_from is not None and self.by != "date":
            raise ValueError("test_from needs by = 'date'; set it")
        return self


class Patches(_Settings):
    """Labelled windows for training. The resolution (1.0 µm/px) and size (40 px) are the method's."""

    stride_px: Annotated[int, Field(gt=0, multiple_of=10, le=40)] = 40
    per_class: Annotated[int, Field(gt=0)] = 16_000
    """At most so many tumor windows and as many nontumor windows, over training and validation."""
    nontumor_from_negative: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the nontumor windows that comes from negative slides (the paper names none); where they or
    the positive ones have not enough, the others fill up."""
    min_tissue: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Smallest share of a nontumor window that is tissue; with less it is background and ignored."""
    min_tumor_tissue: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The same of a tumor window; 0: tumor is taken as annotated."""
    min_tumor_um2: Annotated[float, Field(ge=0, le=1600)] = 0.0
    """Smallest tumour overlap in µm²; 0: any. A window with less is ignored, not nontumor."""
    nested: Literal["smaller", "tumor"] = "smaller"
    """Which of two overlapping annotations lies on top: the smaller one, or tumor whatever its size."""
    max_ignored: Share = 0.0
    """Largest share of a window that may lie in an ignored annotation; 0: none of it."""
    tumor_over_ignored: bool = True
    """Whether a window that an ignored annotation cuts is tumor if it holds tumor; else it is ignored."""
    open_shapes: Literal["skip", "close", "error"] = "skip"
    """Annotations without an area (points, lines, open outlines): named and skipped, where they mean tumor
    with the windows there ignored; or open outlines closed; or refused by name."""
    outside_image: Literal["clip", "error"] = "clip"
    """Annotations that reach beyond the image: what lies outside decides nothing; or they are refused."""
    nontumor_on_positive: Literal["everywhere", "region", "annotated"] = "everywhere"
    """Where a positive slide gives nontumor windows besides its nontumor annotations: everywhere (on slides
    with a region annotation within that), within a region annotation only, or nowhere."""
    seed: int = 1


class WindowRecipe(_Settings):
    """`[training.window]`, used where recipe = "window": the paper's (Tang et al. 2022, §2.3)."""

    epochs: Annotated[int, Field(gt=0)] = 30
    orientations: Annotated[int, Field(ge=1, le=8)] = 8
    """Of the eight orientations of a patch, how many an epoch shows; fewer make it that much shorter."""
    batch_size: Annotated[int, Field(gt=1)] = 128
    """Patches."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor on the learning rate every `decay_epochs`."""
    decay_epochs: Annotated[int, Field(gt=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2, of Adam."""
    patience: Annotated[int, Field(gt=0)] = 8
    """Epochs without a better validation loss before training stops."""
    stain_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """As in the dense recipe; the paper had none."""


class DenseRecipe(_Settings):
    """`[training.dense]`, used where recipe = "dense": every window of a tile at once; not the paper's."""

    tile_px: Annotated[int, Field(ge=80, le=480, multiple_of=10)] = 240
    """Side of the tiles that the network is shown, cut anywhere on the 10 px grid."""
    max_tiles: Annotated[int, Field(ge=2)] = 2_000
    """At most so many pieces of 480 px are cut from the development slides, and as many from test slides:
    half of them with tumor, evenly over slides. 0.7 MB each."""
    epochs: Annotated[int, Field(gt=0)] = 20
    epoch_tiles: Annotated[int, Field(gt=0)] = 800
    """Tiles that an epoch shows, as many drawn at a tumor window as at a nontumor one."""
    batch_size: Annotated[int, Field(gt=0)] = 4
    """Tiles; each of 240 px holds 441 windows."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW, at its highest: it rises over the first twentieth, then falls as a cosine to the end."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    stain_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """How strongly each tile's haematoxylin and eosin are varied: 0 not at all, 0.2 what Tellez et al. (2019)
    call strong."""
    scale_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Each tile is shown up to so much larger, or as much smaller, as far as the pieces of 480 px reach."""
    sharpness_jitter: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How strongly each tile's sharpness is varied: 0 not at all, 1 from a blur of 1 px to the opposite."""
    noise_levels: Annotated[float, Field(ge=0, le=64)] = 5.0
    """Each tile gets noise of up to so many grey levels' deviation."""
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """The weights kept are a running average with this decay per batch; 0 keeps the last ones."""


class Training(_Settings):
    """One set for both stages. `recipe` says which of the two tables below applies."""

    recipe: Literal["dense", "window"] = "dense"
    """`window`: each patch by itself, as the paper did. `dense`: all windows of a tile at once."""
    network: Literal["googlenet", "mobilenet_v2", "resnet50", "resnet101"] = "mobilenet_v2"
    """GoogLeNet knows the window recipe only."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's hub), `none` (from scratch), a safetensors file, or a folder with a file for
    each network (`resnet50.safetensors`, or torchvision's own `resnet50-0676ba61.pth`).

    With `none` the secondary starts from the primary's weights, not from the paper's ImageNet ones.
    """
    input_px: Annotated[int, Field(ge=32, le=512)] = 64
    """Side that a 40 px window is enlarged to for the network; MATLAB's networks took 224. The dense recipe
    knows 32, 64 and 128."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products in training: `auto` is bfloat16 on a GPU that has it, float32 else."""
    deterministic: bool = False
    """On a GPU the same seed then gives the same weights, more slowly; on a CPU it always does."""
    seed: int = 1
    window: WindowRecipe = WindowRecipe()
    dense: DenseRecipe = DenseRecipe()

    @model_validator(mode="after")
    def _dense_fits(self) -> Training:
        if self.recipe == "dense" and self.network == "googlenet":
            raise ValueError(
                'the dense recipe can\'t use googlenet; name another network or recipe = "window"'
            )
        if self.recipe == "dense" and self.input_px not in (32, 64, 128):
            raise ValueError("the dense recipe needs input_px = 32, 64 or 128")
        return self

    def in_use(self) -> dict[str, Any]:
        """The settings that apply, as JSON values: without the table of the other recipe."""
        return self.model_dump(mode="json", exclude={"dense" if self.recipe == "window" else "window"})


class Mining(_Settings):
    """Hard negatives: the primary's false positives on negative development slides."""

    stride_px: Annotated[int, Field(gt=0, multiple_of=10, le=40)] = 20
    min_distance_px: Annotated[int, Field(ge=0)] = 0
    """Of false positives nearer to each other than this, the surest is kept; 0, the paper's, keeps all."""
    positive_slides: Literal["retrain", "always", "never"] = "retrain"
    """Whether the nontumor tissue of positive slides is mined too: in generations that `retrain` makes,
    always, or never (the paper)."""
    min_false_positives: Annotated[int, Field(ge=2)] = 64
    """With fewer, no secondary is trained and the cascade is the primary alone."""
    keep_secondary: Literal["if_better", "always"] = "if_better"
    """`if_better`: a secondary is used if on validation it leaves fewer false positives than the primary
    alone, called so strictly that it finds as much tumor; else, or with too few windows to tell, the
    cascade is the primary alone. `always`: the paper's."""


class Scoring(_Settings):
    """Votes of overlapping windows."""

    mode: Literal["auto", "exact", "dense"] = "auto"
    """`exact` shows the network every window on its own, `dense` whole tiles; `auto` is what the models were
    trained for, and they answer rightly no other way."""
    stride_px: Literal[5, 10, 20] = 10
    """A place has (40 / stride)² votes: 64, 16 or 4."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """Windows that go to the network at once; dense mode does not use it."""
    min_tissue: Annotated[float, Field(ge=0, le=1)] = 0.0625
    """A window is scored if at least this share of it is tissue (one block of sixteen)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` is faster where the processor has it, and flips some votes: docs/benchmarks.md."""
    exact: bool = False
    """32 bits and kernels that add in one order, whatever `precision` says and is faster on the device."""
    runtime: Literal["auto", "torch", "onnxruntime"] = "auto"
    """What computes: `auto` is ONNX Runtime where it is installed, for dense models in float32 on a CPU; else
    PyTorch."""
    probabilities: bool = False
    """Write each stage's P(tumor) of every window too, beside the score map."""


class Calibration(_Settings):
    """The threshold, chosen on the development set."""

    sensitivity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Wanted on the development set where no threshold separates it perfectly."""
    within: Literal["lowest", "middle"] = "lowest"
    """Which of the thresholds that separate the development set: the lowest, the paper's, or the middle."""
    min_lesion_um2: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = 0.0
    """A slide is positive from a connected region over the threshold of this area on; 0, the paper's: any
    block. `auto`: the smallest area with which the development set is separated, or else called best."""
    miss_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest share of new positive patients missed, for the bound that `calibrate` states."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of that bound."""


class Review(_Settings):
    """What is learnt from verdicts, and what is shown for review next; the paper had neither."""

    accepted_trust: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What an accepted region counts beside one drawn by hand: 0.5 uses half of its windows, 0 none."""
    deleted: Literal["ignored", "rejected"] = "ignored"
    """What a deleted detection is: nothing certain, and so shown to no network; or rejected."""
    learn_cut_off: bool = True
    """Whether what was cut off a detection when it was redrawn is a hard negative."""
    queue_length: Annotated[int, Field(gt=0)] = 40
    """Places that `queue` asks to look at."""
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of them that is drawn at random, whatever their value, so that error rates can be estimated."""
    place_um: Annotated[int, Field(ge=100, multiple_of=20)] = 400
    """Side of the squares that tissue without detections is looked at in."""
    queue_weights: Annotated[tuple[float, float, float, float], Field(strict=False)] = (1.0, 1.0, 1.0, 1.0)
    """What counts how much for a place's value: disagreement of the stages, nearness to the threshold,
    novelty of the tissue, size."""
    retrain_after: Annotated[int, Field(ge=0)] = 0
    """New verdicts after which `watch` retrains; 0: never by itself."""


class Retraining(_Settings):
    """How `retrain` makes a generation from the one in use; the paper made one only. docs/generations.md."""

    fine_tune: bool = True
    """Start from the weights in use; if not, or with `--from-scratch`, as the first generation started."""
    epochs: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the recipe's epochs that fine-tuning takes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Factor on the recipe's learning rate in fine-tuning."""


class Promotion(_Settings):
    """When a candidate comes into use: no slide sensitivity lost, and `figure` better beyond its interval."""

    figure: Literal["dice", "froc", "specificity", "sensitivity"] = "dice"
    side: Literal["test", "validation"] = "test"
    """Whose slides decide. Each decision by the test set wears it out a little; `validation` spares it, but
    has chosen epochs and threshold, too."""
    min_patients: Annotated[int, Field(ge=2)] = 6
    """Fewer can't decide: even if all are better, chance alone does that in 2 · 0.5⁵ = 6 % of cases."""
    resamples: Annotated[int, Field(ge=100)] = 2_000
    """Bootstrap samples of patients."""
    seed: int = 1


class Readers(_Settings):
    """Whose calls `compare` sets beside the AI's, besides those of the command line: docs/comparison.md."""

    calls: Annotated[Names, Field(strict=False)] = ()
    """CSV files from the study's folder on, or `NAME=FILE` where a file is of one reader."""
    projects: Annotated[Names, Field(strict=False)] = ()
    """`NAME=PROJECT`: readers' own copies of the QuPath project."""


class Study(_Settings):
    """One study, as its file says. Paths are absolute."""

    path: Path
    """The study file."""
    name: str
    project: Path
    """The QuPath project: its `.qpproj` file or directory."""
    slides: tuple[Path, ...] = ()
    """Folders searched, by file name, for slides that are not where the project says."""
    backend: Literal["auto", "embedded", "paquo"] = "auto"
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Slides that `patches` works on at once; 0: as many as there are cores. It changes no result."""
    classes: Classes = Classes()
    truth: Annotated[tuple[Truth, ...], Field(min_length=1, strict=False)] = (Truth(),)
    """One `[truth]`, or several `[[truth]]`."""
    cohort: Cohort = Cohort()
    split: Split = Split()
    stain: Stain = Stain()
    patches: Patches = Patches()
    training: Training = Training()
    mining: Mining = Mining()
    scoring: Scoring = Scoring()
    calibration: Calibration = Calibration()
    review: Review = Review()
    retraining: Retraining = Retraining()
    promotion: Promotion = Promotion()
    readers: Readers = Readers()

    @property
    def root(self) -> Path:
        """The folder of the study file; generations lie in it."""
        return self.path.parent

    def settings(self, *sections: str) -> dict[str, Any]:
        """The named sections as JSON values, for a manifest."""
        values = self.model_dump(mode="json", include=set(sections))
        return {section: values[section] for section in sections}
