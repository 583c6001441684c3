"""Token ids, as vlmix's trainer has them, of texts out of standard input: `python token_ids.py TOKENIZER.MODEL`."""

import json
import sys
from pathlib import Path

from vlmix.train.weights.sentencepiece_model import read

tokenizer = read(Path(sys.argv[1]), {})
print(json.dumps([tokenizer(text)["input_ids"] for text in json.load(sys.stdin)]))
