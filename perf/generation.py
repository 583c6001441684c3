"""Greedy answers to questions of a miniature VQAv2, one at a time and in batches, by the same model.

The model is LLaVA-shaped with random weights (an LM of 30 layers, 576 wide, as SmolLM2-135M has, and a tower of
12, 384 wide, at 224 pixels), so it does not end its answers by itself: all are 8 tokens long. Reading the model is not
timed; decoding and preparing the images is.
"""

import argparse
from functools import partial

from common import TIMES, Clock, Facts, alternate, machine, parser, perform, run, spread, table, work_folder

QUESTIONS, NEW = 64, 8
BATCHES = (1, 4, 16, 64)


def generate(args: argparse.Namespace) -> Facts:
    """The miniature releases and an exported model."""
    from vlmix.builders import known_sources
    from vlmix.builders.miniature import write_sample
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import parse
    from vlmix.train.config import parse as parse_training
    from vlmix.train.run import train

    raw = args.work / "raw"
    write_sample(raw)
    build(
        parse({"name": "questions", "sources": {"vqav2": {}}}, known_sources()),
        known_sources(),
        raw,
        args.work / "mixture",
    )
    lm = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    tower = {"model_type": "clip_vision_model", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12}
    recipe = {
        "name": "random",
        "mixture": str(args.work / "mixture"),
        "out": str(args.work / "run"),
        "model": {
            "lm": {**lm, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
            "vision_tower": {**tower, "num_attention_heads": 6, "image_size": 224, "patch_size": 14},
            "tokenizer": 1000,
        },
        "template": "vicuna",
        "trainable": ["connector"],
        "batch": {"global_size": 1, "max_length": 1024},
        "optim": {"lr": 1e-3},
        "max_steps": 1,
        "precision": "fp32",
        "loader_workers": 0,
    }
    # The LM is exported, too, if it counts as trained; at a rate that changes nothing worth speaking of.
    train(parse_training({**recipe, "trainable": ["connector", "lm"], "optim": {"lr": 1e-12}}))
    return {"seconds": 0.0, "cpu": 0.0}


def answer(args: argparse.Namespace, batch: int) -> Facts:
    import torch

    from vlmix.builders import known_benchmarks
    from vlmix.train.evaluate.generate import Generator

    raw = args.work / "raw"
    questions = known_benchmarks()["vqav2"].questions(raw / "vqav2")[: round(QUESTIONS * args.scale)]
    asked = [(question.text, (raw / question.image).read_bytes()) for question in questions]
    asked.sort(key=lambda pair: -len(pair[0]))
    generator = Generator(str(args.work / "run"), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    generator.model.generation_config.eos_token_id = None
    generator.answers(asked[:1], NEW)
    clock = Clock()
    for start in range(0, len(asked), batch):
        generator.answers(asked[start : start + batch], NEW)
    return clock.facts(questions=len(asked))


CONTENDERS = {
    "generate": generate,
    **{f"batch{size}": partial(answer, batch=size) for size in BATCHES},
}


def main() -> None:
    args = parser(__doc__, repeat=2).parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("torch", "transformers"))
    with work_folder(args) as work:
        options = ("--scale", str(args.scale))
        run("generate", work, *options)
        names = [f"batch{size}" for size in BATCHES]
        measured = alternate(names, args.repeat, lambda name: run(name, work, *options))
    base = measured["batch1"].seconds
    rows = [
        [str(size), *spread(measured[f"batch{size}"]), f"{base / measured[f'batch{size}'].seconds:.1f}x"]
        for size in BATCHES
    ]
    print(table(["batch", *TIMES, "speed"], rows))


if __name__ == "__main__":
    main()
