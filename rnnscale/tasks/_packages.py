"""Data files that other packages install, found without importing these packages."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rnnscale._errors import MissingPackageError

_INSTALL = "install it with: pip install 'rnnscale[datasets]'"


def missing_package(package: str) -> MissingPackageError:
    """The error for a package with data that is not installed."""
    return MissingPackageError(
        f"the data come with the package {package}, which is not installed; {_INSTALL}"
    )


def file_of_package(package: str, path: str) -> Path:
    """The path of a file that an installed package contains.

    **Arguments:**

    - `package`: the name of the distribution.
    - `path`: relative to the folder that the package is installed in.

    **Raises:** `ImportError` if the package is not installed or has no such file.
    """
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise missing_package(package) from error
    if not found.is_file():
        raise MissingPackageError(
            f"the installed {package} has no {path}; another version may have it: {_INSTALL}"
        )
    return found
