"""Data files inside installed packages, which are found without importing these."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rnnscale._errors import MissingPackageError


def file_of_package(package: str, path: str) -> Path:
    """A file that an installed distribution brought along.

    **Raises:** `ImportError` where it is not installed, or has no such file.
    """
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise MissingPackageError(
            f"the data come with the package {package}, which is not installed; "
            "install it with: pip install 'rnnscale[datasets]'"
        ) from error
    if not found.is_file():
        raise MissingPackageError(
            f"the installed {package} has no {path}; install one that has with: "
            "pip install 'rnnscale[datasets]'"
        )
    return found
