"""Read JSON and YAML files that may be damaged, foreign or hostile: with limits, a schema and one-line errors."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import yaml

from fairseq_sharing.errors import SharingError

MAX_BYTES = 1 << 28
"""Maximum size of a file; the largest files of this package have a few MB."""

MAX_YAML_BYTES = 1 << 20

MAX_NODES = 100_000
"""Maximum number of values in a YAML file after its aliases are expanded."""

MAX_DEPTH = 100
"""Maximum nesting."""

TOO_DEEP = "..."
_NAME = re.compile(r"(?![.-])[\w.-]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

NAME = "letters, digits and . _ - (not starting with . or -)"
"""What ``is_name`` allows, for errors."""

Field = tuple[Callable[[Any], bool], str]
"""A check of a value, and a description of the allowed values."""

Schema = Mapping[str, Field]


def is_text(value: object) -> bool:
    """Return whether a value is text."""
    return isinstance(value, str)


def is_flag(value: object) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    """Return whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_quantity(value: object) -> bool:
    """Return whether a value is a number from 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def is_name(value: object) -> bool:
    """Return whether a value can be one segment of a path; whole numbers, which YAML does not read as text, too."""
    return not isinstance(value, bool) and isinstance(value, str | int) and bool(_NAME.fullmatch(str(value)))


def optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that also accepts null."""
    return lambda value: value is None or check(value)


def list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for lists of values."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def mapping_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for mappings from text to values."""
    return lambda value: isinstance(value, dict) and all(is_text(key) and check(item) for key, item in value.items())


def has_fields(schema: Schema, needed: tuple[str, ...] = ()) -> Callable[[Any], bool]:
    """Return a check for mappings whose fields match a schema."""
    return lambda value: (
        isinstance(value, dict)
        and all(key in value for key in needed)
        and all(check(value[key]) for key, (check, _) in schema.items() if key in value)
    )


def read_json(file: Path, schema: Schema, kind: str, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON file that must contain a mapping.

    Args:
        file: the file.
        schema: the fields to check, if they are present.
        kind: what the file must be, for errors: "a manifest of prepare or export".
        needed: the required fields.

    Returns:
        The content.

    Raises:
        SharingError: the file is missing, too large, not UTF-8 or not JSON, contains numbers or text that cannot be
            written again, or does not match the schema.
    """
    text = _text(file, MAX_BYTES, "JSON")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SharingError(f"{file}: not JSON ({_reason(error)})") from None
    return check_document(content, file, schema, kind, needed)


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Returns:
        Its content: mappings, lists, text, numbers, true, false and null.

    Raises:
        SharingError: the file is missing, too large, not UTF-8 or not YAML, expands to too many values by its aliases,
            or contains other values.
    """
    content = load_yaml(_text(file, MAX_YAML_BYTES, "YAML"), file)
    _refuse_unusual(content, file)
    return content


def load_yaml(text: str, name: object) -> Any:
    """Parse YAML text.

    Values are counted before aliases are expanded, since nine lines of aliases can fill the memory.

    Args:
        text: the text.
        name: its name in errors.

    Raises:
        SharingError: the text is not YAML, is nested too deeply, or its aliases expand to too many values.
    """
    try:
        _refuse_nested(text)
        node = yaml.compose(text, Loader=_loader())
        if node is not None and _expanded(node, {}, 0) > MAX_NODES:
            raise SharingError(f"{name}: not readable as YAML: its aliases expand to more than {MAX_NODES:,} values")
        return yaml.load(text, Loader=_loader())
    except SharingError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:  # also of int() and of a merged scalar
        raise SharingError(f"{name}: not readable as YAML: {_reason(error)}") from None


def check_document(
    content: Any, file: object, schema: Schema, kind: str, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check the content of a file. The arguments and errors are those of ``read_json``."""
    if not isinstance(content, dict):
        raise SharingError(f"{file}: not {kind}: {shortened(content)}; allowed: a mapping")
    missing = [key for key in needed if key not in content]
    if missing:
        raise SharingError(f"{file}: not {kind}; missing: {', '.join(missing)}")
    _refuse_unusual(content, file)
    for key, (allowed, description) in schema.items():
        if key in content and not allowed(content[key]):
            raise SharingError(f"{file}: not {kind}: {key} is {shortened(content[key])}; allowed: {description}")
    return content


def _text(file: Path, limit: int, language: str) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(limit + 1)
    except FileNotFoundError:
        raise SharingError(f"{file}: no such file") from None
    if len(content) > limit:
        raise SharingError(f"{file}: not {language}: larger than {limit >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at position {error.start + 1}"
        raise SharingError(f"{file}: not {language}: not UTF-8 ({byte})") from None


def _refuse_nested(text: str) -> None:
    """Refuse deep nesting before the parser, which is slow and recursive, has read all of it."""
    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _expanded(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Count the values of a node with its aliases expanded."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep, or an alias that contains itself")
    if id(node) not in known:
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_expanded(child, known, depth + 1) for child in children)
    return known[id(node)]


def _refuse_unusual(content: Any, file: object) -> None:
    """Refuse values that this package cannot use or write again."""
    for field, value in leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise SharingError(f"{file}: {field}: {value}; allowed: finite numbers")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise SharingError(f"{file}: {field}: a number of more than 64 bits")
        if isinstance(value, str) and (found := _SURROGATE.search(value)):
            raise SharingError(f"{file}: {field}: not Unicode text (surrogate U+{ord(found[0]):04X})")
        if value is not None and not isinstance(value, str | int | float):
            raise SharingError(f"{file}: {field}: {shortened(value)}; allowed: text, numbers, true, false and null")
        if field == TOO_DEEP:
            raise SharingError(f"{file}: nested more than {MAX_DEPTH} levels deep")


def leaves(content: Any, field: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield each key and each value that is neither a mapping nor a list, with its path.

    Args:
        content: mappings and lists.
        field: the path of the content.
        depth: its nesting; anything nested more than ``MAX_DEPTH`` levels deep is left out and named ``TOO_DEEP``.
    """
    if depth > MAX_DEPTH:
        yield TOO_DEEP, None
    elif isinstance(content, dict):
        for key, value in content.items():
            path = f"{field}.{key if isinstance(key, str) else shortened(key)}".lstrip(".")
            yield path, key
            yield from leaves(value, path, depth + 1)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from leaves(value, f"{field}.{number}".lstrip("."), depth + 1)
    else:
        yield field, content


@functools.cache
def _loader() -> Any:
    """Return omegaconf's loader: 1e-4 is a number, dates are text, keys are unique."""
    from omegaconf._utils import get_yaml_loader  # not needed by --help

    return get_yaml_loader()


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"nested more than {MAX_DEPTH} levels deep"
    return " ".join(str(error).split())[:200] or type(error).__name__
