from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tests.train.nano import NANO
from vlmix.builders import benchmark_named
from vlmix.mixture.errors import VlmixError
from vlmix.train.config import Recipe, load, parse
from vlmix.train.loop import lr_factor
from vlmix.train.sweep.recipe import load as load_sweep


def test_every_packaged_training_recipe_and_sweep_parses(recipes: Path) -> None:
    found = {file.stem: load(file) for file in sorted((recipes / "train").glob("*.yaml"))}
    assert all(recipe.name == name for name, recipe in found.items())
    for size in ("7b", "13b"):
        one, two = found[f"llava-1.5-{size}-pretrain"], found[f"llava-1.5-{size}"]
        lora = found[f"llava-1.5-{size}-lora"]
        assert (one.batch.global_size, one.optim.lr, one.template, one.trainable) == (256, 1e-3, "plain", ["connector"])
        assert (two.batch.global_size, two.optim.lr, two.template, two.trainable) == (
            128,
            2e-5,
            "vicuna",
            ["connector", "lm"],
        )
        assert lora.lora is not None
        assert (lora.lora.rank, lora.lora.alpha, lora.lora.dropout) == (128, 256, 0.05)
        assert (lora.optim.lr, lora.optim.connector_lr) == (2e-4, 2e-5)
        for recipe in (one, two, lora):
            assert (recipe.optim.warmup_ratio, recipe.optim.lr_scheduler, recipe.optim.weight_decay) == (
                0.03,
                "cosine",
                0,
            )
            assert (recipe.batch.max_length, recipe.epochs, recipe.model.vision_feature_layer) == (2048, 1, -2)
    assert [load_sweep(file, benchmark_named).name for file in sorted((recipes / "sweep").glob("*.yaml"))] == [
        "demo",
        "half",
        "prompts",
        "resolution-demo",
        "resolution",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optm": {}}, "unknown key 'optm'; did you mean 'optim'"),
        ({"optim": {"lr": 1e-3, "warmpu": 1}}, "optim: unknown key 'warmpu'; did you mean 'warmup_ratio'"),
        ({"optim": {"lr": 0}}, r"optim\.lr"),
        ({"trainable": []}, "`trainable` names what is trained"),
        ({"trainable": ["lm", "lm"]}, "each once"),
        ({"trainable": ["lm", "llm"]}, r"`trainable\[1\]`: expected one of connector, lm, vision_tower, got 'llm'"),
        ({"trainable": "lm"}, "`trainable`: expected `array`, got 'lm'"),
        ({"trainable": ["connector"], "lora": {}}, "`lora` trains the LM"),
        ({"batch": {"pack_length": 100, "max_length": 200}}, "batch.pack_length 100 is less than batch.max_length 200"),
        ({"model": {"lm": "x", "vision_tower": "y", "tokenizer": 100}}, "a pretrained LM has its tokenizer"),
        ({"model": {"lm": {"model_type": "llama"}, "vision_tower": "y"}}, "needs model.tokenizer"),
        ({"template": "vicunia"}, "template"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_a_wrong_recipe_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VlmixError, match=message):
        parse({**NANO, **changes})


def test_overrides_are_numbers_as_people_write_them(tmp_path: Path, recipes: Path) -> None:
    changed = load(
        recipes / "train" / "tiny.yaml", ["optim.lr=2e-5", "batch.pack_length=0", "model.tile_grids=[[1, 2]]"]
    )
    assert (changed.optim.lr, changed.batch.pack_length, changed.model.tile_grids) == (2e-5, 0, [[1, 2]])


def test_the_rate_is_that_of_hugging_faces_schedules() -> None:
    import torch
    from transformers import get_scheduler

    for name in ("cosine", "linear", "constant_with_warmup"):
        kind = name.removesuffix("_with_warmup")
        recipe: Recipe = parse({**NANO, "optim": {"lr": 1.0, "warmup_ratio": 0.1, "lr_scheduler": kind}})
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=50)
        for step in range(50):
            assert lr_factor(step, 50, recipe) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            theirs.step()
