"""Programs that use the client run without a warning, with all that Python has to warn of."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

LEAVING = """
import asyncio
from bytelm_client import AsyncClient

kept = None

async def leave(how: str) -> None:
    global kept
    client = AsyncClient()
    match how:
        case "at once":
            async for _ in client.stream_greedy("hello", 40):
                break
        case "and go on":
            async for _ in client.stream_greedy("hello", 40):
                break
            await client.greedy("hello", 4)
        case "with a reference":
            kept = client.stream_greedy("hello", 40)
            async for _ in kept:
                break
        case "by an error":
            try:
                async for _ in client.stream_greedy("hello", 40):
                    raise ValueError
            except ValueError:
                pass
        case "of a session":
            async with client.session("hello") as session:
                async for _ in session.stream_greedy(40):
                    break
                await session.next()
        case "cancelled":
            async with client.stream_greedy("hello", 40) as stream:
                task = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    await client.aclose()

asyncio.run(leave("HOW"))
"""


def quietly(url: str, *arguments: str) -> str:
    """What a program prints that has nothing to warn of."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *arguments],
        env={**os.environ, "BYTELM_URL": url},
        capture_output=True,
        text=True,
        timeout=200,
    )
    # That something took long says how fast the machine is.
    told = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.returncode, told) == (0, []), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "how",
    ["at once", "and go on", "with a reference", "by an error", "of a session", "cancelled"],
)
def test_a_stream_is_left(url: str, how: str) -> None:
    quietly(url, "-c", LEAVING.replace("HOW", how))


EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(url: str, example: Path) -> None:
    assert quietly(url, str(example))


AWAITED = """
import asyncio
from bytelm_client import RemoteByteLM

async def main() -> None:
BODY
asyncio.run(main())
"""


def readme_programs() -> list[str]:
    """The README's Python that needs no model of one's own; what is awaited gets a loop."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ours = [block for block in blocks if "bytelm_client" in block or "RemoteByteLM" in block]
    return [
        AWAITED.replace("BODY", textwrap.indent(block, "    ")) if "import" not in block else block
        for block in ours
    ]


@pytest.mark.parametrize("number", range(3))
def test_the_readmes_python_runs(url: str, number: int) -> None:
    programs = readme_programs()
    assert len(programs) == 3
    # The server of tests makes no more than 64 bytes at a time.
    quietly(url, "-c", programs[number].replace(", 200)", ", 60)"))
