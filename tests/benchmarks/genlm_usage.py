"""The code of genlm-bytes' README and usage notebook, run by genlm-bytes and by bytelm.

Runs in genlm-bytes' venv (``tests.benchmarks.peers`` starts it), on the code as genlm-bytes
publishes it. Only the imports are changed for bytelm, and for both the model's name. What the code
leaves behind and shows must be the same in both, up to how special tokens are read: genlm-bytes
takes them for text, bytelm does not. And genlm-bytes must do the same on a token LM of bytelm as on
its own model.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import inspect
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from genlm.backend import load_model_by_name

from bytelm.compat.genlm import to_genlm
from bytelm.compat.hf import HuggingFaceLM

IMPORTS = {
    "genlm-bytes": "from genlm.bytes import ByteBeamState, BeamParams",
    "bytelm": "from bytelm import ByteBeamState, BeamParams",
}
MODEL = 'load_model_by_name("gpt2-medium")'
FLOOR = -10.0
CLOSE = 0.05
"""How far log-probabilities may be apart, since special tokens are not text for bytelm."""


def readme_code(sources: Path) -> list[str]:
    """The README's example."""
    return re.findall(r"```python\n(.*?)```", (sources / "README.md").read_text(), re.DOTALL)


def notebook_code(sources: Path) -> list[str]:
    """The cells of the usage notebook."""
    cells = json.loads((sources / "docs" / "usage.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


async def run(cells: list[str], library: str, llm: Any) -> tuple[list[Any], dict[str, Any]]:
    """What each cell shows, and the variables left behind; awaits are allowed at the top."""
    space: dict[str, Any] = {"llm": llm}
    values = []
    for cell in cells:
        tree = ast.parse(cell.replace(IMPORTS["genlm-bytes"], IMPORTS[library]))
        if tree.body and isinstance(last := tree.body[-1], ast.Expr):
            tree.body[-1] = ast.Assign([ast.Name("shown", ast.Store())], last.value)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        space["shown"] = None
        done = eval(compile(ast.fix_missing_locations(tree), "<cell>", "exec", flags), space)
        if inspect.isawaitable(done):
            await done
        values.append(space.pop("shown"))
    return values, space


def same(a: Any, b: Any, sampled: bool = False) -> bool:
    """Whether what genlm-bytes and bytelm made of the same code is the same."""
    if isinstance(a, bytes):
        # Draws differ; what was given and how many bytes came do not.
        return a[:25] == b[:25] and len(a) == len(b) if sampled else a == b
    if isinstance(a, dict):
        return list(a) == list(b) and all(abs(a[key] - b[key]) <= CLOSE for key in a)
    if type(a).__name__ == "LazyByteProbs":
        likely = np.maximum(a.ps, b.ps) > FLOOR
        return bool((np.abs(a.ps - b.ps)[likely] <= CLOSE).all())
    if type(a).__name__ == "ByteBeamState":
        # Prefilling fast, as bytelm does by default, leaves no logZ.
        return "Candidates:" in repr(b) and (b.logZ is None or abs(a.logZ - b.logZ) <= CLOSE)
    return (a is None) == (b is None)


async def compare(name: str, cells: list[str], ours_is: str, llm: Any, our_llm: Any) -> list[str]:
    """What the cells do otherwise in the library ``ours_is`` on ``our_llm`` than in genlm-bytes on
    ``llm``, in words; says what was run."""
    with contextlib.redirect_stdout(io.StringIO()) as their_print:
        theirs, their_space = await run(cells, "genlm-bytes", llm)
    with contextlib.redirect_stdout(io.StringIO()) as our_print:
        ours, our_space = await run(cells, ours_is, our_llm)
    found = [
        f"{name}, `{cell}`: {a!r} against {b!r}"
        for cell, a, b in zip(cells, theirs, ours, strict=True)
        if not same(a, b, sampled=".sample(" in cell)
    ]
    found += [
        f"{name}, {key}: {their_space[key]!r} against {our_space[key]!r}"
        for key in their_space
        if type(their_space[key]).__name__ in ("LazyByteProbs", "ByteBeamState")
        and not same(their_space[key], our_space[key])
    ]
    if bool(their_print.getvalue()) != bool(our_print.getvalue()):
        found.append(f"{name}: only one of them prints its beams")
    print(f"{name}: {len(cells)} cells ran, by {ours_is} on a {type(our_llm).__qualname__}")
    for value in ours:
        if isinstance(value, (dict, bytes)):
            print(f"    {value!r}")
    return found


def main() -> int:
    """Runs all of it; fails where the libraries differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("sources", type=Path, help="genlm-bytes' source distribution")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    options = {"hf_opts": {"torch_dtype": torch.float32, "device_map": "cpu"}}
    llm = load_model_by_name(given.model, backend="hf", llm_opts=options)
    lm = HuggingFaceLM.from_pretrained(given.model)
    codes = {"README": readme_code(given.sources), "notebook": notebook_code(given.sources)}
    wrong = []
    for name, cells in codes.items():
        code = "\n".join(cells)
        if IMPORTS["genlm-bytes"] not in code or MODEL not in code:
            raise SystemExit(f"error: the {name} is not the one that is known")
        cells = [cell.replace(MODEL, "llm") for cell in cells]
        wrong += asyncio.run(compare(name, cells, "bytelm", llm, llm))
        wrong += asyncio.run(compare(name, cells, "genlm-bytes", llm, to_genlm(lm)))
    print("\n".join(wrong) if wrong else "no differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
