"""The clients of scripts/clients.sh: what they send and read back is checked, not what a random model says."""

import json
import sys

import anthropic
import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
user = [{"role": "user", "content": "hello"}]


def done(what):
    print(f"ok: {what}", flush=True)


assert model in [m.id for m in client.models.list()]
done("openai models")

extra = {"ignore_eos": True}
chat = client.chat.completions.create(model=model, messages=user, max_tokens=8, seed=1, extra_body=extra)
assert chat.choices[0].finish_reason == "length" and chat.usage.completion_tokens == 8
chunks = list(
    client.chat.completions.create(
        model=model,
        messages=user,
        max_tokens=8,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
)
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == chat.choices[0].message.content and chunks[-1].usage.completion_tokens == 8
done("openai chat, whole and streamed")

logs = client.chat.completions.create(model=model, messages=user, max_tokens=4, logprobs=True, top_logprobs=3, n=2)
assert len(logs.choices) == 2 and all(len(t.top_logprobs) == 3 for t in logs.choices[0].logprobs.content)
done("openai logprobs and n")

completion = client.completions.create(model=model, prompt=["a", "b"], max_tokens=4, echo=True, logprobs=1)
assert len(completion.choices) == 2 and completion.choices[1].text.startswith("b")
assert completion.choices[0].logprobs.token_logprobs[0] is None
done("openai completions with echo")

schema = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
form = {"type": "json_schema", "json_schema": {"name": "number", "strict": True, "schema": schema}}
shaped = client.chat.completions.create(model=model, messages=user, max_tokens=200, response_format=form)
assert 1 <= json.loads(shaped.choices[0].message.content)["n"] <= 9
done("openai json_schema")

tools = [{"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": schema}}]
called = client.chat.completions.create(
    model=model, messages=user, max_tokens=300, tools=tools, tool_choice="required"
)
call = called.choices[0].message.tool_calls[0]
assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "count"
assert 1 <= json.loads(call.function.arguments)["n"] <= 9
history = user + [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
with client.chat.completions.stream(
    model=model, messages=user, max_tokens=300, tools=tools, tool_choice="required"
) as stream:
    final = stream.get_final_completion()
assert final.choices[0].message.tool_calls[0].function.name == "count"
done("openai tools, whole and streamed")

for bad, error in [
    ({"model": "absent"}, openai.NotFoundError),
    ({"max_tokens": "many"}, openai.UnprocessableEntityError),
    ({"messages": [{"role": "user", "content": "x " * 9000}]}, openai.BadRequestError),
]:
    try:
        client.chat.completions.create(**{"model": model, "messages": user, **bad})
        raise SystemExit(f"{bad} was taken")
    except error as e:
        assert e.body["message"], e
done("openai errors")

claude = anthropic.Anthropic(base_url=url, api_key="none")
message = claude.messages.create(model=model, max_tokens=8, system="be brief", messages=user)
assert message.role == "assistant" and message.content[0].type == "text" and message.usage.output_tokens <= 8
with claude.messages.stream(model=model, max_tokens=8, messages=user) as stream:
    streamed = "".join(stream.text_stream)
    assert streamed == stream.get_final_message().content[0].text
assert claude.messages.count_tokens(model=model, messages=user).input_tokens > 0
done("anthropic messages, whole, streamed and counted")
