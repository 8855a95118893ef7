"""Arguments that say how a recording is read, and what they mean to a reader."""

import argparse
import re
from typing import Any

from ..config import registered
from ..data.convert import parse_options
from ..data.formats import Format
from ..data.session import SessionError

__all__ = ["add_reader_arguments", "reader_options"]

_ROLE = re.compile(r":[a-z]+:`~?(?:[a-z_]+[.])*")  # what docstrings put before the name of a class


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them; the help lists the further options of every format."""
    flags = parser.add_argument_group("how a recording is read")
    flags.add_argument("--format", choices=list(registered("format")), help="default: what the source looks like")
    flags.add_argument("--name", help="of the session; default: the source's")
    flags.add_argument("--subject", help="default: the source's, else the name up to the first _")
    flags.add_argument("--bin_rate", help="bins a second, Hz, where the source does not say")
    flags.add_argument("--stimulus", help="name of the stimulus, where there are several")
    flags.add_argument("--mapping", metavar="FILE", help="nwb: which series is what (.yaml)")
    flags.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="further options; see below")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["options of the formats:", *_format_lines()])


def reader_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The reader's options that were given, by flags of their own or by --options."""
    options = parse_options(arguments.options)
    for key in ("name", "subject", "bin_rate", "stimulus", "mapping"):
        value = getattr(arguments, key)
        if value is None:
            continue
        if key in options:
            raise SessionError(f"--{key} and --options {key}=...: give one of them")
        options[key] = value
    return options


def _format_lines() -> list[str]:
    lines = []
    shared = set(Format.model_fields) | {"stimulus", "mapping"}
    for name, kind in registered("format").items():
        first = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name}: {re.sub(_ROLE, '', first).replace('`', '')}")
        for key, field in kind.model_fields.items():
            if key not in shared:
                default = field.get_default(call_default_factory=True)
                lines.append(f"    {key} ({default!r}): {field.description or ''}".rstrip(": "))
    return lines
