"""Builds the API reference in `site/`: a page for each package, with its guide and its exports.

`make docs` runs it. pdoc does the work; this file collects the pages, turns links between Markdown
files into links between pages, and keeps Markdown away from equations. Any warning is an error.
"""

import ast
import importlib
import os
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

from pdoc import doc, render

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
PACKAGES = {"rnnscale": "rnnscale", "rnnscale_kernels": "kernels", "benchmarks": "benchmarks"}
# Pages that belong to no package.
LOOSE = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
STYLE = "<style>.pdoc img { max-width: 100%; }</style>"


def guide_of(package: str) -> str:
    """The path of the guide of a package, which need not exist."""
    root, *rest = package.split(".")
    return "README.md" if package == "rnnscale" else "/".join([PACKAGES[root], *rest, "README.md"])


def exported(package: ModuleType) -> list[str]:
    """The names that a package re-exports from its private files, in the order of its imports.

    They are imported as well: pdoc looks for names where they are after that.
    """
    source = Path(str(package.__file__))
    stub = source.with_suffix(".pyi")
    tree = ast.parse((stub if stub.is_file() else source).read_text(encoding="utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = [each.name for node in imports for each in node.names if each.name == each.asname]
    return [name for name in names if not isinstance(getattr(package, name), ModuleType)]


def packages() -> dict[str, ModuleType]:
    found = {}
    for root in ("rnnscale", "rnnscale_kernels"):
        found[root] = importlib.import_module(root)
        for each in pkgutil.walk_packages(found[root].__path__, f"{root}."):
            if each.ispkg:
                found[each.name] = importlib.import_module(each.name)
    # pdoc takes a package's names and subpackages from `__all__`. The top level repeats no class
    # that a subpackage documents.
    for name, package in found.items():
        inner = [other for other in found if other.rpartition(".")[0] == name]
        repeated = {each for other in inner for each in exported(found[other])}
        own = [each for each in exported(package) if each not in repeated]
        package.__all__ = own + [other.rpartition(".")[2] for other in inner]  # pyright: ignore
    found["benchmarks"] = ModuleType("benchmarks")
    return found


def on_the_site(text: str, page: str, targets: dict[str, str], address: str) -> str:
    """The text of a Markdown page, with its relative links made links of the site.

    Links to files that are not pages lead to copies of these files.
    """

    def replace(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        if "://" in target or not target:
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(page), target))
        if path not in targets:
            copy = SITE / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, copy)
        href = os.path.relpath(targets.get(path, path), os.path.dirname(address) or ".")
        return f"]({href}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", replace, text)


def protect_equations(text: str) -> str:
    """Escapes what Markdown would take for emphasis or an escape between dollar signs."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[1] else re.sub(r"([\\_*\[\]`])", r"\\\1", match[0])

    return re.sub(r"(?s)(^```.*?^```|`[^`]*`)|\$\$.+?\$\$|\$[^$\n]+\$", escape, text, flags=re.M)


def main() -> None:
    warnings.simplefilter("error")
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir()
    modules = packages()
    modules |= {name: ModuleType(name) for name in LOOSE}
    pages = {name: LOOSE.get(name) or guide_of(name) for name in modules}
    addresses = {name: name.replace(".", "/") + ".html" for name in modules}
    targets = {file: addresses[name] for name, file in pages.items()}
    for name, module in modules.items():
        if (ROOT / pages[name]).is_file():
            guide = (ROOT / pages[name]).read_text(encoding="utf-8")
            guide = on_the_site(guide, pages[name], targets, addresses[name])
            module.__doc__ = f"{module.__doc__ or ''}\n\n{guide}".strip()
    to_html = render.env.filters["to_html"]
    render.env.filters["to_html"] = lambda text: to_html(protect_equations(text))
    version = f"rnnscale {modules['rnnscale'].__version__}"
    render.configure(docformat="markdown", math=True, show_source=False, footer_text=version)
    documented = {name: doc.Module(module) for name, module in modules.items()}
    for name, module in documented.items():
        file = SITE / addresses[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        page = render.html_module(module, documented).replace("</head>", f"{STYLE}</head>", 1)
        file.write_text(page, encoding="utf-8")
    (SITE / "index.html").write_text('<meta http-equiv="refresh" content="0; url=rnnscale.html">\n')
    (SITE / "search.js").write_text(render.search_index(documented), encoding="utf-8")
    print(f"{len(documented)} pages in {SITE}, to be opened at index.html")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    main()
