"""LlamaIndex against a running server; see scripts/clients.sh."""

import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model = sys.argv[1:]
llm = OpenAILike(
    model=model, api_base=f"{url}/v1", api_key="none", is_chat_model=True, max_tokens=8, temperature=0, context_window=512
)
messages = [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hello")]
whole = llm.chat(messages)
assert whole.message.role == "assistant", whole
assert "".join(part.delta or "" for part in llm.stream_chat(messages)) == whole.message.content
plain = OpenAILike(model=model, api_base=f"{url}/v1", api_key="none", is_chat_model=False, max_tokens=8, temperature=0)
assert isinstance(plain.complete("hello").text, str)
print("ok: llama-index chat, stream and complete")
