"""The routes that embed, classify and rank, as vLLM, Jina and Cohere have them."""
