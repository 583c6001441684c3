"""What comes out of a run, as transformers reads it: the same model, the same images, the same tokens."""

import io
import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging  # noqa: E402

from tests.helpers import hashes  # noqa: E402
from tests.train.nano import NANO, nano  # noqa: E402
from tests.train.test_images import photograph  # noqa: E402
from tests.train.test_tokens import CHATML, TEXTS, byte_level, llama_like  # noqa: E402
from vlmix.mixture.dataset.reader import Sample  # noqa: E402
from vlmix.mixture.dataset.schema import turns  # noqa: E402
from vlmix.mixture.errors import VlmixError  # noqa: E402
from vlmix.mixture.record import ImageRef  # noqa: E402
from vlmix.train.batches import Collator, MicroBatch  # noqa: E402
from vlmix.train.config import Recipe  # noqa: E402
from vlmix.train.export import CONNECTOR, State, load_connector, write, write_connector  # noqa: E402
from vlmix.train.images import ImageGeometry, decode, normalise  # noqa: E402
from vlmix.train.model import ModelBundle, TrainableVLM, build, meta_model  # noqa: E402
from vlmix.train.tokens import (  # noqa: E402
    IMAGE,
    Encoder,
    Template,
    blocks,
    question_text,
    template,
    train_tokenizer,
)

LM, CLIP = NANO["model"]["lm"], NANO["model"]["vision_tower"]
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
DINO = {**CLIP, "model_type": "dinov2"}
SHUFFLE = {"connector": "pixel_shuffle", "image_aspect_ratio": "stretch"}
GRIDS = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {"model": {"vision_tower": SIGLIP, "image_aspect_ratio": "stretch"}},
    "dinov2": {"model": {"vision_tower": DINO, "image_aspect_ratio": "crop"}},
    "dinov2 with SwiGLU": {"model": {"vision_tower": {**DINO, "use_swiglu_ffn": True}}},
    "linear": {"model": {"connector": "linear"}},
    "pixel shuffle": {"model": {**SHUFFLE, "vision_tower": {**CLIP, "image_size": 32}}},
    "pixel shuffle of siglip, qwen3": {
        "model": {**SHUFFLE, "vision_tower": {**SIGLIP, "image_size": 36}}
        | {"lm": {**LM, "model_type": "qwen3", "head_dim": 16}}
    },
    "pixel shuffle of dinov2": {"model": {**SHUFFLE, "vision_tower": {**DINO, "image_size": 48}}},
    "next": {"model": {"tile_grids": GRIDS, "vision_feature_layer": -2}},
    "next of siglip": {"model": {"tile_grids": GRIDS, "vision_tower": SIGLIP}},
    "next of dinov2": {"model": {"tile_grids": GRIDS, "vision_tower": DINO, "connector": "linear"}},
    "untied": {"model": {"lm": {**LM, "tie_word_embeddings": False}}},
    "rope": {
        "model": {"lm": {**LM, "rope_theta": 1e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}}
    },
    "qwen2": {"model": {"lm": {**LM, "model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": False}}},
    # As siglip2-so400m-patch14-384: the last patch is cut off.
    "siglip of 20 pixels": {"model": {"vision_tower": {**SIGLIP, "image_size": 20}, "image_aspect_ratio": "stretch"}},
    "qwen3 and dinov2": {"model": {"lm": {**LM, "model_type": "qwen3", "head_dim": 16}, "vision_tower": DINO}},
    "smollm3": {"model": {"lm": {**LM, "model_type": "smollm3", "no_rope_layer_interval": 2}}},
    "windows": {
        "model": {
            "lm": {**LM, "model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
        }
    },
    "lora": {"lora": {"rank": 2, "alpha": 8, "dropout": 0.0}},
}
SIZES = [(60, 40), (31, 50), (40, 40), (120, 25), (9, 64)]
ASKED = ["<image>\nWhat color is the cat?", "red", "Is the user curious?", "and polite"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring to matrices of this size, above all when tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Made:
    """A model as it stands at the end of training, and its export."""

    recipe: Recipe
    parts: ModelBundle
    trainee: TrainableVLM
    tokenizer: PreTrainedTokenizerBase
    layout: Template
    folder: Path

    @property
    def state(self) -> State:
        return dict(self.trainee.state_dict())

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.layout)

    def write(self, state: State | None = None, **options: Any) -> Path:
        parts = self.parts
        about = (parts.model, parts.vision, parts.has_cls, self.tokenizer, self.layout, self.recipe)
        write(self.folder, self.state if state is None else state, *about, **options)
        return self.folder

    def read(self) -> Any:
        model, info = AutoModelForImageTextToText.from_pretrained(self.folder, output_loading_info=True)
        assert not any(info.values()), info
        return model.eval()

    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder)


def make(folder: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None = None) -> Made:
    torch.manual_seed(0)
    parts, tokenizer = build(recipe, tokenizer or train_tokenizer(TEXTS, 400))
    trainee = TrainableVLM(parts, recipe).eval()
    with torch.no_grad():  # as if trained: biases, norms and adapters begin at zero or one
        for parameter in trainee.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return Made(recipe, parts, trainee, tokenizer, template(recipe.template, tokenizer), folder / "model")


def sample(width: int, height: int, values: list[str] = ASKED) -> Sample:
    out = io.BytesIO()
    photograph(width, height).save(out, "JPEG", quality=95)
    place = {"id": f"{width}x{height}", "source": "s", "image": "x.jpg", "width": width, "height": height}
    images = [ImageRef("x.jpg", width, height)]
    return Sample(**place, images=images, conversations=turns(values), extra="", jpegs=(out.getvalue(),))


def picture(given: Sample) -> Image.Image:
    assert given.jpeg is not None
    return Image.open(io.BytesIO(given.jpeg))


def messages(values: list[str]) -> list[dict[str, Any]]:
    """Turns as transformers takes them, the image as a part of its own."""
    found = []
    for i, value in enumerate(values):
        text = {"type": "text", "text": value.removeprefix(f"{IMAGE}\n")}
        found.append({"role": ("user", "assistant")[i % 2], "content": [{"type": "image"}] * (IMAGE in value) + [text]})
    return found


def trained_logits(made: Made, micro: MicroBatch) -> torch.Tensor:
    """[K, vocabulary] as the trainer's own forward pass has them."""
    with torch.no_grad():
        found: torch.Tensor = made.trainee.hf.lm_head(made.trainee.target_states(micro))
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_export_is_the_model_that_was_trained(name: str, tmp_path: Path) -> None:
    if "lora" in CASES[name]:
        pytest.importorskip("peft")
    made = make(tmp_path, nano(**CASES[name]))
    made.write()
    model, processor, vision = made.read(), made.processor(), made.parts.vision
    collator = Collator(made.encoder, vision, made.recipe.batch, ["s"], 0)
    for given in [sample(*size) for size in SIZES]:
        micro = collator([given], packed=True)
        ours = trained_logits(made, micro)
        inputs = processor(
            text=processor.apply_chat_template(messages(ASKED)), images=picture(given), return_tensors="pt"
        )
        assert inputs.pop("input_ids").tolist() == micro.input_ids.tolist()
        pixels = normalise(micro.images, vision.mean, vision.std)
        exact = {**inputs, "pixel_values": pixels[None] if vision.tile_grids else pixels}
        for pixel_values, tolerance in ((exact, 1e-5), (inputs, 5e-3)):
            with torch.no_grad():
                theirs = model(input_ids=micro.input_ids, **pixel_values).logits
            assert torch.allclose(theirs.flatten(0, 1)[micro.target_positions], ours, rtol=0, atol=tolerance)


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def both(*stems: str) -> set[str]:
    return {f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")}


def golden(tower: set[str], layer: set[str], layers: str) -> set[str]:
    """The names of llava-hf/llava-1.5-7b-hf, of as many layers as the nano model has."""
    found = {"language_model.model.embed_tokens.weight", "language_model.model.norm.weight"}
    inner = ("input_layernorm", "post_attention_layernorm", *(f"self_attn.{x}_proj" for x in "qkvo"))
    inner += tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
    found |= {f"language_model.model.layers.{i}.{stem}.weight" for i in range(2) for stem in inner}
    found |= both("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
    return found | tower | {f"{layers}.{i}.{stem}" for i in range(2) for stem in layer}


CLIP_LAYER = both("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
CLIP_LAYER |= both(*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")))
V = "vision_tower.vision_model"
GOLDEN = {
    "clip": golden(
        {f"{V}.embeddings.{x}" for x in ("class_embedding", "patch_embedding.weight", "position_embedding.weight")}
        | both(f"{V}.pre_layrnorm", f"{V}.post_layernorm"),
        CLIP_LAYER,
        f"{V}.encoder.layers",
    ),
    "siglip": golden(
        both(f"{V}.embeddings.patch_embedding", f"{V}.post_layernorm")
        | {f"{V}.embeddings.position_embedding.weight", f"{V}.head.probe"}
        | {f"{V}.head.attention.in_proj_{kind}" for kind in ("weight", "bias")}
        | both(*(f"{V}.head.{x}" for x in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2"))),
        CLIP_LAYER,
        f"{V}.encoder.layers",
    ),
    "dinov2": golden(
        {f"vision_tower.embeddings.{x}" for x in ("cls_token", "mask_token", "position_embeddings")}
        | both("vision_tower.embeddings.patch_embeddings.projection", "vision_tower.layernorm"),
        {"layer_scale1.lambda1", "layer_scale2.lambda1"}
        | both("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attention.output.dense")
        | both(*(f"attention.attention.{x}" for x in ("query", "key", "value"))),
        "vision_tower.encoder.layer",
    ),
}
HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip", GOLDEN["clip"]),
        ("siglip", GOLDEN["siglip"]),
        ("dinov2", GOLDEN["dinov2"]),
        ("linear", GOLDEN["clip"]),
        ("pixel shuffle", GOLDEN["clip"] | both("multi_modal_projector.layernorm")),
        ("lora", GOLDEN["clip"]),
        ("untied", GOLDEN["clip"] | {HEAD}),
        ("next", GOLDEN["clip"] | {"image_newline"}),
    ],
)
def test_weights_have_the_names_that_llavas_always_had(name: str, expected: set[str], tmp_path: Path) -> None:
    if "lora" in CASES[name]:
        pytest.importorskip("peft")
    made = make(tmp_path, nano(**CASES[name]))
    assert names(made.write()) == expected


# vllm-project/vllm, vllm/model_executor/models/llava.py and llava_next.py: attributes that AutoWeightsLoader fills, and
# clip.py and siglip.py: what is inside of the tower.
VLLM = r"vision_tower\.vision_model\..+|multi_modal_projector\.linear_[12]\..+|language_model\.(model|lm_head)\..+"
VLLM += r"|image_newline"
# ggml-org/llama.cpp, llava_surgery_v2.py: the tower, the connector and the rest are told apart by these.
SURGERY = ("vision_tower", "multi_modal_projector", "image_newline")


@pytest.mark.parametrize("name", ["clip", "siglip", "untied", "next", "next of siglip"])
def test_vllm_and_llama_cpp_know_the_names(name: str, tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES[name]))
    found = names(made.write())
    assert all(re.fullmatch(VLLM, weight) for weight in found)
    assert {weight for weight in found if not weight.startswith(SURGERY)} == {
        weight for weight in found if weight.startswith("language_model.")
    }
    gguf = pytest.importorskip("gguf")
    # Its own tables, as convert_hf_to_gguf.py reads them. The image's row end and SigLIP's pooling are not in them.
    tables = {part: gguf.get_tensor_name_map(part, 3) for part in (gguf.MODEL_ARCH.MMPROJ, gguf.MODEL_ARCH.LLAMA)}
    for weight in found - {"image_newline"}:
        inner = weight.removeprefix("language_model.")
        table = tables[gguf.MODEL_ARCH.LLAMA if inner != weight else gguf.MODEL_ARCH.MMPROJ]
        assert table.get_name(inner, try_suffixes=(".weight", ".bias")) or ".vision_model.head." in weight, weight


def test_the_configuration_says_the_same_to_old_and_new_readers(tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES["rope"], precision="bf16"))
    made.write()
    config = json.loads((made.folder / "config.json").read_text())
    text = config["text_config"]
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
    assert text["architectures"] == ["LlamaForCausalLM"], "by which vLLM and llama.cpp choose the language model"
    assert (text["rope_theta"], text["rope_scaling"]["rope_type"], text["rope_scaling"]["factor"]) == (1e5, "llama3", 8)
    assert "rope_theta" not in text["rope_scaling"]
    assert config["dtype"] == config["torch_dtype"] == text["dtype"] == config["vision_config"]["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is text["tie_word_embeddings"] is True
    assert config["image_token_index"] == made.encoder.image_id < text["vocab_size"]
    assert config["image_seq_length"] == made.parts.vision.tokens(1, 1)
    assert AutoConfig.from_pretrained(made.folder).text_config.rope_parameters == (
        made.parts.model.config.text_config.rope_parameters
    )
    untied = make(tmp_path / "untied", nano(**CASES["qwen2"]))
    untied.write()
    text = json.loads((untied.folder / "config.json").read_text())["text_config"]
    assert (text["architectures"], text["rope_theta"]) == (["Qwen2ForCausalLM"], 1e6)
    assert text["tie_word_embeddings"] is False and "rope_scaling" not in text


def test_a_bf16_run_is_written_and_read_in_bf16(tmp_path: Path) -> None:
    made = make(tmp_path, nano(precision="bf16", trainable=["connector", "lm"]))
    made.write()
    assert {tensor.dtype for tensor in load_file(made.folder / "model.safetensors").values()} == {torch.bfloat16}
    model = made.read()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def pretrained(folder: Path, generation: dict[str, Any]) -> dict[str, Any]:
    """Halves on disk: an LM whose chat template ends turns with another token than its texts, and a tower."""
    tokenizer = train_tokenizer(TEXTS, 500)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**LM, "vocab_size": len(tokenizer), "tie_word_embeddings": False})
    )
    with torch.no_grad():  # the first channel is large in every token and leads to <|im_end|>
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        lm.model.embed_tokens.weight[:, 0] = 10
        lm.lm_head.weight.zero_()
        lm.lm_head.weight[tokenizer.convert_tokens_to_ids("<|im_end|>"), 0] = 1
    lm.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    (folder / "lm" / "generation_config.json").write_text(json.dumps(generation))
    tower = AutoModel.from_config(AutoConfig.for_model(**SIGLIP))
    tower.save_pretrained(folder / "tower")
    images = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 16, "width": 16}}
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(images))
    return {"lm": str(folder / "lm"), "vision_tower": str(folder / "tower"), "tokenizer": None}


VICUNA = {"max_length": 4096, "bos_token_id": 1, "eos_token_id": [2, 99], "temperature": 0.9, "top_p": 0.6}
"""As Vicuna's, whose settings transformers refuses to save; and token 99 is a word here."""


def test_pretrained_halves_end_their_answers_and_leave_no_trace_of_where_they_were(tmp_path: Path) -> None:
    made = make(tmp_path, nano(template="chat", model=pretrained(tmp_path / "halves", VICUNA)))
    state = {**made.state, **{f"hf.{name}": tensor for name, tensor in made.parts.model.state_dict().items()}}
    made.write(state)
    end, eos = (made.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "</s>"))
    config = json.loads((made.folder / "generation_config.json").read_text())
    assert config == {"bos_token_id": 1, "eos_token_id": [end, eos], "pad_token_id": 0}
    for path in made.folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    images = json.loads((made.folder / "preprocessor_config.json").read_text())
    assert (images["image_mean"], images["image_std"]) == ([0.5, 0.4, 0.3], [0.5, 0.6, 0.7])


def test_generation_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    recipe = nano(template="chat", model=pretrained(tmp_path / "halves", {"eos_token_id": 2}))
    torch.manual_seed(0)
    parts, tokenizer = build(recipe, None)
    made = Made(recipe, parts, TrainableVLM(parts, recipe), tokenizer, template("chat", tokenizer), tmp_path / "model")
    made.write()
    processor = made.processor()
    prompt = processor.apply_chat_template(messages(["Who?"]), add_generation_prompt=True)
    inputs = processor(text=prompt, return_tensors="pt")
    answer = made.read().generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer) == "<|im_end|>"
    assert processor.decode(answer, skip_special_tokens=True) == ""


@pytest.mark.parametrize("name", ["clip", "next of siglip", "pixel shuffle"])
def test_a_batch_is_answered_as_its_members_alone(name: str, tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES[name]))
    made.write()
    model, processor = made.read(), made.processor()
    asked = [(sample(60, 40), "What color is the cat?"), (sample(31, 50), "So?")]
    prompts = [processor.apply_chat_template(messages([f"{IMAGE}\n{text}"])) for _, text in asked]
    images = [picture(given) for given, _ in asked]
    together = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    assert together["attention_mask"][1, 0] == 0 and "token_type_ids" not in together
    answers = model.generate(**together, max_new_tokens=6)[:, together["input_ids"].shape[1] :]
    for prompt, image, answer in zip(prompts, images, answers):
        alone = processor(text=prompt, images=image, return_tensors="pt")
        found = model.generate(**alone, max_new_tokens=6)[0, alone["input_ids"].shape[1] :]
        assert answer[: len(found)].tolist() == found.tolist()


@pytest.mark.parametrize("name", ["vicuna", "chat"])
@pytest.mark.parametrize("like", [byte_level, llama_like])
def test_the_processor_makes_the_tokens_that_were_trained_on(name: str, like: Any, tmp_path: Path) -> None:
    tokenizer = like()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    made = make(tmp_path, nano(template=name), tokenizer)
    made.write()
    processor, given = made.processor(), sample(60, 40)
    whole = made.encoder.encode(ASKED, [made.parts.vision.tokens(60, 40)])
    for turns_ in (1, 3):
        prompt = processor.apply_chat_template(messages(ASKED[:turns_]), add_generation_prompt=True)
        ids = processor(text=prompt, images=picture(given))["input_ids"][0]
        assert ids == whole.ids[: len(ids)].tolist()
        assert whole.loss_mask[len(ids)] and not whole.loss_mask[len(ids) - 1]
    read = processor.tokenizer
    assert read.convert_tokens_to_ids(IMAGE) == processor.image_token_id == made.encoder.image_id
    assert read("a<image>b")["input_ids"] == made.tokenizer("a<image>b")["input_ids"]
    assert IMAGE not in read.decode(ids, skip_special_tokens=True)
    assert (read.eos_token_id, read.pad_token_id) == (made.tokenizer.eos_token_id, made.tokenizer.pad_token_id)


ABOUT_SEVERAL = [
    ["<image>\n<image>\nWhat color is the cat?", "red", "Is the user curious?", "and polite"],
    ["Is <image> the cat of <image> ?", "red", "And\n<image>", "polite"],
    ["The user, <image><image>\nWhat color?", "this: <image>.", "Is it?", "and polite"],
]
"""Conversations about two and three images."""


@pytest.mark.parametrize(
    ("name", "like", "case"),
    [
        ("vicuna", byte_level, "next"),
        ("vicuna", llama_like, "next"),
        ("chat", byte_level, "next"),
        ("chat", llama_like, "next"),
        ("chat", byte_level, "pixel shuffle"),
        ("vicuna", llama_like, "pixel shuffle"),
    ],
)
def test_the_processor_places_several_images_as_they_were_trained(
    name: str, like: Any, case: str, tmp_path: Path
) -> None:
    tokenizer = like()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    made = make(tmp_path, nano(template=name, **CASES[case]), tokenizer)
    made.write()
    processor, images = made.processor(), [picture(sample(*size)) for size in SIZES[:3]]
    for values in ABOUT_SEVERAL:
        shown = images[: "".join(values).count(IMAGE)]
        whole = made.encoder.encode(values, [made.parts.vision.tokens(*image.size) for image in shown])
        turns_ = [{"role": ("user", "assistant")[i % 2], "content": blocks(value)} for i, value in enumerate(values)]
        text = processor.apply_chat_template(turns_)
        # A chat template may say more after an answer's end.
        ids = processor(text=text, images=shown)["input_ids"][0]
        assert ids[: len(whole.ids)] == whole.ids.tolist() and len(ids) - len(whole.ids) <= 1
        asked = question_text(processor, values[:3], len(shown))
        assert text.startswith(asked)


def assert_same_pixels(vision: ImageGeometry, processor: Any, data: bytes) -> None:
    """Within two grey levels, but for a pixel in thousands at a hard edge."""
    image = Image.open(io.BytesIO(data))
    views = vision.tiles(decode(data))
    seen = processor.image_processor(images=image, return_tensors="pt")["pixel_values"].reshape(views.shape)
    ours = normalise(views, vision.mean, vision.std)
    levels = (seen - ours).abs() * 255 * torch.tensor(vision.std)[:, None, None]
    assert levels.max() < 8 and (levels > 2.5).float().mean() < 1e-3 and levels.mean() < 0.3


@pytest.fixture(
    scope="module",
    params=[
        {"image_aspect_ratio": "pad"},
        {"image_aspect_ratio": "crop"},
        {"image_aspect_ratio": "stretch"},
        SHUFFLE,
        {"tile_grids": GRIDS},
    ],
    ids=str,
)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageGeometry, Any]:
    """How a model of 336 pixels sees, in training and in its export."""
    tower = {**CLIP, "image_size": 336, "patch_size": 14}
    made = make(tmp_path_factory.mktemp("large"), nano(model={"vision_tower": tower, **request.param}))
    made.write()
    return made.parts.vision, made.processor()


@pytest.mark.parametrize("size", [(640, 480), (427, 640), (500, 376), (333, 333), (900, 200), (131, 700)])
def test_the_processor_sees_what_was_trained_on(large: tuple[ImageGeometry, Any], size: tuple[int, int]) -> None:
    jpeg = sample(*size).jpeg
    assert jpeg is not None
    assert_same_pixels(*large, jpeg)


def test_the_processor_sees_photographs_as_they_were_trained_on(large: tuple[ImageGeometry, Any], real: Path) -> None:
    photographs = sorted(real.glob("gqa/images/*.jpg"))[:4] + sorted(real.glob("textvqa/train_images/*.jpg"))[:2]
    assert len({Image.open(path).size for path in photographs}) > 3
    for path in photographs:
        assert_same_pixels(*large, path.read_bytes())


def test_image_tokens_are_counted_as_the_processor_counts_them(tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES["next"]))
    made.write()
    processor, vision = made.processor(), made.parts.vision
    for i in range(150):
        width, height = 1 + i * 7919 % 97, 1 + i * 104729 % 89
        ids = processor(text=IMAGE, images=Image.new("RGB", (width, height)))["input_ids"][0]
        assert ids.count(made.encoder.image_id) == vision.tokens(width, height), (width, height)


def test_large_weights_come_in_parts_with_an_index(tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES["untied"]))
    whole = load_file(made.write() / "model.safetensors")
    made.write(shard_bytes=30_000)
    files = sorted(path.name for path in made.folder.glob("model*"))
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    count = len(files) - 1
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)] + [
        "model.safetensors.index.json"
    ]
    parts = {file: load_file(made.folder / file) for file in files[:-1]}
    for tensors in parts.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 30_000
    assert index["weight_map"] == {name: file for file, tensors in parts.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    together = {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}
    assert together.keys() == whole.keys() and all(torch.equal(together[name], whole[name]) for name in whole)
    made.read()


def test_an_export_that_does_not_load_back_leaves_the_one_before(tmp_path: Path) -> None:
    made = make(tmp_path, nano())
    before = hashes(made.write())
    projector = "hf.model.multi_modal_projector"
    lacking = {name: tensor for name, tensor in made.state.items() if not name.startswith(f"{projector}.linear_1")}
    small = {**made.state, f"{projector}.linear_2.bias": torch.zeros(3)}
    more = {**made.state, "hf.model.vision_tower.encoder.more": torch.zeros(3)}
    untied = {**made.state, "hf.lm_head.weight": torch.zeros_like(made.state["hf.lm_head.weight"])}
    for state, what in (
        (lacking, "missing_keys"),
        (more, "unexpected_keys"),
        (small, "mismatched_keys.*linear_2.bias"),
        (untied, "other values.*lm_head"),
    ):
        with pytest.raises(VlmixError, match=f"does not load back.*{what}"):
            made.write(state)
        assert hashes(made.folder) == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    words = (f"{i} word" * 3 for i in range(3000))
    narrow = {"lm": {**LM, "hidden_size": 16}}
    made = make(tmp_path, nano(precision="bf16", model=narrow), train_tokenizer(words, 3000))
    sizes = {path.name: path.stat().st_size for path in made.write(shard_bytes=10_000).iterdir()}
    largest = max(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert largest < sizes["tokenizer.json"], "so that the one or the other is what does not fit"
    before = hashes(made.folder)
    connector = tmp_path / CONNECTOR
    write_connector(connector, made.state)
    bytes_before = connector.read_bytes()
    for most in (largest - 1, sizes["tokenizer.json"] - 1):
        with files_up_to(most), pytest.raises(VlmixError, match="cannot write.*free some space"):
            made.write(shard_bytes=10_000)
    with files_up_to(1000), pytest.raises(VlmixError, match="cannot write.*free some space"):
        write_connector(connector, made.state)
    assert hashes(made.folder) == before and connector.read_bytes() == bytes_before
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONNECTOR, "model"]


def test_writing_shows_nothing_and_changes_no_setting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path, nano())
    config, generation = made.parts.model.config.to_dict(), made.parts.model.generation_config.to_dict()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    chat, side = made.tokenizer.chat_template, made.tokenizer.padding_side
    capfd.readouterr()
    made.write()
    assert capfd.readouterr() == ("", "")
    assert (level, bars) == (logging.get_verbosity(), logging.is_progress_bar_enabled())
    assert (chat, side) == (made.tokenizer.chat_template, made.tokenizer.padding_side)
    assert config == made.parts.model.config.to_dict()
    assert generation == made.parts.model.generation_config.to_dict()
    made.read()
    assert ("Loading weights" in capfd.readouterr().err) is bars, "the bar is off for the check alone"


def test_the_connector_alone_is_what_stage_two_starts_from(tmp_path: Path) -> None:
    made = make(tmp_path, nano(**CASES["next"]))
    write_connector(tmp_path / CONNECTOR, made.state)
    found = load_file(tmp_path / CONNECTOR)
    assert found.keys() == both("linear_1", "linear_2") | {"image_newline"}
    other = make(tmp_path, nano(**CASES["next"])).parts.model
    other.model.image_newline.data.zero_()
    load_connector(other, str(tmp_path))
    for name, tensor in found.items():
        place = other.model if name == "image_newline" else other.model.multi_modal_projector
        assert torch.equal(place.get_parameter(name), tensor)


@pytest.mark.parametrize("name", ["clip", "linear", "next", "pixel shuffle"])
def test_another_process_makes_a_model_of_the_same_weights(name: str) -> None:
    recipe = nano(**CASES[name])
    model = build(recipe, train_tokenizer(TEXTS, 400))[0].model
    other = meta_model(model.config)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }


def test_a_pixel_shuffle_takes_whole_squares_of_patches() -> None:
    with pytest.raises(VlmixError, match="joins 2 x 2 patches, the tower has 3 x 3; take another tower"):
        build(nano(model={**SHUFFLE, "vision_tower": {**CLIP, "image_size": 24}}), train_tokenizer(TEXTS, 400))
    for changes in ({"image_aspect_ratio": "pad"}, {"tile_grids": GRIDS}):
        with pytest.raises(VlmixError, match="whose processor stretches an image to one square"):
            nano(model={**SHUFFLE, **changes})


@pytest.mark.parametrize("parts", [["connector", "lm"], ["vision_tower", "connector", "lm"]], ids=" ".join)
@pytest.mark.parametrize("name", ["clip", "next", "pixel shuffle"])
def test_a_step_without_images_has_a_gradient_of_zeros_for_the_connector(
    name: str, parts: list[str], tmp_path: Path
) -> None:
    made = make(tmp_path, nano(**CASES[name], trainable=parts))
    collator = Collator(made.encoder, made.parts.vision, made.recipe.batch, ["s"], 0)
    place = {"id": "t", "source": "s", "image": "", "width": 0, "height": 0}
    text = Sample(**place, images=[], conversations=turns(["Who?", "they"]), extra="", jpegs=())
    made.trainee(collator([text], packed=True)).sum().backward()
    for weight in made.parts.model.model.multi_modal_projector.parameters():
        assert weight.grad is not None and not weight.grad.any()
