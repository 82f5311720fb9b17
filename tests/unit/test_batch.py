"""A run over a file of prompts, with a client that answers or not as the test wants."""

import errno
from pathlib import Path
from typing import Any

import pytest

from bytelm.errors import InputError
from bytelm_client.cli.batch import Batch
from bytelm_client.errors import CannotConnect


class Mortal:
    """A client whose server is gone after the first call."""

    called = False

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.called:
            raise CannotConnect("nobody is there")
        self.called = True
        return {"results": [{"bytes": {"text": "x"}}]}


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch("greedy", tmp_path / "in", tmp_path / "out", {"steps": 3})


async def test_a_run_that_stops_tells_how_many_prompts_are_done(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.input.write_text('{oops\n7\n"a"\n"b"\n')
    client: Any = Mortal()
    with batch.opened() as files, pytest.raises(CannotConnect):
        await batch.run(client, files, 1)
    assert batch.failed == 2
    assert "stopped with 1 of 4 prompts done; the same" in capsys.readouterr().err


def test_an_output_that_cannot_be_read_is_told(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.input.write_text('"a"\n')
    opened = Path.open

    def refuse(path: Path, mode: str) -> Any:
        if path == batch.output:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="out cannot be read: Permission denied"), batch.opened():
        pass
