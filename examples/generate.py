"""Answers from Python: one streamed conversation, then a batch. Needs no torch.

python examples/generate.py [MODEL]
"""

import sys

from qwench import LLM, SamplingParams

model = sys.argv[1] if len(sys.argv) > 1 else "models/qwench-tiny"

with LLM(model, weights="int8") as llm:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    for delta in llm.chat(messages, SamplingParams(temperature=0, max_tokens=80), stream=True):
        print(delta.text, end="", flush=True)
    print("\n")

    prompts = ["Once upon a time", "The old house", "In the garden"]
    for output in llm.generate(prompts, SamplingParams(temperature=0.7, seed=1, max_tokens=24)):
        answer = output.outputs[0]
        print(f"{output.prompt}{answer.text}  [{answer.finish_reason}]")
