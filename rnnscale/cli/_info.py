"""`rnnscale info`: versions, devices and kernels of this machine."""

import argparse
import platform
from importlib import metadata

_PACKAGES = ("rnnscale", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint")


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "info",
        help="show devices, versions, and which kernels can be used here",
        description="Shows versions, devices, and for every implementation of the recurrences "
        "whether it can be used here, or why not.",
        examples=("rnnscale info", "JAX_PLATFORMS=cpu rnnscale info"),
    )
    parser.set_defaults(command=_info)


def _info(_: argparse.Namespace) -> int:
    import jax

    import rnnscale_kernels

    print("versions")
    _table([("python", platform.python_version())] + [(p, _version(p)) for p in _PACKAGES])
    print("devices")
    try:
        devices = jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names a platform that is not present
        print(f"  none: {' '.join(str(error).split())}")
        return 0
    kinds: dict[tuple[str, str], int] = {}
    for device in devices:
        kind = device.platform, device.device_kind
        kinds[kind] = kinds.get(kind, 0) + 1
    _table([(name, f"{count} x {kind}") for (name, kind), count in kinds.items()])
    plugins = _accelerator_plugins()
    if plugins and all(device.platform == "cpu" for device in devices):
        platforms = jax.config.jax_platforms
        reason = (
            f"it was not looked for, because JAX_PLATFORMS is {platforms!r}"
            if platforms
            else "jax found no such device, or no driver for it"
        )
        print(f"  {', '.join(plugins)} is installed, but its device is not in use: {reason}")
    here = rnnscale_kernels.local_platform()
    for operation, implementations in rnnscale_kernels.implementations(here).items():
        print(f"implementations of {operation} on {here}, in the order in which they are tried")
        _table(
            [
                (name, "usable" if usable else f"not usable: {reason}")
                for name, usable, reason in implementations
            ]
        )
    return 0


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {name:{width}}  {text}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _accelerator_plugins() -> list[str]:
    """The installed packages with which jax can use an accelerator."""
    names = {
        entry.dist.name
        for entry in metadata.entry_points(group="jax_plugins")
        if entry.dist is not None
    }
    # Support for TPUs is built into jax and needs only its library.
    if _version("libtpu") != "not installed":
        names.add("libtpu")
    return sorted(names)
