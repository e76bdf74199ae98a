"""Stain normalisation: every slide's colours moved to those of one reference, by what its own tissue shows.

Macenko: Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis",
ISBI, with the constants of their published code. Reinhard: Reinhard et al. 2001, "Color transfer between
images", IEEE CG&A 21(5), in their lαβ space. Libraries fit both to the picture at hand, so every tile would
get its own; here a fit belongs to a slide, and is a map from colour to colour, the same for every pixel
however the slide is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from hnscc_qp.errors import SlideReadError, StudyError
from hnscc_qp.files import write_json
from hnscc_qp.geometry import Grid, Mpp
from hnscc_qp.slides.reader import RGBPixels, Slide
from hnscc_qp.slides.tissue import find_tissue, is_stained

Method = Literal["macenko", "reinhard"]
Floats = npt.NDArray[np.float64]

_LIGHT = 240.0
"""Grey value of glass (Macenko's published code)."""
_MIN_DENSITY = 0.15
"""β: paler pixels do not say what the stains are."""
_PERCENTILE = 1.0
"""α: robust extremes of the angle between the two stains, in percent."""
_STRONGEST = 99.0
"""Percentile of a stain's concentration that is matched to the reference's."""
_MIN_ANGLE = 0.05
"""Radians; nearer stains can't be told apart (H and E are 0.4 to 0.7 apart)."""
_MIN_PIXELS = 10_000
_SPOTS = 300
_SPOT_BLOCKS = 4
_PIXELS_AT_ONCE = 1 << 16
"""Small enough to stay in the cache."""

_REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
_REFERENCE_STRENGTH = np.array([1.9705, 1.0308])
"""Of Macenko's published code: (RGB, H and E) and the 99th percentile of H and E."""
_REFERENCE_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
_REFERENCE_SPREAD = np.array([0.6135447, 0.10989545, 0.0286032])
"""lαβ of TCGA-A2-A3XS-DX1 (Amgad et al. 2019, Bioinformatics 35:3461), the usual reference of HistomicsTK."""

_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.diag(1 / np.sqrt([3, 6, 2])) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
"""Reinhard et al. 2001, equations 4 and 6; logarithms are natural here, which scales all alike."""

_DENSITY = -np.log((np.arange(256) + 1) / _LIGHT).astype(np.float32)


@dataclass(frozen=True, slots=True)
class StainTarget:
    """What slides are normalised to."""

    method: Method
    first: tuple[tuple[float, ...], ...]
    """Macenko: (3, 2) stain vectors as rows of R, G, B. Reinhard: (1, 3) means of l, α, β."""
    second: tuple[float, ...]
    """Macenko: strengths of H and E. Reinhard: standard deviations of l, α, β."""
    reference: str = "built in"

    def as_json(self) -> dict[str, Any]:
        """For model cards and manifests: two studies normalise alike if these are equal."""
        return {
            "normalisation": self.method,
            "target": [list(row) for row in self.first] + [list(self.second)],
        }


@dataclass(frozen=True, slots=True)
class StainFit:
    """How one slide's colours become the target's.

    A colour is taken to a logarithmic space, there moved by a matrix and an offset, and taken back.
    """

    method: Method
    matrix: tuple[tuple[float, ...], ...] | None
    """(3, 3); None if the slide is left as it is."""
    offset: tuple[float, ...]
    pixels: int
    """Tissue pixels that it was fitted to."""
    fallback: str | None = None
    """Why the slide is left as it is."""

    def apply(self, pixels: RGBPixels) -> RGBPixels:
        """Normalise: (height, width, 3) uint8 to the same; each pixel depends on itself alone."""
        if self.matrix is None:
            return pixels
        flat = pixels.reshape(-1, 3)
        out = np.empty_like(flat)
        work = self._macenko if self.method == "macenko" else self._reinhard
        for start in range(0, len(flat), _PIXELS_AT_ONCE):
            part = slice(start, start + _PIXELS_AT_ONCE)
            out[part] = work(flat[part])
        return out.reshape(pixels.shape)

    def _macenko(self, pixels: RGBPixels) -> RGBPixels:
        moved = _mix(_DENSITY[pixels], self.matrix, self.offset)
        return _to_bytes(np.float32(_LIGHT) * np.exp(-moved))

    def _reinhard(self, pixels: RGBPixels) -> RGBPixels:
        lms = _mix(pixels.astype(np.float32) + 1, _TO_LMS)
        moved = np.exp(_mix(np.log(lms), self.matrix, self.offset))
        return _to_bytes(_mix(moved, np.linalg.inv(_TO_LMS)) - 1)


class NormalisedSlide(Slide):
    """A slide whose pixels are read in the target's colours; tissue is found on it as it was scanned."""

    def __init__(self, slide: Slide, fit: StainFit) -> None:
        super().__init__(
            slide.path,
            pixel_size=slide._given_pixel_size,
            crop_to_bounds=slide.crop_to_bounds,
            view=slide.view,
        )
        self._as_scanned = slide
        self.fit = fit

    def __reduce__(self) -> tuple[object, ...]:
        return NormalisedSlide, (self._as_scanned, self.fit)

    @property
    def as_scanned(self) -> Slide:
        """The slide in its own colours."""
        return self._as_scanned

    def read(self, region: Any, mpp: Mpp) -> RGBPixels:
        """As `Slide.read`, in the target's colours."""
        return self.fit.apply(self._as_scanned.read(region, mpp))


def stain_target(method: Method, reference: Path | None = None) -> StainTarget:
    """What to normalise to: the built-in reference, or what a reference picture's tissue shows.

    Raises:
        StudyError: the picture can't be read, or shows too little tissue.
    """
    if reference is None:
        if method == "macenko":
            return _target(method, _REFERENCE_STAINS, _REFERENCE_STRENGTH)
        return _target(method, _REFERENCE_MEAN[np.newaxis], _REFERENCE_SPREAD)
    try:
        with Image.open(reference) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    except (OSError, Image.DecompressionBombError) as error:
        raise StudyError(
            f"stain.reference {reference} can't be read ({error}); name a PNG, JPEG or TIFF of stained tissue"
        ) from error
    tissue = pixels[is_stained(pixels)]
    statistics, problem = _measure(method, tissue)
    if statistics is None:
        raise StudyError(f"stain.reference {reference}: {problem}; name a picture of more stained tissue")
    return _target(method, *statistics, reference=reference.name)


def fit_slide(slide: Slide, target: StainTarget) -> StainFit:
    """Fit a slide by its tissue: pixels at the model's resolution from spots spread evenly over it.

    A slide that shows too little tissue, or one stain only, is left as it is; the fit says why.

    Spots that can't be decoded are passed over.

    Raises:
        MissingMppError: its pixel size is not known.
    """
    grid = Grid.of_method(slide.size, slide.pixel_size)
    rows, columns = np.nonzero(find_tissue(slide, grid))
    spots = np.unique(np.linspace(0, len(rows) - 1, min(_SPOTS, len(rows))).round().astype(int))
    seen = [np.empty((0, 3), np.uint8)]
    for spot in spots:
        row, column = (
            min(int(at), max(0, along - _SPOT_BLOCKS))
            for at, along in ((rows[spot], grid.rows), (columns[spot], grid.columns))
        )
        region = grid.region(row, column, rows=_SPOT_BLOCKS, columns=_SPOT_BLOCKS)
        try:
            pixels = slide.as_scanned.read(region, grid.mpp).reshape(-1, 3)
        except SlideReadError:  # whoever reads the slide for its own sake will say so
            continue
        seen.append(pixels[is_stained(pixels)])
    return fit_pixels(np.concatenate(seen), target)


def fit_pixels(tissue: RGBPixels, target: StainTarget) -> StainFit:
    """Fit to tissue pixels: (n, 3) uint8."""
    statistics, problem = _measure(target.method, tissue)
    if statistics is None:
        return StainFit(target.method, None, (0.0, 0.0, 0.0), len(tissue), problem)
    first, second = statistics
    wanted_first, wanted_second = np.array(target.first), np.array(target.second)
    if target.method == "macenko":
        matrix = wanted_first @ np.diag(wanted_second / second) @ np.linalg.pinv(first)
        offset = np.zeros(3)
    else:
        back = np.linalg.inv(_TO_LAB)
        matrix = back @ np.diag(wanted_second / second) @ _TO_LAB
        offset = back @ (wanted_first[0] - first[0] * wanted_second / second)
    return StainFit(
        target.method,
        tuple(tuple(float(value) for value in row) for row in matrix),
        tuple(float(value) for value in offset),
        len(tissue),
    )


def write_fit(path: Path, fit: StainFit, *, key: str, image: str) -> None:
    """Keep a fit; `key` says what slide and target it belongs to."""
    write_json(path, {"key": key, "image": image, **asdict(fit)})


def read_fit(path: Path, key: str) -> StainFit | None:
    """A fit that was kept under `key`; None if there is none, or it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["key"] != key:
            return None
        matrix = values["matrix"] and tuple(tuple(map(float, row)) for row in values["matrix"])
        offset = tuple(map(float, values["offset"]))
        return StainFit(values["method"], matrix, offset, int(values["pixels"]), values["fallback"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(method: Method, tissue: RGBPixels) -> tuple[tuple[Floats, Floats] | None, str]:
    """What `StainTarget` holds, of pixels; or None and why not."""
    if len(tissue) < _MIN_PIXELS:
        return None, f"{len(tissue)} pixels of stained tissue, {_MIN_PIXELS} are needed"
    measure: Callable[[RGBPixels], tuple[Floats, Floats] | None]
    measure = measure_macenko if method == "macenko" else measure_reinhard
    return measure(tissue), "its tissue shows one colour only"


def measure_macenko(tissue: RGBPixels) -> tuple[Floats, Floats] | None:
    """Stain vectors (3, 2), haematoxylin first, and strengths (2,); None if they can't be told apart."""
    density = _DENSITY.astype(np.float64)[tissue]
    dense = density[(density >= _MIN_DENSITY).all(axis=1)]
    if len(dense) < _MIN_PIXELS // 10:
        return None
    plane = np.linalg.eigh(np.cov(dense.T))[1][:, [2, 1]]
    # Towards the colours, so that no angle lies near the seam at ±π.
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    across = dense @ plane
    angle = np.percentile(np.arctan2(across[:, 1], across[:, 0]), [_PERCENTILE, 100 - _PERCENTILE])
    if angle[1] - angle[0] < _MIN_ANGLE:
        return None
    stains = plane @ np.array([np.cos(angle), np.sin(angle)])
    if stains[0, 0] < stains[0, 1]:  # haematoxylin holds back more red
        stains = stains[:, ::-1]
    strength = np.percentile(density @ np.linalg.pinv(stains).T, _STRONGEST, axis=0)
    return (stains, strength) if (strength > 0).all() else None


def measure_reinhard(tissue: RGBPixels) -> tuple[Floats, Floats] | None:
    """Means (1, 3) and standard deviations (3,) of l, α, β; None if there is no spread."""
    lab = np.log((tissue.astype(np.float64) + 1) @ _TO_LMS.T) @ _TO_LAB.T
    spread = lab.std(axis=0)
    return (lab.mean(axis=0)[np.newaxis], spread) if (spread > 1e-3).all() else None


def _target(method: Method, first: Floats, second: Floats, *, reference: str = "built in") -> StainTarget:
    rows = tuple(tuple(round(float(value), 8) for value in row) for row in first)
    return StainTarget(method, rows, tuple(round(float(value), 8) for value in second), reference)


def _mix(
    colours: npt.NDArray[np.float32], matrix: Any, offset: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> npt.NDArray[np.float32]:
    """A 3 × 3 matrix on every pixel, written out: a BLAS may round by how many pixels there are."""
    rows = np.asarray(matrix, np.float32)
    mixed = np.empty_like(colours)
    for channel in range(3):
        mixed[:, channel] = (
            rows[channel, 0] * colours[:, 0]
            + rows[channel, 1] * colours[:, 1]
            + rows[channel, 2] * colours[:, 2]
        ) + np.float32(offset[channel])
    return mixed


def _to_bytes(values: npt.NDArray[np.float32]) -> RGBPixels:
    return (np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)
