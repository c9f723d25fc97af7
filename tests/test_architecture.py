"""The arrows between the packages, read from the sources: everything imports downwards only."""

import ast
import graphlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def _folder(package: str) -> Path:
    # Not imported: the rules are about the files, in a checkout and in an installed wheel alike.
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


ROOTS = {name: _folder(name) for name in ("rnnscale_kernels", "rnnscale")}

# Each part, and the parts that it may import. A new part of rnnscale needs a line here.
_KERNELS = {"rnnscale_kernels", "_errors"}
_SHARDING = _KERNELS | {"_checks", "_fields", "sharding"}
_CELLS = _SHARDING | {"_base", "_contract", "_over_time"}
_LAYERS = _CELLS | {"cells", "layers"}
_MODELS = _LAYERS | {"ssm", "attention", "models"}
_DATA = {"_checks", "_errors", "data"}
_TRAINING = _MODELS | {"distributed", "training"}
_RUNS = _TRAINING | _DATA | {"tasks", "runs"}
_TOOLS = {"analysis", "interop", "verify"}
ALLOWED = {
    "rnnscale_kernels": {"rnnscale_kernels"},
    "_errors": set(),
    "_checks": set(),
    "_fields": set(),
    "sharding": _SHARDING,
    "_base": _SHARDING,
    "_contract": _SHARDING | {"_base"},
    "_over_time": _SHARDING,
    "cells": _CELLS | {"cells"},
    "layers": _LAYERS,
    "ssm": _LAYERS | {"ssm"},
    "attention": _LAYERS | {"attention"},
    "models": _MODELS,
    **{tool: _MODELS | {tool} for tool in _TOOLS},
    "analysis": _MODELS | {"analysis", "plan"},
    "data": _DATA,
    "tasks": _DATA | {"tasks"},
    "distributed": {"_errors", "distributed"},
    "training": _TRAINING,
    "runs": _RUNS,
    "experiments": _RUNS | {"experiments"},
    "plan": _RUNS | {"plan"},
    "cli": _RUNS | _TOOLS | {"experiments", "plan", "cli"},
    "__init__": _RUNS | _TOOLS | {"experiments", "plan", "cli"},
    "__main__": {"cli"},
}


def _files(root: str) -> list[Path]:
    """All sources. The names of a package of rnnscale are in its `__init__.pyi`."""
    return sorted([*ROOTS[root].rglob("*.py"), *ROOTS[root].rglob("*.pyi")])


def _module(root: str, path: Path) -> str:
    parts = path.relative_to(ROOTS[root]).with_suffix("").parts
    return ".".join((root, *(part for part in parts if part != "__init__")))


def _part(module: str) -> str:
    root, *rest = module.split(".")
    if root == "rnnscale":
        return rest[0] if rest else "__init__"
    return root


def _imports(root: str, path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, those inside functions too, as (line, absolute module)."""
    module = _module(root, path)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(source, package)
            # `from rnnscale import data` and `from . import _x` import a module by its name.
            yield from (
                (
                    node.lineno,
                    f"{source}.{alias.name}" if _is_module(source, alias.name) else source,
                )
                for alias in node.names
            )


def _is_module(package: str, name: str) -> bool:
    root, *rest = package.split(".")
    if root not in ROOTS:
        return False
    path = ROOTS[root].joinpath(*rest, name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def _where(path: Path, line: int) -> str:
    return f"{path.parent.name}/{path.name}:{line}"


@pytest.mark.parametrize("root", ROOTS)
def test_imports_point_down(root: str) -> None:
    wrong = []
    for path in _files(root):
        part = _part(_module(root, path))
        assert part in ALLOWED, f"{path.name}: give {part!r} a place in ALLOWED"
        for line, target in _imports(root, path):
            if target.split(".")[0] in ROOTS and _part(target) not in ALLOWED[part]:
                wrong.append(f"{_where(path, line)}: {part} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """There is no import circle, whether its imports stand at the top or inside functions."""
    imports: dict[str, set[str]] = {}
    for root in ROOTS:
        for path in _files(root):
            found = imports.setdefault(_module(root, path), set())
            found |= {name for _, name in _imports(root, path)}
    # In `TopologicalSorter` a circle is an error that names its modules.
    graph = {module: found & imports.keys() - {module} for module, found in imports.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("root", ROOTS)
def test_packages_use_each_other_by_public_names(root: str) -> None:
    wrong = []
    for path in _files(root):
        part = _part(_module(root, path))
        for line, target in _imports(root, path):
            if target.split(".")[0] not in ROOTS or _part(target) == part:
                continue
            # rnnscale._base, _contract and _fields are shared by the packages of rnnscale.
            inner = target.split(".")[1 if target.startswith("rnnscale_kernels") else 2 :]
            if any(name.startswith("_") for name in inner):
                wrong.append(f"{_where(path, line)}: {part} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_kernels_need_jax_and_numpy_only() -> None:
    allowed = {"jax", "jaxlib", "numpy", "jaxtyping", "rnnscale_kernels"} | sys.stdlib_module_names
    # An extra; test_import.py sees that nothing is loaded before it is needed.
    triton = {"triton", "jax_triton"}
    wrong = [
        f"{_where(path, line)}: imports {target}"
        for path in _files("rnnscale_kernels")
        for line, target in _imports("rnnscale_kernels", path)
        if target.split(".")[0] not in allowed | (triton if "_triton" in path.name else set())
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_is_no_package() -> None:
    # The import name `kernels` belongs to another library.
    assert not (ROOTS["rnnscale_kernels"].parent / "__init__.py").exists()


@pytest.mark.parametrize("root", ROOTS)
def test_modules_are_private(root: str) -> None:
    public = [_where(path, 1) for path in _files(root) if not path.name.startswith("_")]
    assert not public, f"name them _{{name}}.py and re-export: {public}"


@pytest.mark.parametrize("root", ROOTS)
def test_packages_reexport_as_themselves(root: str) -> None:
    wrong = []
    for path in _files(root):
        if path.stem != "__init__":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level == 0 and (node.module or "").split(".")[0] not in ROOTS:
                continue
            wrong += [
                f"{_where(path, node.lineno)}: write `{alias.name} as {alias.name}`"
                for alias in node.names
                if not alias.name.startswith("_") and alias.asname != alias.name
            ]
    assert not wrong, "\n".join(wrong)


def test_consoles_take_no_markup() -> None:
    """Names of files, packages and parameters have brackets, which the markup of rich would eat.
    That of `rnnscale.cli` takes none."""
    wrong = [
        _where(path, node.lineno)
        for path in _files("rnnscale")
        if path.parent.name != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Console", "TextColumn")
        and not any(each.arg == "markup" for each in node.keywords)
    ]
    assert not wrong, f"write {wrong} with markup=False"
