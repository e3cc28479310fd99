"""The signatures of all public functions side by side, and the options of all commands.

python tools/signatures.py     prints the table of docs/architecture.md
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import Positional

import uniformerv2
from uniformerv2.cli import LOCALISER_COMMANDS, Command
from uniformerv2.video.views import Views

POSITIONAL = get_args(Positional[int])[1]  # what marks a field that is given in order

# keywords that stand in this order wherever they stand
ORDER = (
    *(
        "root",
        "classes",
        "split",
        "views",
        "batch_size",
        "window_seconds",
        "stride_seconds",
        "window_frames",
        "stride_frames",
    ),
    *("head", "precision", "device", "workers", "journal", "resume", "overwrite", "progress", "top_k", "on_event"),
)


def signatures() -> dict[str, inspect.Signature]:
    """The public functions, the constructors that are written by hand, and the public methods of classes, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in uniformerv2.__all__:
        value = getattr(uniformerv2, name)
        if inspect.isclass(value):
            if "__init__" in vars(value) and not is_dataclass(value):
                found[name] = value
            methods = {method: getattr(value, method) for method in vars(value) if not method.startswith("_")}
            found |= {f"{name}.{method}": call for method, call in methods.items() if callable(call)}
        elif callable(value):
            found[name] = value
    return {name: _without_self(inspect.signature(call)) for name, call in found.items()}


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    parameters = [one for name, one in signature.parameters.items() if name != "self"]
    return signature.replace(parameters=parameters)


def table() -> str:
    """A row for each signature: what is given in order, keywords that several have, those of its own."""
    found = signatures()
    counts = Counter(one.name for signature in found.values() for one in signature.parameters.values() if keyword(one))
    lines = ["| call | in order | keywords that several have | its own |", "|---|---|---|---|"]
    for name, signature in found.items():
        parameters = list(signature.parameters.values())
        ordered = [one for one in parameters if not keyword(one)]
        shared = [one for one in parameters if keyword(one) and counts[one.name] > 1]
        own = [one for one in parameters if keyword(one) and counts[one.name] == 1]
        cells = [", ".join(map(_shown, cell)) for cell in (ordered, shared, own)]
        if any(cells):
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def keyword(parameter: inspect.Parameter) -> bool:
    """Whether it can only be given by its name."""
    return parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def default(parameter: inspect.Parameter) -> str:
    """As in the source, as far as that is short; "" of none."""
    if parameter.default is inspect.Parameter.empty:
        return ""
    if parameter.name == "workers":  # which differs from machine to machine
        return "WORKERS"
    if parameter.default == Views():
        return "Views()"
    return getattr(parameter.default, "__name__", repr(parameter.default))


def _shown(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
    value = f"={default(parameter)}" if default(parameter) else ""
    return f"`{stars}{parameter.name}{value}`"


class Option(NamedTuple):
    """An option of a command."""

    command: str
    name: str
    owner: str  # the dataclass that defines it
    type: str
    default: str
    aliases: tuple[str, ...]
    help: str


def options() -> Iterator[Option]:
    """Those of all commands."""
    for alternative in (*get_args(Command), *LOCALISER_COMMANDS):
        yield from _options_below(alternative, "")


def _options_below(annotated: Any, before: str) -> Iterator[Option]:
    kind, *metadata = get_args(annotated) or (annotated,)
    own = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()
    name = before + next((one.name for one in metadata if hasattr(one, "is_default")), own)
    command = get_type_hints(kind, include_extras=True).get("command")
    if command is None:
        yield from _options_of(kind, name)
    else:
        while get_origin(command) is Annotated:
            command = get_args(command)[0]
        for alternative in get_args(command):
            yield from _options_below(alternative, f"{name} ")


def _options_of(kind: Any, command: str) -> Iterator[Option]:
    hints, texts = get_type_hints(kind, include_extras=True), _docstrings(kind)
    for field in fields(kind):
        hint = hints[field.name]
        metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if is_dataclass(hint):
            yield from _options_of(hint, command)
        elif POSITIONAL not in metadata:
            given = next((one for one in metadata if hasattr(one, "metavar")), None)
            yield Option(
                command,
                (given and given.name) or field.name.replace("_", "-"),
                kind.__name__,
                str(get_type_hints(kind)[field.name]),
                "required" if field.default is MISSING else repr(field.default),
                tuple(given.aliases or ()) if given else (),
                (given and given.help) or texts.get(field.name, ""),
            )


def _docstrings(kind: type) -> dict[str, str]:
    """What stands below each field, inherited ones too."""
    found = {}
    for definition in (node for parent in kind.__mro__[-2::-1] for node in ast.parse(inspect.getsource(parent)).body):
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


if __name__ == "__main__":
    print(table())
