"""The openai Python client, unchanged, gets guided completions, streams, chats of several turns and
errors.

Run by .ci/run in a virtual environment with openai in it.
"""

import asyncio

import openai

from serving import serving

PROMPT = "The film"


def completions(client):
    answer = client.completions.create(model="base", prompt=PROMPT, max_tokens=20, seed=1)
    choice = answer.choices[0]
    assert answer.object == "text_completion" and choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens == choice.trimtab["tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    # Guided unless told otherwise: the search's gain is above plain sampling's.
    plain = client.completions.create(
        model="base", prompt=PROMPT, max_tokens=20, seed=1,
        extra_body={"search": {"method": "sample"}},
    ).choices[0]
    assert choice.trimtab["method"] == "cbs" and plain.trimtab["method"] == "sample"
    assert choice.trimtab["gain"] > plain.trimtab["gain"], (choice, plain)

    many = client.completions.create(model="base", prompt=[PROMPT, "It"], n=3, max_tokens=8)
    assert [choice.index for choice in many.choices] == list(range(6))
    assert len({choice.text for choice in many.choices}) > 3, "answers of one request differ"

    stream = client.completions.create(
        model="base", prompt=PROMPT, max_tokens=20, seed=1, stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for event in stream:
        text += "".join(part.text for part in event.choices)
        usage = event.usage or usage
    assert text == choice.text and usage == answer.usage


def chats(client):
    messages = [{"role": "user", "content": PROMPT}]
    ask = {"model": "base", "messages": messages, "max_completion_tokens": 20, "seed": 2}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].message.role == "assistant"
    pieces = [
        event.choices[0].delta.content or ""
        for event in client.chat.completions.create(**ask, stream=True)
    ]
    assert "".join(pieces) == answer.choices[0].message.content


def turns(client):
    """An answer goes back as it came, with the next question."""
    messages = [{"role": "user", "content": PROMPT}]
    ask = {"model": "base", "max_completion_tokens": 20, "seed": 3}
    for question in ("And then?", "And in the end?"):
        answer = client.chat.completions.create(**ask, messages=messages).choices[0].message
        messages += [answer.model_dump(), {"role": "user", "content": question, "name": "bob"}]
    last = client.chat.completions.create(
        **ask, messages=messages, user="bob", store=False, metadata={"run": "1"},
        service_tier="auto", parallel_tool_calls=False, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    bare = [{"role": message["role"], "content": message["content"]} for message in messages]
    expected = client.chat.completions.create(**ask, messages=bare).choices[0].message.content
    events = [event.choices[0].delta.content or "" for event in last if event.choices]
    assert len(messages) == 5 and "".join(events) == expected


def errors(client, url):
    def refused(kind, param, **request):
        try:
            client.completions.create(**{"model": "base", "prompt": PROMPT, **request})
        except kind as error:
            assert error.param == param, error
            return error
        raise AssertionError(f"{request} was not refused")

    refused(openai.BadRequestError, "logprobs", logprobs=3)
    refused(openai.BadRequestError, "search.width", extra_body={"search": {"width": 3}})
    error = refused(openai.BadRequestError, "prompt", max_tokens=1000)
    assert error.code == "context_length_exceeded"
    refused(openai.NotFoundError, "model", model="gpt-5")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    try:
        stranger.models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"


async def together(url):
    """Sixteen at once through the asynchronous client: the same answers as one by one."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret") as client:
        def ask(seed):
            return client.completions.create(
                model="base", prompt=PROMPT, max_tokens=20, seed=seed)

        answers = await asyncio.gather(*(ask(seed) for seed in range(16)))
        for seed, answer in enumerate(answers):
            assert (await ask(seed)).choices == answer.choices


def main():
    with serving("--api-key", "secret", chat=True) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["base"]
        assert client.models.retrieve("base").owned_by == "trimtab"
        completions(client)
        chats(client)
        turns(client)
        errors(client, url)
        asyncio.run(together(url))
    print(f"openai {openai.__version__}: completions, streams, chats, turns, errors and 16 at once")


main()
