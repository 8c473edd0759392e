"""OpenAI's requests and replies, with what vLLM adds."""
