"""The official OpenAI client against `ondine serve`: openai_client.py URL MODEL"""

import json
import sys

import openai
from openai import OpenAI

url, model = sys.argv[1:3]
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "What is gravity?"}]

assert model in [entry.id for entry in client.models.list()]
assert client.models.retrieve(model).id == model

# Chat: at once and streamed give the same.
whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
assert whole.ondine["place"] == "device"

streamed, last, usage = "", None, None
for chunk in client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        streamed += chunk.choices[0].delta.content or ""
        last = chunk.choices[0].finish_reason or last
        receipt = getattr(chunk, "ondine", None)
    usage = chunk.usage or usage
assert streamed == text, (streamed, text)
assert last == whole.choices[0].finish_reason and usage.completion_tokens == whole.usage.completion_tokens
assert receipt["timings"]["generated_tokens"] == usage.completion_tokens

# Seeds, several answers, stop texts.
def draw(seed, **more):
    return client.chat.completions.create(model=model, messages=messages, temperature=1, seed=seed, max_tokens=16, **more)

assert draw(1).choices[0].message.content == draw(1).choices[0].message.content
assert len({choice.message.content for choice in draw(2, n=4).choices}) > 1
stopped = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, stop=text[5:9])
assert stopped.choices[0].message.content == text[: text.index(text[5:9])] and stopped.choices[0].finish_reason == "stop"

# Structured output.
schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "A city"}], max_tokens=100,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}})
assert set(json.loads(answer.choices[0].message.content)) == {"city", "country"}
answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Some JSON"}], max_tokens=60, response_format={"type": "json_object"})
assert isinstance(json.loads(answer.choices[0].message.content), dict)

# Tools.
tools = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city", "strict": True, "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]
question = [{"role": "user", "content": "What is the weather in Bern?"}]
for choice, names in [("required", {"weather", "clock"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"})]:
    called = client.chat.completions.create(model=model, messages=question, tools=tools, tool_choice=choice, temperature=0, max_tokens=100)
    assert called.choices[0].finish_reason == "tool_calls", called
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name in names and isinstance(json.loads(call.function.arguments), dict)
with client.chat.completions.stream(model=model, messages=question, tools=tools, tool_choice="required", temperature=0, max_tokens=100) as stream:
    for _ in stream:
        pass
    call = stream.get_final_completion().choices[0].message.tool_calls[0]
    json.loads(call.function.arguments)
after = question + [
    {"role": "assistant", "content": None, "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
    {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}]
assert client.chat.completions.create(model=model, messages=after, tools=tools, max_tokens=30).choices[0].message is not None
assert client.chat.completions.create(model=model, messages=question, tools=tools, tool_choice="none", max_tokens=10).choices[0].message.content

# The other endpoints.
completion = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=6, logprobs=2)
assert "Paris" in completion.choices[0].text and len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens
pieces = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=6, stream=True)
assert "".join(piece.choices[0].text for piece in pieces) == completion.choices[0].text

response = client.responses.create(model=model, input="What is gravity?", instructions="You are brief.", temperature=0, max_output_tokens=24)
assert response.output_text == text, (response.output_text, text)
parts = []
with client.responses.stream(model=model, input="What is gravity?", instructions="You are brief.", temperature=0, max_output_tokens=24) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            parts.append(event.delta)
assert "".join(parts) == text
functions = [{"type": "function", "name": "weather", "parameters": tools[0]["function"]["parameters"]}]
called = client.responses.create(model=model, input="The weather in Bern?", tools=functions, tool_choice="required", max_output_tokens=80)
assert called.output[0].type == "function_call" and called.output[0].name == "weather"
shaped = client.responses.create(model=model, input="A city", max_output_tokens=100, text={"format": {"type": "json_schema", "name": "city", "schema": schema}})
json.loads(shaped.output_text)

vectors = client.embeddings.create(model=model, input=["The cat sleeps.", "A cat is sleeping.", "Interest rates rose."])
def similar(a, b):
    return sum(x * y for x, y in zip(vectors.data[a].embedding, vectors.data[b].embedding))
assert abs(similar(0, 0) - 1) < 1e-4 and similar(0, 1) > similar(0, 2)

# Errors have the client's types.
for wrong, error in [
    (dict(model="no-such-model", messages=messages), openai.NotFoundError),
    (dict(model=model, messages=messages, temperature=-1), openai.BadRequestError),
    (dict(model=model, messages=messages, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}), openai.BadRequestError),
]:
    try:
        client.chat.completions.create(**wrong)
    except error:
        continue
    raise AssertionError(f"no {error.__name__} for {wrong}")
print("openai: all features ran")
