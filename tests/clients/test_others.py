"""Clients that stand on OpenAI's API: litellm, langchain-openai, llm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAT = [{"role": "user", "content": "What is 2+2?"}]
PROMPT = "An apple a day keeps the "


@pytest.fixture
def litellm(url, key):
    import litellm

    return litellm, {"api_base": f"{url}/v1", "api_key": key, "temperature": 0, "max_tokens": 12}


def test_litellm_completes(litellm, greedy, show):
    module, options = litellm
    made = module.text_completion(model="text-completion-openai/default", prompt=PROMPT, **options)
    assert made.choices[0].text == greedy(PROMPT, 12)
    show("litellm", made.choices[0].text)


def test_litellm_chats(litellm, greedy, show):
    module, options = litellm
    made = module.completion("openai/default", messages=CHAT, **options)
    assert made.choices[0].message.content == greedy({"messages": CHAT}, 12)
    parts = module.completion("openai/default", messages=CHAT, stream=True, **options)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == made.choices[0].message.content
    show("litellm", text)


def test_litellm_tells_what_is_wrong(litellm):
    module, options = litellm
    with pytest.raises(module.BadRequestError, match="max_tokens can be at most"):
        module.completion("openai/default", messages=CHAT, **{**options, "max_tokens": 10**6})
    with pytest.raises(module.AuthenticationError):
        module.completion("openai/default", messages=CHAT, **{**options, "api_key": "wrong"})


def test_langchain_completes(url, key, greedy, show):
    from langchain_openai import OpenAI

    model = OpenAI(base_url=f"{url}/v1", api_key=key, model="default", temperature=0, max_tokens=12)
    assert model.invoke(PROMPT) == greedy(PROMPT, 12)
    assert "".join(model.stream(PROMPT)) == greedy(PROMPT, 12)
    assert model.batch([PROMPT, "a"]) == [greedy(PROMPT, 12), greedy("a", 12)]
    show("langchain-openai", model.invoke(PROMPT))


def test_langchain_chats(url, key, greedy, show):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{url}/v1", api_key=key, model="default", temperature=0, max_tokens=12
    )
    messages = [("system", "Be brief."), ("user", "What is 2+2?")]
    want = greedy({"messages": [{"role": r, "content": c} for r, c in messages]}, 12)
    assert model.invoke(messages).content == want
    assert "".join(part.content for part in model.stream(messages)) == want
    show("langchain-openai", want)


def llm(folder: Path, *arguments: str) -> str:
    program = Path(sys.executable).with_name("llm")
    variables = {**os.environ, "LLM_USER_PATH": str(folder)}
    done = subprocess.run(
        [str(program), *arguments, "--no-log"],
        env=variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_llm(url, key, greedy, show, tmp_path):
    where = f"model_name: default\n  api_base: {url}/v1\n  api_key_name: bytelm\n"
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: bytes\n  {where}  completion: true\n- model_id: chat\n  {where}"
    )
    options = ["-o", "temperature", "0", "-o", "max_tokens", "12", "--key", key]
    assert llm(tmp_path, "-m", "bytes", PROMPT, *options) == greedy(PROMPT, 12)
    found = llm(tmp_path, "-m", "chat", "What is 2+2?", *options)
    assert found == greedy({"messages": CHAT}, 12)
    assert llm(tmp_path, "-m", "chat", "What is 2+2?", *options, "--no-stream") == found
    show("llm", found)
