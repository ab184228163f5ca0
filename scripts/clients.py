"""The clients of scripts/clients.sh: what they send and read back is checked, not what a random model says."""

import array
import json
import sys

import anthropic
import ollama
import openai
import websockets.sync.client

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
uses = [{"name": "count", "description": "Counts.", "input_schema": schema}]
called = claude.messages.create(
    model=model, max_tokens=300, messages=user, tools=uses, tool_choice={"type": "any"}
)
assert called.stop_reason == "tool_use" and called.content[-1].name == "count", called
with claude.messages.stream(
    model=model, max_tokens=300, messages=user, tools=uses, tool_choice={"type": "tool", "name": "count"}
) as stream:
    assert 1 <= stream.get_final_message().content[-1].input["n"] <= 9
result = [{"type": "tool_result", "tool_use_id": called.content[-1].id, "content": "3"}]
asked = [*user, {"role": "assistant", "content": called.content}, {"role": "user", "content": result}]
assert claude.messages.create(model=model, max_tokens=4, messages=asked, tools=uses).role == "assistant"
done("anthropic messages, whole, streamed, counted, and tools")

response = client.responses.create(
    model=model, input="hello", instructions="be brief", max_output_tokens=8, temperature=0
)
assert response.object == "response" and response.usage.output_tokens <= 8
events = list(
    client.responses.create(
        model=model, input="hello", instructions="be brief", max_output_tokens=8, temperature=0, stream=True
    )
)
assert events[0].type == "response.created" and events[-1].type == f"response.{response.status}"
text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
assert text == response.output_text == events[-1].response.output_text
tool = {"type": "function", "name": "count", "parameters": schema, "strict": True}
called = client.responses.create(
    model=model, input="hello", max_output_tokens=300, tools=[tool], tool_choice="required"
)
call = called.output[-1]
assert call.type == "function_call" and 1 <= json.loads(call.arguments)["n"] <= 9
with client.responses.stream(
    model=model, input="hello", max_output_tokens=300, tools=[tool], tool_choice="required"
) as stream:
    assert stream.get_final_response().output[-1].name == "count"
answer = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
asked = [*user, call.model_dump(exclude_none=True), answer]
assert client.responses.create(model=model, input=asked, max_output_tokens=4).output[0].type == "message"
shaped = client.responses.create(
    model=model,
    input="hello",
    max_output_tokens=200,
    text={"format": {"type": "json_schema", "name": "number", "strict": True, "schema": schema}},
)
assert 1 <= json.loads(shaped.output_text)["n"] <= 9
done("openai responses, whole and streamed, with tools and json_schema")

vectors = client.embeddings.create(model=model, input=["hello", "goodbye"])
floats = client.embeddings.create(model=model, input=["hello", "goodbye"], encoding_format="float")
for packed, listed in zip(vectors.data, floats.data, strict=True):
    # Lists hold the shortest decimals that stand for the same 32 bits.
    assert array.array("f", packed.embedding) == array.array("f", listed.embedding)
assert abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-4
short = client.embeddings.create(model=model, input="hello", dimensions=8)
assert len(short.data[0].embedding) == 8 and short.usage.prompt_tokens > 0
done("openai embeddings, base64 and float")

local = ollama.Client(host=url)
assert model in [m.model for m in local.list().models]
assert local.show(model).details.family == "bitnet"
options = {"num_predict": 8, "temperature": 0}
whole = local.chat(model=model, messages=user, options=options)
streamed = list(local.chat(model=model, messages=user, options=options, stream=True))
assert whole.message.content == "".join(part.message.content for part in streamed)
assert streamed[-1].done and streamed[-1].eval_count == whole.eval_count <= 8
made = local.generate(model=model, prompt="hello", options=options)
again = local.generate(model=model, prompt="hello", options=options, context=made.context)
assert again.prompt_eval_count > made.prompt_eval_count
shaped = local.chat(model=model, messages=user, format=schema, options={"num_predict": 200})
assert 1 <= json.loads(shaped.message.content)["n"] <= 9
assert local.embed(model=model, input=["hello"]).embeddings[0] == floats.data[0].embedding
try:
    local.chat(model="absent", messages=user)
    raise SystemExit("an absent model was taken")
except ollama.ResponseError as e:
    assert e.status_code == 404
done("ollama list, show, chat, generate, embed and format")

with websockets.sync.client.connect(url.replace("http", "ws") + "/v1/ws") as socket:
    socket.send(json.dumps({"id": "a", "messages": user, "max_tokens": 8, "seed": 1, "ignore_eos": True}))
    text = ""
    while not (chunk := json.loads(socket.recv())).get("done"):
        assert chunk["id"] == "a" and chunk["object"] == "chat.completion.chunk"
        text += chunk["choices"][0]["delta"].get("content", "")
assert text == chat.choices[0].message.content
done("websockets")
