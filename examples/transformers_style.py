"""The same model as transformers would use it: tensors in and out, and its greedy tokens beside transformers' own.

python examples/transformers_style.py [CHECKPOINT]      (needs qwench[hf])
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from qwench import QwenchForCausalLM

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "models/qwench-tiny"
tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
model = QwenchForCausalLM.from_pretrained(checkpoint, qwench_weights="bf16", qwench_batch_size=4)

prompts = ["Once upon a time", "The old house by the river"]
inputs = tokenizer(prompts, return_tensors="pt", padding=True)
tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
for text in tokenizer.batch_decode(tokens, skip_special_tokens=True):
    print(text)

print("\nstreamed:")
one = tokenizer(prompts[:1], return_tensors="pt")
model.generate(**one, max_new_tokens=32, do_sample=True, temperature=0.7, streamer=TextStreamer(tokenizer))

original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
expected = original.generate(**inputs, max_new_tokens=32, do_sample=False)
print("\nthe same greedy tokens as transformers in fp32:", torch.equal(tokens, expected))
