"""How every verb's help reads: the example first, options in groups, --quiet everywhere."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, get_args, get_origin

import typer
from typer.models import OptionInfo

PANELS: Final[dict[str, tuple[str, ...]]] = {
    # what a group is called: options that go there unless they say otherwise; the others stay above
    "Files and runs": ("output", "format", "resume", "overwrite", "interval", "state_interval", "data"),
    "Machine": ("device", "devices", "nodes", "dtype", "threads", "compile", "batch_size"),
    "Many structures": ("workers", "shard", "executor", "chunk", "batch"),
    "What is said": ("as_json", "quiet"),
}
PANEL_OF: Final = {name: panel for panel, names in PANELS.items() for name in names}
QUIET: Final = "quiet"
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing of progress, and no warnings: results and errors only.")
]


def teaching_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The function's parameters with --quiet, each option in its group."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [p.replace(annotation=_in_panel(p.name, p.annotation)) for p in signature.parameters.values()]
    if QUIET not in signature.parameters:
        annotation = _in_panel(QUIET, Quiet)
        parameters.append(
            inspect.Parameter(QUIET, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        )
    return signature.replace(parameters=parameters)


def _in_panel(name: str, annotation: Any) -> Any:
    if get_origin(annotation) is not Annotated or name not in PANEL_OF:
        return annotation
    kind, *notes = get_args(annotation)
    options = [note for note in notes if isinstance(note, OptionInfo)]
    if not options or options[0].rich_help_panel is not None:
        return annotation
    option = copy.copy(options[0])
    option.rich_help_panel = PANEL_OF[name]
    return Annotated[kind, option]


def example_first(text: str) -> str:
    """A docstring with its examples after the first paragraph, before the explanations."""
    first, *rest = inspect.cleandoc(text).split("\n\n")
    is_example = re.compile(r"(?:Example:|and then|or with|or)\s+egnn-md ")
    examples = [part for part in rest if is_example.match(part)]
    return "\n\n".join([first, *examples, *(part for part in rest if part not in examples)])
