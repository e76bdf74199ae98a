"""`train --all-networks`: the paper's four networks as candidates for the primary, and Table 2."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from hnscc_qp.errors import HnsccQpError, StepError
from hnscc_qp.files import atomic_path
from hnscc_qp.generation import MANIFEST, make_manifest, write_manifest
from hnscc_qp.models.checkpoint import PRIMARY, load_card
from hnscc_qp.models.dense import DENSE_NETWORKS
from hnscc_qp.models.networks import NETWORKS, depth_of
from hnscc_qp.steps.choice import CHOSEN, STEP, choice_settings, with_network
from hnscc_qp.steps.context import Context, Manifest
from hnscc_qp.steps.table2 import write_table
from hnscc_qp.steps.train import train_primary
from hnscc_qp.training.compute import is_first_process
from hnscc_qp.training.report import EVALUATION_FILE, draw_comparison
from hnscc_qp.training.report import FOLDER as FIGURES
from hnscc_qp.training.state import STATE_FILE

_SHARES = ("accuracy", "sensitivity", "specificity", "auc")


def train_networks(context: Context) -> Manifest:
    """Train each network as a primary, write Table 2 (Tang et al. 2022), and make the best one the primary.

    The best has the highest AUC on validation, then the highest accuracy, then the fewest parameters; test
    patients decide nothing. A network that is done is not done again; one that fails is named and the
    others are done.

    Raises:
        StepError: there is nothing to train on yet.
        HnsccQpError: every network failed; the first reason.
    """
    started = time.time()
    done: dict[str, Manifest] = {}
    failed: dict[str, str] = {}
    notes = []
    first: HnsccQpError | None = None
    dense = context.study.training.recipe == "dense"
    candidates = [network for network in NETWORKS if not dense or network in DENSE_NETWORKS]
    for network in NETWORKS:
        if network not in candidates:
            notes.append(f'{network} has no dense form and is left out; recipe = "window" trains it')
    for number, network in enumerate(candidates, start=1):
        context.progress.say(f"[{number}/{len(candidates)}] {network}")
        try:
            done[network] = train_primary(with_network(context, network), step=f"{STEP}/{network}")
        except StepError:
            raise  # an earlier step is missing, for every network
        except HnsccQpError as error:
            first = first or error
            failed[network] = str(error)
            context.progress.warn(f"{network}: {error}")
    if not done:
        assert first is not None
        raise first
    settings, inputs = choice_settings(context), next(iter(done.values()))["inputs"]
    if not is_first_process():  # the first one writes
        return make_manifest(step=STEP, settings=settings, inputs=inputs, counts={}, started=started)
    folder = context.generation.step(STEP)
    rows = [_row(network, folder / network) for network in done]
    best = max(rows, key=lambda row: (row["validation auc"], row["validation accuracy"], -row["parameters"]))
    best["chosen"] = True
    chosen = str(best["network"])
    write_table(folder, rows)
    draw_comparison(
        folder / "roc.png",
        {network: json.loads((folder / network / FIGURES / EVALUATION_FILE).read_text()) for network in done},
        title="candidates for the primary, on validation",
        progress=context.progress,
    )
    notes += [f"{network}: {note}" for network, found in done.items() for note in found["notes"]]
    notes.append(f"the primary is {chosen}: it has the highest AUC on validation")
    manifest = make_manifest(
        step=STEP,
        settings=settings,
        inputs=inputs,
        outputs={CHOSEN: chosen} | {f"{name} model": _sha256(found) for name, found in done.items()},
        counts={"networks": len(done)},
        started=started,
        failed=failed,
        notes=notes,
    )
    manifest["table"] = rows
    _promote(context, done[chosen], folder / chosen)
    write_manifest(folder, manifest)
    return manifest


def _sha256(manifest: Manifest) -> str:
    (sha256,) = manifest["outputs"].values()
    return str(sha256)


def _row(network: str, folder: Path) -> dict[str, Any]:
    """One line of Table 2: the network's own depth and size, and its figures on each side."""
    card = load_card(folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    row: dict[str, Any] = {
        "network": network,
        "chosen": False,
        "depth": depth_of(network),
        "parameters": card.parameters,
        "recipe": card.recipe,
        "input_px": card.input_px,
        "weights": card.weights_origin["name"],
    }
    for side, figures in card.figures.items():
        row[f"{side} windows"] = figures["n"]
        for share in _SHARES:
            row[f"{side} {share}"] = figures[share]
            row[f"{side} {share} interval"] = figures[f"{share}_interval"]
            if share != "auc":
                row[f"{side} {share} wilson"] = figures[f"{share}_wilson"]
    row["epochs"] = manifest["counts"]["epochs"]
    row["best epoch"] = manifest["counts"]["best epoch"]
    row["seconds"] = card.seconds
    row["device"] = card.device
    return row


def _promote(context: Context, candidate: Manifest, source: Path) -> None:
    """Make a candidate the primary, by a copy of its files; the manifest comes last."""
    settings, inputs = candidate["settings"], candidate["inputs"]
    before = context.finished(PRIMARY, settings, inputs)
    if before and before["outputs"] == candidate["outputs"]:
        return
    target = context.generation.step(PRIMARY)
    for name in (MANIFEST, STATE_FILE):
        (target / name).unlink(missing_ok=True)
    for path in sorted(source.rglob("*")):
        if path.is_file() and path not in (source / MANIFEST, source / STATE_FILE):
            with atomic_path(target / path.relative_to(source)) as partial:
                shutil.copyfile(path, partial)
    manifest = make_manifest(
        step=PRIMARY,
        settings=settings,
        inputs=inputs,
        outputs=candidate["outputs"],
        # A candidate that --max-minutes stopped goes on as a candidate; the copy is done.
        counts=candidate["counts"] | {"out of time": False},
        started=time.time() - candidate["seconds"],
        notes=[*candidate["notes"], f"chosen among the networks; copied from {STEP}/{source.name}"],
    )
    write_manifest(target, manifest)
