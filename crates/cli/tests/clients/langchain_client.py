"""LangChain's ChatOpenAI against `ondine serve`: langchain_client.py URL MODEL"""

import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

url, model = sys.argv[1:3]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=40, max_retries=0)
messages = [SystemMessage("You are brief."), HumanMessage("What is gravity?")]

answer = chat.invoke(messages)
assert answer.content and answer.usage_metadata["output_tokens"] > 0
streamed = "".join(chunk.content for chunk in chat.stream(messages))
assert streamed == answer.content, (streamed, answer.content)
assert [result.content for result in chat.batch([messages, messages])] == [answer.content] * 2


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=50_000_000)


longer = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=120)
for method in ("json_schema", "function_calling"):
    found = longer.with_structured_output(City, method=method).invoke("A large city")
    assert isinstance(found, City), found


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


called = chat.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Bern?")
assert called.tool_calls[0]["name"] == "weather", called
result = weather.invoke(called.tool_calls[0]["args"])
after = [HumanMessage("What is the weather in Bern?"), AIMessage("", tool_calls=called.tool_calls), ToolMessage(result, tool_call_id=called.tool_calls[0]["id"])]
assert chat.bind_tools([weather], tool_choice="none").invoke(after).content is not None

embeddings = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model=model, check_embedding_ctx_length=False)
assert len(embeddings.embed_documents(["one", "two"])) == 2
print("langchain: all features ran")
