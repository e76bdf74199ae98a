"""`study.toml` → `Study`, or one line that names the key and the remedy."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hnscc_qp.errors import StudyError
from hnscc_qp.study import Study


def load_study(path: Path, *, weights: str | None = None) -> Study:
    """Read and check a study file (or the `study.toml` of a folder).

    Relative paths in it count from its folder.

    Args:
        path: of the file or folder.
        weights: stands in for the file's `training.weights`; a relative path counts from here.

    Raises:
        StudyError: with one line that names the key and the remedy.
    """
    if path.is_dir():
        path = path / "study.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise StudyError(
            f"there is no study file {path}; write one as in projects/demo/study.toml"
        ) from error
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not TOML: {error}") from error
    if "path" in values:
        raise StudyError(f"{path}: unknown key 'path'; a study is named by its file")
    path = path.resolve()
    values.setdefault("name", path.parent.name)
    _resolve_paths(values, path.parent)
    if isinstance(values.get("truth"), dict):
        values["truth"] = [values["truth"]]
    if weights is not None:
        values.setdefault("training", {})["weights"] = _resolve_weights(weights, Path.cwd())
    try:
        return Study(path=path, **values)
    except ValidationError as error:
        raise StudyError(f"{path}: {_first_problem(error)}") from error


def _resolve_paths(values: dict[str, Any], root: Path) -> None:
    """Make the file's relative paths count from its folder; what is no path the checks will tell."""
    if isinstance(values.get("project"), str):
        values["project"] = root / values["project"]
    if isinstance(values.get("slides"), list) and all(isinstance(item, str) for item in values["slides"]):
        values["slides"] = tuple(root / item for item in values["slides"])
    for section, key in (("split", "file"), ("stain", "reference"), ("training", "weights")):
        table = values.get(section)
        # An empty one means that there is none.
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            table[key] = _resolve_weights(table[key], root) if key == "weights" else str(root / table[key])


def _resolve_weights(weights: str, root: Path) -> str:
    return weights if weights in ("imagenet", "none") else str(root / weights)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = _keys_of(where[:-1])
        tables = {"": known} | {table: _keys_of([*where[:-1], table]) for table in known}
        near = difflib.get_close_matches(where[-1], {name for keys in tables.values() for name in keys}, n=1)
        hint = f"known are {', '.join(known)}"
        if near:
            # A key of the recipes stands one table further down.
            places = [".".join([*where[:-1], table]) for table, keys in tables.items() if near[0] in keys]
            at = "" if near[0] in known else f" in {' or '.join(f'[{place}]' for place in places)}"
            hint = f"did you mean '{near[0]}'{at}?"
        return f"unknown key '{key}'; {hint}"
    if problem["type"] == "missing":
        return f"'{key}' is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # of a whole table: the message says enough
        return f"[{key}]: {message}" if key else message
    return f"'{key}' = {problem['input']!r}: {message}" if key else message


def _keys_of(where: list[str]) -> list[str]:
    model: type[BaseModel] = Study
    for part in where:
        if part.isdecimal():  # of several tables
            continue
        inner = model.model_fields[part].annotation
        inner = next((one for one in get_args(inner) if isinstance(one, type)), inner)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [name for name in model.model_fields if name != "path"]
