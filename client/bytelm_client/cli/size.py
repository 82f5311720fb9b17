"""``bytelm size``: what models take on GPUs, and what they give there.

What is computed is in ``bytelm_client.sizing``; here it is read and shown.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bytelm.errors import UnknownModel
from bytelm_client.cli.console import Progress, one_line_errors, tables
from bytelm_client.cli.flags import finite
from bytelm_client.cli.texts import Json, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from bytelm_client.sizing import Figure, Gpu, ModelShape

DEFAULT_MODELS = ("1b", "8b", "70b")
HOW = 20
"""Columns without which it is not said how a figure was found."""
POWERS = ("B", "kB", "MB", "GB", "TB")


def size(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, Hugging Face names (only the config is fetched), or 135m, 1b, 8b, 70b: "
            "SmolLM2-135M, Llama 3.2 1B, Llama 3.1 8B and 70B; default: the last three.",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="B200, H200, H100, H100-PCIE, A100-80, A100-40, L40S, L4 or RTX4090.",
            metavar="NAME",
        ),
    ] = "H100",
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            help="GPUs that the model is split over (--tensor-parallel-size); default: as few as "
            "hold it and the contexts of a step.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Tokens of each session's context.")
    ] = 2048,
    concurrent: Annotated[
        int,
        typer.Option(
            "--concurrent", min=1, help="Evaluations that are computed together (--max-num-seqs)."
        ),
    ] = 128,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Of the weights: float32, bfloat16, float16 or fp8; default: the config's.",
            show_default=False,
        ),
    ] = None,
    utilization: Annotated[
        float,
        typer.Option(
            "--gpu-memory-utilization", min=0.01, max=1, help="Share of the GPUs' memory to use."
        ),
    ] = 0.9,
    efficiency: Annotated[
        float,
        typer.Option(
            "--efficiency", min=0.01, max=1, help="Share of the published rates that is reached."
        ),
    ] = 0.6,
    evaluations_per_byte: Annotated[
        float | None,
        typer.Option(
            "--evaluations-per-byte",
            min=0.001,
            callback=finite,
            help="What your texts take (usage, or bytelm bench); default: measured.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what models take on GPUs, how many sessions fit and how many bytes/s come out.

    Nothing is started. Each figure says whether it was measured, computed, published by the GPU's
    vendor, or assumed.
    """
    with one_line_errors():
        from bytelm_client.sizing import EVALUATIONS_PER_BYTE, Load, figures, gpu_named

        chosen = gpu_named(gpu)
        load = Load(
            context=context,
            concurrent=concurrent,
            gpus=gpus,
            utilization=utilization,
            efficiency=efficiency,
            evaluations_per_byte=evaluations_per_byte or EVALUATIONS_PER_BYTE,
        )
        shapes = [_shape(name, dtype) for name in model or DEFAULT_MODELS]
        columns = [figures(shape, chosen, load) for shape in shapes]
        if json:
            for shape, column in zip(shapes, columns, strict=True):
                found = [asdict(figure) for figure in column]
                write_json({"model": shape.name, "gpu": chosen.full_name, "figures": found})
        else:
            _table(chosen, shapes, columns)


def _shape(name: str, dtype: str | None) -> "ModelShape":
    from bytelm_client.sizing import PRESETS, of_dtype, shape_in

    if name.lower() in PRESETS and not Path(name).is_dir():
        shape = PRESETS[name.lower()]
        return shape if dtype is None else of_dtype(shape, dtype)
    _check_name(name)
    from bytelm.download import config_folder

    progress = Progress()
    try:
        folder = config_folder(name, progress=progress)
    finally:
        progress.done()
    return shape_in(folder, dtype, None if Path(name).expanduser().is_dir() else name)


def _check_name(name: str) -> None:
    """Refuse at once what looks like one of the presets, and would be looked for on the hub.

    Raises:
        UnknownModel: names the presets.
    """
    from bytelm_client.sizing import PRESETS

    is_size = re.fullmatch(r"[\d.]+[bm]", name.lower())
    near = [] if is_size else get_close_matches(name.lower(), PRESETS, n=1)
    if (is_size or near) and not Path(name).expanduser().exists():
        guess = f": did you mean {near[0]}?" if near else "."
        presets = ", ".join(PRESETS)
        raise UnknownModel(
            f"{name!r} is none of {presets}{guess} Models of the hub are named owner/name"
        )


def _table(
    gpu: "Gpu", shapes: "Sequence[ModelShape]", columns: "Sequence[Sequence[Figure]]"
) -> None:
    console = tables()
    console.print(f"On {gpu.full_name}:")
    table = _figures(shapes, columns, with_how=True)
    if console.measure(table).minimum > console.width - HOW:
        table = _figures(shapes, columns, with_how=False)
    console.print(table)


def _figures(
    shapes: "Sequence[ModelShape]", columns: "Sequence[Sequence[Figure]]", with_how: bool
) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for shape in shapes:
        table.add_column(shape.name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    about = ""
    for row in zip(*columns, strict=True):
        first = row[0]
        if about not in ("", first.about):
            table.add_row()
        about = first.about
        how = list(dict.fromkeys(figure.how for figure in row))
        kinds = list(dict.fromkeys(figure.kind for figure in row))
        cells: list[str | Text] = [shown(figure.value, figure.unit) for figure in row]
        cells.append(", ".join(kinds))
        if with_how:
            cells.append(Text("; ".join(how), no_wrap=True, overflow="ellipsis"))
        table.add_row(first.name, *cells, style=_style(first))
    return table


def _style(figure: "Figure") -> str:
    return "bold" if figure.name.startswith("bytes/s of a server") else ""


def shown(value: float, unit: str) -> str:
    """A figure for readers: three digits at least."""
    if unit == "bytes":
        power = 0
        while value >= 1000 and power < len(POWERS) - 1:
            value, power = value / 1000, power + 1
        return f"{_three(value) if power else f'{value:.0f}'} {POWERS[power]}"
    if unit == "seconds":
        return f"{_three(value * 1e6)} µs" if value < 1e-3 else f"{_three(value * 1e3)} ms"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else _three(value)


def _three(value: float) -> str:
    for digits, least in enumerate((100, 10, 1)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"
