"""Windows per second of tiatoolbox's PatchPredictor; run by `scoring.py`, in an environment with tiatoolbox.

    python benchmarks/tiatoolbox_scoring.py SLIDE SIDE_BLOCKS THREADS

The same work as `scoring.py`'s naive way: MobileNet-v2 at 224 px over 40 px windows at 1.0 µm/px, one each 10
px, in batches of 64, of a square in the slide's middle. Its start, which is little for a whole slide, is left
out: a square of one block goes before, and differences count. Prints JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tiatoolbox
import torch
import torchvision
import zarr
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC
from tiatoolbox.wsicore.wsireader import WSIReader


class Enlarged(ModelABC):
    """torchvision's MobileNet-v2 of two classes, of windows enlarged to 224 px."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.mobilenet_v2(num_classes=2)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(n, 3, 40, 40) in 0..1 → (n, 2)."""
        return self.network(torch.nn.functional.interpolate(windows, (224, 224), mode="bilinear"))

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
        """(n, 40, 40, 3) uint8 → probabilities."""
        windows = batch_data.to(device).float().permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            return model(windows).softmax(1).cpu().numpy()


def predict(path: Path, side_blocks: int) -> tuple[int, float, float]:
    """Windows, seconds and processor seconds of a square of so many blocks of 10 µm."""
    # The drawn slide says its pixel size where tiatoolbox does not look.
    reader = WSIReader.open(path, mpp=(0.25, 0.25))
    size = reader.slide_dimensions(units="mpp", resolution=10.0)
    mask = np.zeros((size[1], size[0]), np.uint8)
    top, left = (size[1] - side_blocks) // 2, (size[0] - side_blocks) // 2
    mask[top : top + side_blocks, left : left + side_blocks] = 1
    config = IOPatchPredictorConfig(
        input_resolutions=[{"units": "mpp", "resolution": 1.0}],
        patch_input_shape=(40, 40),
        stride_shape=(10, 10),
    )
    engine = PatchPredictor(model=Enlarged().eval(), batch_size=64, verbose=False)
    started, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        given = engine.run(
            images=[reader],
            masks=[mask],
            patch_mode=False,
            ioconfig=config,
            save_dir=Path(folder, "out"),
            output_type="zarr",
            return_probabilities=True,
            device="cpu",
        )
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        (stored,) = given.values()
        count = zarr.open(str(stored), mode="r")["coordinates"].shape[0]
    return count, seconds, cpu


def main(path: Path, side_blocks: int, threads: int) -> None:
    """Time it."""
    torch.set_num_threads(threads)
    predict(path, 1)
    few, start, start_cpu = predict(path, 1)
    many, seconds, cpu = predict(path, side_blocks)
    told = {
        "windows": many - few,
        "seconds": seconds - start,
        "cpu": cpu - start_cpu,
        "start": start,
        "version": tiatoolbox.__version__,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
