"""The tokenizer that vlmix makes of a real tokenizer.model against the slow one of transformers 4.37.2, which
LLaVA pins, and against the fast one that it converts by scores."""

import json
import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import transformers
from common import ROOT, same
from transformers import LlamaTokenizer, LlamaTokenizerFast

TEXTS = [
    "A chat. USER: What  is  in   the image? ASSISTANT: A cat.</s>USER: And? ASSISTANT:",
    "\nWhat color is it?\nAnswer the question using a single word or phrase.",
    "def f(x):\n    if x:\n\t\treturn x  # twice\n            return  0",
    "  two before, one after ",
    "½ é 漢字 😀👩‍🚀 ▁ ﬁ\r\n\r\n",
    "Please provide a short description for this region: [0.75, 0.24, 0.91, 0.37].",
    "          ten",
]

same("transformers", transformers.__version__, "4.37.2")
spec = find_spec("mistral_common")
model = Path(spec.submodule_search_locations[0], "data", "tokenizer.model.v1")
ours = json.loads(
    subprocess.run(
        [os.environ["VLMIX_PYTHON"], ROOT / "interop" / "token_ids.py", model],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
)
slow = LlamaTokenizer(str(model), legacy=True)
with tempfile.TemporaryDirectory() as folder:
    slow.save_pretrained(folder)
    fast = LlamaTokenizerFast.from_pretrained(folder, legacy=True)
for text, ids in zip(TEXTS, ours):
    same(f"slow: {text!r}", ids, slow(text)["input_ids"])
    same(f"fast: {text!r}", ids, fast(text)["input_ids"])
print(f"transformers {transformers.__version__}: {len(TEXTS)} texts are cut alike by its slow and fast tokenizers")
