"""Which files of the project a module's import runs, read from the source; for the tests of dvc.yaml."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


class DynamicImportError(AssertionError):
    """An import that cannot be resolved by reading."""


def module_file(name: str) -> Path | None:
    """The file of a module of ours, relative to the root; None for other people's, and for packages."""
    if name.split(".")[0] != "pipeline":
        return None
    path = Path(*name.split(".")).with_suffix(".py")
    return path if (ROOT / path).is_file() else None


def direct_imports(path: Path) -> tuple[set[Path], set[str], set[str]]:
    """Of one file: our modules it imports, folders it imports from by name, other packages it imports."""
    ours: set[Path] = set()
    folders: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            folders.add(dynamic_folder(node, path))
        elif isinstance(node, ast.Name) and node.id == "__import__":
            raise DynamicImportError(f"{path}:{node.lineno}: __import__")
        for name in names:
            file = module_file(name)
            if file is not None:
                ours.add(file)
            elif name.split(".")[0] != "pipeline":
                others.add(name.split(".")[0])
    return ours, folders, others


def dynamic_folder(call: ast.Call, path: Path) -> str:
    """The folder in ``import_module(f"pipeline.FOLDER.{name}")``, the one form that is allowed."""
    match = re.fullmatch(r"f'pipeline\.(\w+)\.\{\w+\}'", ast.unparse(call.args[0]))
    if match is None:
        raise DynamicImportError(f"{path}:{call.lineno}: {ast.unparse(call)}")
    return f"pipeline/{match[1]}"


def closure(start: Path, chosen: dict[str, str]) -> tuple[set[str], set[str]]:
    """All files that importing ``start`` runs, and the other packages they import.

    Args:
        start: relative to the root.
        chosen: folder of a dynamic import (``pipeline/transfer``) to the module's name. A folder that is not there
            may be imported from at will: all its modules are followed, and the folder stands for them.
    """
    todo, seen, packages = [start], set(), set()
    whole: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        ours, folders, others = direct_imports(path)
        packages |= others
        todo += ours
        for folder in map(Path, folders):
            if folder.as_posix() in chosen:
                todo.append(folder / f"{chosen[folder.as_posix()]}.py")
            else:
                whole.add(folder)
                todo += [found.relative_to(ROOT) for found in (ROOT / folder).glob("*.py")]
        for data in (path.parent / "templates", path.with_suffix(".txt")):  # what the module reads
            if (ROOT / data).exists():
                seen.add(data)
    single = {path for path in seen if path.parent not in whole}
    return {path.as_posix() for path in single | whole}, packages


def shared_modules(start: Path, folder: str) -> tuple[set[str], set[str]]:
    """What any of a folder's modules may run beside itself, where one of them is chosen by name; and the packages.

    A template in dvc.yaml has one list for all of them: their own file, and whatever another of them needs.
    """
    paths = {path.relative_to(ROOT) for path in (ROOT / folder).glob("*.py")} - {Path(folder, "__init__.py")}
    imported = {found for path in paths for found in direct_imports(path)[0]}
    chosen = sorted(path for path in paths - imported)
    found = [closure(start, {folder: path.stem}) for path in chosen]
    files, packages = (set().union(*parts) for parts in zip(*found, strict=True))
    return files - {path.as_posix() for path in chosen}, packages
