"""Recipes with today's models: their own YAML, with small random weights of the same kinds, laid out as on the hub.

The real weights have not been loaded: what is checked is everything but their values.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.train.chat import QWEN3, SMOLLM3  # noqa: E402
from tests.train.test_export import ASKED, Made, messages, picture, sample, trained_logits  # noqa: E402
from tests.train.test_tokens import TEXTS  # noqa: E402
from vlmix.mixture.io.strict_yaml import RECIPES  # noqa: E402
from vlmix.mixture.mixture import open as open_mixture  # noqa: E402
from vlmix.train.batches import Collator  # noqa: E402
from vlmix.train.checkpoint import restore_weights  # noqa: E402
from vlmix.train.config import load  # noqa: E402
from vlmix.train.metrics import read  # noqa: E402
from vlmix.train.model import TrainableVLM, build  # noqa: E402
from vlmix.train.run import train  # noqa: E402
from vlmix.train.tokens import template  # noqa: E402

NARROW = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
THOUGHT = [AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")]


def byte_pairs(splits: str) -> Tokenizer:
    """A small BPE over bytes that splits words by a regular expression."""
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(splits), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def qwen3(folder: Path) -> None:
    """As Qwen/Qwen3-0.6B: heads wider than the model asks for, rows of the embedding to spare, an own class of
    tokenizer, no begin token, its chat template inside of tokenizer_config.json, weights in parts."""
    model = json.loads(byte_pairs(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+").to_str())["model"]
    special = ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=special,
        model_max_length=131072,
    )
    tokenizer.add_tokens(THOUGHT)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "Qwen2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": QWEN3}))
    config = Qwen3Config(
        **NARROW,
        num_hidden_layers=2,
        head_dim=16,
        vocab_size=len(tokenizer) + 50,
        max_position_embeddings=40960,
        rope_theta=1e6,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="20KB")


def smollm3(folder: Path) -> None:
    """As HuggingFaceTB/SmolLM3-3B: every fourth layer without positions, no row of the embedding to spare, a file for
    its chat template."""
    backend = byte_pairs(r"\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]+")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", model_max_length=131072
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>"]}
    )
    tokenizer.add_tokens(THOUGHT)
    tokenizer.chat_template = SMOLLM3
    tokenizer.save_pretrained(folder)
    assert (folder / "chat_template.jinja").exists()
    config = SmolLM3Config(
        **NARROW,
        num_hidden_layers=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=65536,
        rope_theta=5e6,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    assert config.no_rope_layers == [1, 1, 1, 0]
    SmolLM3ForCausalLM(config).bfloat16().save_pretrained(folder)


def siglip2(folder: Path) -> None:
    """As google/siglip2-base-patch16-256: both towers, a larger vocabulary than SigLIP's, images stretched."""
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 300, "projection_size": 32}
    SiglipModel(SiglipConfig(vision_config={**layers, "image_size": 64}, text_config=text)).save_pretrained(folder)
    images = {"do_resize": True, "size": {"height": 64, "width": 64}, "resample": 2, "do_convert_rgb": None}
    images |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))


BASE, LARGE = "google/siglip2-base-patch16-256", "google/siglip2-so400m-patch16-384"
RECIPE = {
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B", BASE, qwen3),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B", LARGE, qwen3),
    "smollm3-3b": ("HuggingFaceTB/SmolLM3-3B", LARGE, smollm3),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("name", "connector"), [*((name, "mlp") for name in RECIPE), ("qwen3-0.6b", "pixel_shuffle")])
def test_a_recipe_trains_and_its_export_is_what_it_trained(
    name: str, connector: str, mixture: Path, tmp_path: Path
) -> None:
    lm, tower, made_as = RECIPE[name]
    torch.manual_seed(0)
    made_as(tmp_path / "lm")
    siglip2(tmp_path / "tower")
    for stage in (f"{name}-pretrain", name):
        asked = load(RECIPES / "train" / f"{stage}.yaml")
        assert (asked.name, asked.model.lm, asked.model.vision_tower) == (stage, lm, tower)
    # In bf16, as the recipes have it, logits would agree to three digits only.
    open_mixture(mixture).subset(where="image != ''").save(tmp_path / "images")
    small = [f"model.lm={tmp_path / 'lm'}", f"model.vision_tower={tmp_path / 'tower'}"]
    small += [
        "precision=fp32",
        "batch.global_size=4",
        "loader_workers=0",
        "max_steps=2",
        f"model.connector={connector}",
    ]
    captions = [f"mixture={tmp_path / 'images'}", f"out={tmp_path / 'first'}"]
    first = load(RECIPES / "train" / f"{name}-pretrain.yaml", [*small, *captions])
    assert train(first) == 0
    start = f"model.init_connector_from={tmp_path / 'first'}"
    rest = [start, f"mixture={mixture}", f"out={tmp_path / 'run'}"]
    recipe = load(RECIPES / "train" / f"{name}.yaml", [*small, *rest])
    assert train(recipe) == 0
    assert all(0 < row["loss"] < 20 for row in read(tmp_path / "run"))

    parts, tokenizer = build(recipe, None)
    trainee = TrainableVLM(parts, recipe)
    before = trainee.hf.lm_head.weight.detach().clone()
    restore_weights(tmp_path / "run" / "checkpoints" / "step-00000002", trainee)
    assert not torch.equal(before, trainee.hf.lm_head.weight)
    folder = tmp_path / "run" / "model"
    made = Made(recipe, parts, trainee.eval(), tokenizer, template(recipe.template, tokenizer), folder)
    model, processor = made.read(), made.processor()
    for size in ((60, 40), (31, 50)):
        given = sample(*size)
        micro = Collator(made.encoder, parts.vision, recipe.batch, ["s"], 0)([given], packed=True)
        inputs = processor(
            text=processor.apply_chat_template(messages(ASKED)), images=picture(given), return_tensors="pt"
        )
        ids, trained = inputs["input_ids"][0].tolist(), micro.input_ids[0].tolist()
        assert ids[: len(trained)] == trained
        with torch.no_grad():
            theirs = model(input_ids=micro.input_ids, pixel_values=inputs["pixel_values"]).logits.flatten(0, 1)
        assert torch.allclose(theirs[micro.target_positions], trained_logits(made, micro), rtol=0, atol=5e-3)
    assert_asked_as_the_lm_is(AutoTokenizer.from_pretrained(tmp_path / "lm"), processor)


def assert_asked_as_the_lm_is(tokenizer: PreTrainedTokenizerBase, processor: Callable[..., object]) -> None:
    """The prompt of a question is the LM's own without thinking; only the day is not today."""
    turn = [{"role": "user", "content": "Who is it?"}]
    render = processor.apply_chat_template  # type: ignore[attr-defined]
    own = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    ours = render(turn, tokenize=False, add_generation_prompt=True)
    assert without_day(ours) == without_day(own)
    assert "01 July 2025" in ours or "Today" not in own
    assert own.endswith(("<think>\n\n</think>\n\n", "<think>\n\n</think>\n"))


def without_day(prompt: str) -> str:
    return "\n".join(line for line in prompt.split("\n") if not line.startswith("Today Date: "))
