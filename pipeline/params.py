"""Parameters: strict models, read from one section of params.yaml, with errors a person can act on."""

import difflib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError
from pydantic import StringConstraints as _StringConstraints
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import PipelineError

# DVC drops numeric keys of a matrix and joins parts of a stage's name with "-": "a" x "b-c" and
# "a-b" x "c" would be one stage. Hence this alphabet for sites, backbones and methods.
NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, _StringConstraints(pattern=NAME_PATTERN)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class ParamsError(PipelineError, ValueError):
    """A parameter is missing, unknown or out of range; the text says which, the constraint and what came."""


class StrictParams(BaseModel):
    """Base of all parameter models: unknown keys are refused, nothing is coerced, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


P = TypeVar("P", bound=StrictParams)


def read_params_file(path: Path) -> dict[str, Any]:
    """The whole params.yaml as plain dicts and lists.

    ruamel, as DVC does: PyYAML reads ``1e-3`` as a string.
    """
    try:
        loaded = YAML(typ="safe", pure=False).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is not there; run from the study's folder or give --params") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not a text in UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ParamsError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', 'unreadable')})") from None
    if not isinstance(loaded, dict):
        raise ParamsError(f"{path}: expected sections (a mapping), got {type(loaded).__name__}")
    return loaded


def parse(model: type[P], raw: Any, where: str) -> P:
    """``raw`` as ``model``; on failure one line per problem: key, constraint, what came.

    Args:
        model: the section's model.
        raw: what stands in params.yaml.
        where: the section's dotted name, for the message.

    Raises:
        ParamsError: something does not fit.
    """
    try:
        # An empty section ("methods.scratch:") is an empty mapping, as a person means it.
        return model.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(model, issue, where) for issue in error.errors())) from None


def load_params(model: type[P], section: str, path: Path = Path("params.yaml")) -> P:
    """One section (dotted: ``sites.north``) of params.yaml, validated.

    Raises:
        ParamsError: the section is missing or does not fit ``model``.
    """
    return parse(model, section_of(read_params_file(path), section, path), section)


def section_of(tree: Any, section: str, path: Path) -> Any:
    """What stands under a dotted name.

    Raises:
        ParamsError: a part of the name is missing; names the nearest that is there.
    """
    seen: list[str] = []
    for part in section.split("."):
        if not isinstance(tree, dict) or part not in tree:
            known = [str(key) for key in tree] if isinstance(tree, dict) else []
            above = ".".join(seen) or str(path)
            raise ParamsError(f"{above}: no '{part}'{nearest(part, known)}")
        tree = tree[part]
        seen.append(part)
    return tree


def load_names(section: str, path: Path = Path("params.yaml")) -> list[str]:
    """The keys of a section (sites, backbones, methods), in the order of the file, checked.

    Raises:
        ParamsError: a key is no valid name, or the section is empty or no mapping.
    """
    tree = section_of(read_params_file(path), section, path)
    if not isinstance(tree, dict) or not tree:
        raise ParamsError(f"{section}: expected at least one named entry")
    for key in tree:
        if not isinstance(key, str) or not re.match(NAME_PATTERN, key):
            raise ParamsError(
                f"{section}: the name {key!r} must match {NAME_PATTERN} (lower case, digits, underscore; "
                "a letter first), because DVC joins names with '-' and drops numbers"
            )
    return list(tree)


def check_versions(*packages: str, path: Path = Path("params.yaml")) -> None:
    """Compare the installed numeric packages with ``versions`` in params.yaml, which the cached results rest on.

    Raises:
        ParamsError: one differs; says what to change.
    """
    pinned = section_of(read_params_file(path), "versions", path)
    for package in packages:
        installed = version(package).split("+")[0]
        wanted = str(section_of(pinned, package, path))
        if installed != wanted:
            raise ParamsError(
                f"versions.{package} is {wanted} in {path}, but {installed} is installed. Install the locked "
                f"version (make), or write {installed} there: what depends on {package} then runs again."
            )


def _explain(model: type[BaseModel], issue: Any, where: str) -> str:
    # "function-..." is a validator's and "tag-..." a choice's: neither stands in params.yaml.
    location = ".".join(str(part) for part in issue["loc"] if not str(part).startswith(("function-", "tag-")))
    key = f"{where}.{location}" if location else where
    if issue["type"] == "extra_forbidden":
        parent: Any = model
        for part in issue["loc"][:-1]:
            parent = _below(parent, part)
        return f"{key}: unknown key{nearest(str(issue['loc'][-1]), list(getattr(parent, 'model_fields', {})))}"
    if issue["type"] == "missing":
        return f"{key}: required, but missing"
    return f"{key}: {issue['msg'].removeprefix('Value error, ')}; got {issue['input']!r}"


def _below(annotation: Any, part: str | int) -> Any:
    """The type that a part of an error's location leads to: a field's, a tagged choice's, a list's element's."""
    if str(part).startswith("tag-"):
        chosen = [choice for choice in get_args(annotation) if Tag(str(part)) in getattr(choice, "__metadata__", ())]
        return chosen[0].__origin__ if chosen else None
    if isinstance(part, int):
        return next(iter(get_args(annotation)), None)
    field = getattr(annotation, "model_fields", {}).get(part)
    return field.annotation if field is not None else None


def nearest(name: str, known: list[str]) -> str:
    """The end of an error text about an unknown name: the nearest known one, else all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
