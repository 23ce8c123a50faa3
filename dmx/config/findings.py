"""What pydantic finds wrong with an experiment, in words: where, what was given, what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from dmx.config.sections import Experiment
from dmx.errors import suggest

MAX_SHOWN = 60
"""Characters of what was given that a sentence repeats."""

_MUST_BE = " must be "
_SCALARS = ("str", "int", "float", "bool")
# What pydantic calls it, and what the field does.
_PLAIN = {
    "a valid string": "text",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid dictionary": "a section of settings",
}


def sentences(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence per setting; what several types of one setting refuse becomes one."""
    told: dict[str, str] = {}
    for details in findings:
        where, sign, rest = _sentence(details).partition(_MUST_BE)
        if sign and where in told:
            allowed, _, got = told[where].partition(", got ")
            told[where] = f"{allowed} or {rest.partition(', got ')[0]}, got {got}"
        else:
            told[where] = rest
    return [f"{where}{_MUST_BE}{rest}" if rest else where for where, rest in told.items()]


def _sentence(details: Mapping[str, Any]) -> str:
    """Turn one finding of pydantic into words: where, what was given, what is allowed."""
    *parents, last = details["loc"] or ("",)
    kind = details["type"]
    # The last part of an unknown setting is what was written, whatever it looks like.
    written = kind == "unexpected_keyword_argument" or not _is_internal(last)
    location = [*(part for part in parents if not _is_internal(part)), *([last] if written else [])]
    name = ".".join(str(part) for part in location)
    if kind == "unexpected_keyword_argument":
        allowed = sorted(_allowed_keys(location[:-1]))
        hint = suggest(str(location[-1]), allowed) or f" Allowed: {', '.join(allowed)}."
        return f"unknown setting '{name}'.{hint}"
    if kind in {"missing", "missing_argument"}:
        return f"setting '{name}' is missing"
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        return f"{name}: {message}" if name else message
    try:
        got = repr(details["input"])
    except ValueError:
        # Python writes no number of more than 4300 digits.
        got = "a number of thousands of digits"
    got = got if len(got) <= MAX_SHOWN else got[:MAX_SHOWN] + "…"
    where = f"setting '{name}'" if name else "the settings"
    message = details["msg"].removeprefix("Input should be ").partition(", unable to")[0]
    for kind, plain in _PLAIN.items():
        message = message.replace(kind, plain)
    if not details["msg"].startswith("Input should be "):
        return f"{where}: {message[0].lower() + message[1:]}, got {got}"
    return f"{where}{_MUST_BE}{message}, got {got}"


def _is_internal(part: object) -> bool:
    """Tell whether a part of a location names a member of a union instead of a setting."""
    return part in _SCALARS or (
        isinstance(part, str) and any(sign in part for sign in ("[", "(", "literal", "function-"))
    )


def _allowed_keys(location: Sequence[str | int]) -> list[str]:
    section: object = Experiment
    for part in location:
        if isinstance(part, int) or not is_dataclass(section):
            continue
        section = _section_of(get_type_hints(section).get(str(part)))
    return [field.name for field in fields(section)] if is_dataclass(section) else []


def _section_of(annotation: object) -> object:
    """Find the dataclass inside of ``tuple[Section, ...]`` or ``Section | None``."""
    if is_dataclass(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part)) is not None), None)
