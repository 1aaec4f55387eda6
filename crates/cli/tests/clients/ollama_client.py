"""The official Ollama client against `ondine serve`: ollama_client.py URL MODEL"""

import json
import sys

import ollama

url, model = sys.argv[1:3]
client = ollama.Client(host=url)
messages = [{"role": "user", "content": "What is gravity?"}]
options = {"temperature": 0, "num_predict": 20}

assert model in [entry.model for entry in client.list().models]
shown = client.show(model)
assert shown.details.family == "llama" and shown.modelinfo["general.architecture"] == "llama", shown
assert client.ps().models

whole = client.chat(model=model, messages=messages, options=options)
text = whole.message.content
assert text and whole.done and whole.eval_count == 20 and whole.done_reason == "length", whole
pieces = list(client.chat(model=model, messages=messages, options=options, stream=True))
assert "".join(piece.message.content for piece in pieces) == text
assert pieces[-1].done and pieces[-1].prompt_eval_count == whole.prompt_eval_count

generated = client.generate(model=model, prompt="What is gravity?", options=options)
assert generated.response == text, (generated.response, text)
raw = client.generate(model=model, prompt="The capital of France is", raw=True, options=options)
assert "Paris" in raw.response
assert "".join(piece.response for piece in client.generate(model=model, prompt="What is gravity?", options=options, stream=True)) == text

schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"], "additionalProperties": False}
shaped = client.chat(model=model, messages=messages, format=schema, options={"num_predict": 60})
assert 1 <= json.loads(shaped.message.content)["n"] <= 9
json.loads(client.generate(model=model, prompt="JSON", format="json", options={"num_predict": 60}).response)


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Name of the city
    """
    return "sunny"


answer = client.chat(model=model, messages=[{"role": "user", "content": "The weather in Bern?"}], tools=[weather], options={"temperature": 0, "num_predict": 60})
assert answer.message.content or answer.message.tool_calls
assert len(client.embed(model=model, input=["one", "two"]).embeddings) == 2
try:
    client.chat(model="no-such-model", messages=messages)
except ollama.ResponseError as error:
    assert error.status_code == 404
else:
    raise AssertionError("an unknown model was accepted")
print("ollama: all features ran")
