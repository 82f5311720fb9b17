"""OpenAI's own client."""

import math

import openai
import pytest

CHAT = [{"role": "user", "content": "What is 2+2?"}]
PROMPT = "An apple a day keeps the "


@pytest.fixture
def client(url, key):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


def complete(client, **body):
    return client.completions.create(model="default", temperature=0, **body)


def test_completions(client, greedy, show):
    made = complete(client, prompt=PROMPT, max_tokens=12)
    assert made.choices[0].text == greedy(PROMPT, 12)
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.usage.prompt_tokens == len(PROMPT)
    show("openai", made.choices[0].text)


def test_a_prompt_may_end_inside_a_word(client, greedy, show):
    made = complete(client, prompt="The capital of Fran", max_tokens=12)
    assert made.choices[0].text == greedy("The capital of Fran", 12)
    show("openai", made.choices[0].text)


def test_several_prompts_and_samples(client):
    made = client.completions.create(model="default", prompt=["a", "b"], n=2, seed=1, max_tokens=5)
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    again = client.completions.create(model="default", prompt=["a", "b"], n=2, seed=1, max_tokens=5)
    assert [choice.text for choice in made.choices] == [choice.text for choice in again.choices]


def test_log_probabilities_of_a_prompt(client, post, close, show):
    prompt = "The café is"
    made = complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=0).choices[0]
    (want,) = post("/v1/score", context="", continuations=[prompt], prefill="exact")
    assert made.text == prompt
    assert math.fsum(made.logprobs.token_logprobs) == pytest.approx(want["logprob"], abs=close)
    assert made.logprobs.tokens[7:10] == ["bytes:\\xc3", "bytes:\\xa9", " "]
    assert made.logprobs.text_offset[7:10] == [7, 7, 8]
    show("openai", round(sum(made.logprobs.token_logprobs), 3))


def test_a_stream_of_a_completion(client):
    options = {"include_usage": True}
    parts = list(
        complete(client, prompt=PROMPT, max_tokens=12, stream=True, stream_options=options)
    )
    whole = complete(client, prompt=PROMPT, max_tokens=12)
    assert "".join(c.text for part in parts for c in part.choices) == whole.choices[0].text
    assert parts[-1].usage == whole.usage


def chat(client, **body):
    return client.chat.completions.create(model="default", messages=CHAT, temperature=0, **body)


def test_chat(client, greedy, show):
    made = chat(client, max_completion_tokens=20)
    assert made.choices[0].message.content == greedy({"messages": CHAT}, 20)
    assert made.choices[0].message.role == "assistant"
    show("openai", made.choices[0].message.content)


def test_log_probabilities_of_a_chat(client):
    made = chat(client, max_tokens=12, logprobs=True, top_logprobs=2).choices[0]
    data = bytes(b for token in made.logprobs.content for b in token.bytes or [])
    assert data.decode(errors="replace") == made.message.content
    assert all(len(token.top_logprobs) == 2 for token in made.logprobs.content)


def test_a_stream_of_a_chat(client):
    text = ""
    for part in chat(client, max_tokens=20, stream=True):
        text += part.choices[0].delta.content or ""
    assert text == chat(client, max_tokens=20).choices[0].message.content


def test_an_answer_may_be_continued(client, show):
    messages = [*CHAT, {"role": "assistant", "content": "2+2 is "}]
    made = client.chat.completions.create(
        model="default",
        messages=messages,
        max_tokens=1,
        temperature=0,
        extra_body={"continue_final_message": True, "beam": {"K": 5}},
    )
    assert len(made.choices[0].message.content) == 1
    show("openai", made.choices[0].message.content)


def test_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    assert client.models.retrieve("default").id == model.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_what_is_wrong_is_a_bad_request(client, show):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="a", max_tokens=10**6)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "limit_exceeded")
    assert "max_tokens can be at most" in str(caught.value)
    show("openai", str(caught.value))
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        complete(client, prompt="a", frequency_penalty=1)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        chat(client, response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        complete(client, prompt="a", max_tokens=10**6, stream=True)


def test_another_model_is_not_found(client, show):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    show("openai", caught.value.message)


def test_a_key_is_needed(url):
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        complete(stranger, prompt="a")
    assert caught.value.code == "unknown_key"


async def test_the_asynchronous_client(url, key, greedy):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        made = await complete(client, prompt=PROMPT, max_tokens=9)
        assert made.choices[0].text == greedy(PROMPT, 9)
        stream = await complete(client, prompt=PROMPT, max_tokens=9, stream=True)
        assert "".join([part.choices[0].text async for part in stream]) == made.choices[0].text
