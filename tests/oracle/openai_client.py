"""OpenAI's own client, unmodified, against a running server.

    python openai_client.py http://127.0.0.1:8080 KEY KEY_OF_ANOTHER_SCOPE

The first key may ask the policy, the second one may not. Ends with 0 and one line where everything is as the client's
types and the protocol have it, else with a traceback.
"""

import asyncio
import sys

import openai

QUESTION = [{"role": "user", "content": "numbers 3 5 7, target 15"}]


def text_of(stream):
    """The text of a streamed chat, its reason to end and its usage."""
    text, reason, usage = "", None, None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def refused(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, f"{error.code}: {error.message}"
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def ours(client, path, body):
    """What OpenAI's protocol does not have."""
    return client.post(f"{str(client.base_url).removesuffix('v1/')}{path}", body=body, cast_to=object)


def check_models(client):
    models = client.models.list().data
    assert len(models) == 1 and models[0].object == "model" and models[0].owned_by == "fsq"
    assert client.models.retrieve(models[0].id) == models[0]
    refused(openai.NotFoundError, "model_not_found", lambda: client.models.retrieve("gpt"))
    return models[0].id


def check_chat(client, model):
    def chat(**more):
        options = {"model": model, "messages": QUESTION, "max_completion_tokens": 24, "seed": 7, **more}
        return client.chat.completions.create(**options)

    whole = chat()
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert chat().choices[0].message.content == choice.message.content, "a seed repeats an answer"
    text, reason, usage = text_of(chat(stream=True, stream_options={"include_usage": True}))
    assert (text, reason, usage) == (choice.message.content, choice.finish_reason, whole.usage)
    several = chat(n=3)
    assert [it.index for it in several.choices] == [0, 1, 2]
    assert several.choices[0].message.content == choice.message.content
    assert several.usage.prompt_tokens == whole.usage.prompt_tokens
    half = choice.message.content[: max(1, len(choice.message.content) // 2)]
    stop = half[-4:]
    stopped = chat(stop=[stop, "never said"])
    assert stopped.choices[0].finish_reason == "stop" and stop not in stopped.choices[0].message.content
    greedy = chat(temperature=0, logprobs=True, top_logprobs=3)
    first = greedy.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 3 and first.top_logprobs[0].token == first.token and first.logprob <= 0
    (wanted,) = ours(client, "tokenize", {"prompt": "x", "add_special_tokens": False})["tokens"]
    forced = chat(temperature=0, logit_bias={str(wanted): 100}, logprobs=True, max_completion_tokens=3)
    assert forced.choices[0].message.content == "xxx"
    assert forced.choices[0].logprobs.content[0].logprob < 0, "what is reported is what the policy thinks"
    chat(presence_penalty=0.5, frequency_penalty=0.5, top_p=0.9, user="me", metadata={"a": "b"})
    chat(extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1})
    with chat(stream=True, max_completion_tokens=200) as stream:
        next(iter(stream))  # And away: the server frees what it held.
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1" and raw.parse()._request_id == "mine-1"


def check_completions(client, model):
    def complete(prompt, **more):
        return client.completions.create(model=model, prompt=prompt, max_tokens=8, seed=3, **more)

    by_text = complete("numbers 3 5 7")
    assert by_text.object == "text_completion" and len(by_text.choices) == 1
    tokens = ours(client, "tokenize", {"prompt": "numbers 3 5 7"})["tokens"]
    assert complete(tokens).choices[0].text == by_text.choices[0].text
    spelled = ours(client, "detokenize", {"tokens": tokens})["prompt"]
    assert spelled.endswith("numbers 3 5 7")
    both = complete([tokens, tokens], n=2)
    assert [it.index for it in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == by_text.choices[0].text
    assert both.usage.prompt_tokens == 2 * by_text.usage.prompt_tokens
    assert complete("numbers 3 5 7", echo=True).choices[0].text == "numbers 3 5 7" + by_text.choices[0].text
    chunks = list(complete(tokens, stream=True, stream_options={"include_usage": True}))
    assert "".join(it.choices[0].text for it in chunks if it.choices) == by_text.choices[0].text
    assert chunks[-1].usage == by_text.usage
    logprobs = complete(tokens, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) <= 8
    assert all(1 <= len(it) <= 2 for it in logprobs.top_logprobs)


def check_responses(client, model):
    def respond(**more):
        options = {"model": model, "input": QUESTION, "max_output_tokens": 24, "temperature": 0, **more}
        return client.responses.create(**options)

    whole = respond(store=False, instructions="be brief")
    assert whole.object == "response" and whole.status in ("completed", "incomplete")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    text, last = "", None
    for event in respond(instructions="be brief", stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert text == whole.output_text and last.response.usage.total_tokens == whole.usage.total_tokens
    refused(openai.BadRequestError, "unsupported_value", lambda: respond(store=True))


def check_foresight(client):
    body = {"messages": QUESTION, "plans": 4, "seed": 1, "max_tokens": 128}
    answer = ours(client, "v1/foresight", body)
    assert len(answer["plans"]) == 4
    for plan in answer["plans"]:
        if plan["prediction_id"]:
            told = {"prediction_id": plan["prediction_id"], "outcome": 1}
            assert 0 <= plan["estimate"] <= 1
            refused(openai.PermissionDeniedError, "missing_scope", lambda: ours(client, "v1/outcomes", told))


def check_refusals(client, model, other):
    def chat(**more):
        return client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1, **more)

    refused(openai.BadRequestError, "invalid_value", lambda: chat(temperature=3))
    refused(openai.BadRequestError, "unknown_field", lambda: chat(extra_body={"temprature": 1}))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert refused(openai.BadRequestError, "unsupported_value", lambda: chat(tools=[tool])).param == "tools"
    refused(openai.AuthenticationError, "invalid_key", lambda: client.with_options(api_key="fsq_0").models.list())
    refused(openai.PermissionDeniedError, "missing_scope", lambda: client.with_options(api_key=other).models.list())


async def check_many(client, model):
    """What requests get beside each other is what each gets alone."""
    def chat(seed):
        options = {"model": model, "messages": QUESTION, "max_completion_tokens": 16, "seed": seed}
        return client.chat.completions.create(**options)

    alone = [(await chat(seed)).choices[0].message.content for seed in range(8)]
    together = await asyncio.gather(*(chat(seed) for seed in range(8)))
    assert [it.choices[0].message.content for it in together] == alone


def main():
    url, key, other = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
    model = check_models(client)
    check_chat(client, model)
    check_completions(client, model)
    check_responses(client, model)
    check_foresight(client)
    check_refusals(client, model, other)
    asyncio.run(check_many(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0), model))
    print(f"openai {openai.__version__}: all as expected")


if __name__ == "__main__":
    main()
