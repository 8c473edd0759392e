"""What the clients of test_clients.py are asked to do, each in its own environment: knows nothing of qwench.

python client_programs.py PROGRAM ARGUMENTS...   prints a line of JSON
"""

from __future__ import annotations

import json
import sys
from typing import Any


def llama_index(url: str, question: str) -> dict[str, Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai import OpenAIEmbedding
    from llama_index.llms.openai_like import OpenAILike

    options = {"model": "tiny", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 30}
    chats, completes = (OpenAILike(**options, is_chat_model=is_chat) for is_chat in (True, False))
    messages = [ChatMessage(role="user", content=question)]
    embedding = OpenAIEmbedding(model_name="tiny", api_base=f"{url}/v1", api_key="none")
    return {
        "chat": chats.chat(messages).message.content,
        "stream": "".join(chunk.delta or "" for chunk in chats.stream_chat(messages)),
        "chat model completes": chats.complete(question).text,
        "complete": completes.complete(question).text,
        "vectors": embedding.get_text_embedding_batch([question, "an old house"]),
        "vector": embedding.get_query_embedding(question),
    }


def lm_eval_of_transformers(folder: str, checkpoint: str) -> dict[str, Any]:
    return _evaluated("hf", folder, {"pretrained": checkpoint, "dtype": "float32", "device": "cpu"})


def lm_eval_of_server(folder: str, url: str, checkpoint: str, sends: str) -> dict[str, Any]:
    options = {
        "model": "tiny", "base_url": f"{url}/v1/completions", "num_concurrent": 1,
        "tokenizer": checkpoint, "tokenizer_backend": "huggingface", "tokenized_requests": sends == "tokens",
    }  # fmt: skip
    return _evaluated("local-completions", folder, options)


def _evaluated(model: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=folder)
    found = lm_eval.simple_evaluate(
        model=model, model_args=options, tasks=["foxes"], task_manager=tasks, batch_size=1, bootstrap_iters=0
    )
    answers = [pair for sample in found["samples"]["foxes"] for [pair] in sample["resps"]]
    scores = {
        name.partition(",")[0]: value for name, value in found["results"]["foxes"].items() if name.startswith("acc")
    }
    numbers = {name: value for name, value in scores.items() if not name.endswith("_stderr")}
    return {
        "scores": numbers, "logprobs": [float(logprob) for logprob, _ in answers],
        "greedy": [str(is_greedy) == "True" for _, is_greedy in answers],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
