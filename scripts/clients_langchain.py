"""LangChain against a running server; see scripts/clients.sh."""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_tokens=8, temperature=0)
messages = [SystemMessage("be brief"), HumanMessage("hello")]
whole = chat.invoke(messages)
assert whole.usage_metadata["output_tokens"] <= 8, whole
assert "".join(chunk.content for chunk in chat.stream(messages)) == whole.content
assert [answer.content for answer in chat.batch([messages, messages])] == [whole.content] * 2


@tool
def count(word: Literal["one", "two"]) -> str:
    """Counts."""
    return word


bound = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_tokens=300).bind_tools(
    # Otherwise arguments may hold anything besides, and a model of random weights never comes to their end.
    [count], tool_choice="count", strict=True
)
call = bound.invoke("hello").tool_calls[0]
assert call["name"] == "count" and call["args"]["word"] in ["one", "two"], call
print("ok: langchain invoke, stream, batch and tools")
