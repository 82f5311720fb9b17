"""One real engine, on the default model, for all tests of this folder."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bytelm import download as models
from bytelm.compat.hf import HuggingFaceLM
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(models.resolve(None))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(model_path: str) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.start(
        model_path, EngineSettings(max_model_len=2048, max_num_seqs=64, slots=96)
    )
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def reference(model_path: str) -> HuggingFaceLM:
    return HuggingFaceLM.from_pretrained(model_path)
