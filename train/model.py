"""The model: transformers' Llava, LlavaNext or AyaVision around a vision tower and a causal LM, and its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing
from vlmix.train import attention
from vlmix.train.batches import MicroBatch
from vlmix.train.config import Lora, Part, Recipe
from vlmix.train.cross_entropy import chunked_cross_entropy
from vlmix.train.images import CLIP_MEAN, CLIP_STD, ImageGeometry, normalise
from vlmix.train.probe import _check_lm, _lm_errors, _unused
from vlmix.train.tokens import IMAGE, add_image_token, with_prefix
from vlmix.train.weights.pretrained import (
    LanguageModel,
    Tower,
    describe_lm,
    describe_tower,
    family_of,
    load_lm,
    load_tokenizer,
    load_tower,
)

LlavaModel: TypeAlias = Any
"""Of one of these classes."""
_KINDS: dict[type, Callable[[Any], Any]] = {
    LlavaConfig: LlavaForConditionalGeneration,
    LlavaNextConfig: LlavaNextForConditionalGeneration,
    AyaVisionConfig: AyaVisionForConditionalGeneration,
}
_MERGED = 2
"""Patches along each side of those that a pixel shuffle joins."""


@dataclass(frozen=True)
class ModelBundle:
    """What a model is built of: transformers' model on the CPU in fp32, and how it sees images."""

    model: LlavaModel
    vision: ImageGeometry
    has_cls: bool
    unused: frozenset[str]
    """Weights of the tower after the layer that is used; they would have no gradient, ever."""


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> tuple[ModelBundle, PreTrainedTokenizerBase]:
    """The model of a recipe and its tokenizer, with `<image>` among its tokens; `tokenizer` for an LM from scratch.

    Randomly initialized weights follow torch's generator.
    """
    return _build(recipe, tokenizer, load_lm, lambda where: load_tower(where, torch.float32))


def describe(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> tuple[ModelBundle, PreTrainedTokenizerBase]:
    """The same on the meta device, from configurations alone: shapes, and neither weights nor the memory for them."""
    with torch.device("meta"):
        return _build(recipe, tokenizer, describe_lm, describe_tower)


def _build(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None,
    lm_at: Callable[[str], LanguageModel],
    tower_at: Callable[[str], Tower],
) -> tuple[ModelBundle, PreTrainedTokenizerBase]:
    if isinstance(recipe.model.lm, str):
        loaded = lm_at(recipe.model.lm)
        lm, tokenizer = loaded.model, loaded.tokenizer
        if isinstance(recipe.model.tokenizer, str):
            tokenizer = load_tokenizer(recipe.model.tokenizer)
        tokenizer = _prepared(tokenizer, recipe)
    else:
        assert tokenizer is not None
        tokenizer = _prepared(tokenizer, recipe)
        config = _config(recipe.model.lm, "lm", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        with _lm_errors(recipe, "cannot be built"):
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if len(tokenizer) > lm.config.vocab_size:
        lm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    _check_lm(recipe, lm)
    tower = _tower(recipe, tower_at)
    vision = ImageGeometry(
        tower.side,
        tower.patch,
        tower.mean,
        tower.std,
        recipe.model.image_aspect_ratio,
        tuple((rows, columns) for rows, columns in recipe.model.tile_grids) if recipe.model.tile_grids else None,
        _MERGED if recipe.model.connector == "pixel_shuffle" else 1,
    )
    if (edge := tower.side // tower.patch) % vision.merge:
        raise VlmixError(
            f"model.connector pixel_shuffle joins 2 x 2 patches, the tower has {edge} x {edge}; take another tower, "
            "such as google/siglip2-so400m-patch16-384, or another connector"
        )
    if vision.tile_grids and tower.model.config.image_size != tower.side:
        # LlavaNext takes the size of a tile from the tower's configuration.
        raise VlmixError(
            f"model.tile_grids: the tower {recipe.model.vision_tower} is configured for "
            f"{tower.model.config.image_size} pixels and used at {tower.side}; "
            "tiles need a tower whose configuration says what it takes"
        )
    with _lm_errors(recipe, "does not fit into transformers' Llava"):
        model = _assemble(recipe, lm, tower, vision, tokenizer)
    return ModelBundle(model, vision, tower.has_cls, _unused(tower, recipe.model.vision_feature_layer)), tokenizer


def _prepared(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> PreTrainedTokenizerBase:
    """With `<image>`, and blanks where the recipe wants them."""
    scheme = recipe.model.prepend_scheme or (None if recipe.template == "chat" else "always")
    tokenizer = with_prefix(tokenizer, scheme)
    add_image_token(tokenizer)
    return tokenizer


def _tower(recipe: Recipe, tower_at: Callable[[str], Tower]) -> Tower:
    if isinstance(recipe.model.vision_tower, str):
        return tower_at(recipe.model.vision_tower)
    config = _config(recipe.model.vision_tower, "vision_tower")
    family = family_of("model.vision_tower", config.model_type)
    if not hasattr(config, "image_size"):
        raise VlmixError(
            f"model.vision_tower: {config.model_type} is of two towers; take {config.model_type}_vision_model"
        )
    model = AutoModel.from_config(config, trust_remote_code=False)
    return Tower(model, CLIP_MEAN, CLIP_STD, int(config.image_size), family.has_cls, int(config.patch_size))


def _config(keys: dict[str, Any], part: str, **more: Any) -> Any:
    try:
        return AutoConfig.for_model(**{**keys, **more})
    except Exception as error:  # configurations check their keys each in its own way
        raise VlmixError(f"model.{part}: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _assemble(
    recipe: Recipe, lm: Any, tower: Tower, vision: ImageGeometry, tokenizer: PreTrainedTokenizerBase
) -> LlavaModel:
    common = {
        "text_config": lm.config,
        "vision_config": tower.model.config,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "vision_feature_layer": recipe.model.vision_feature_layer,
        "vision_feature_select_strategy": "default" if tower.has_cls else "full",
        "tie_word_embeddings": bool(lm.config.tie_word_embeddings),
    }
    # A linear connector is the two-layer one whose second half is the identity: exportable as it is.
    act = "linear" if recipe.model.connector == "linear" else "gelu"
    config: LlavaConfig | LlavaNextConfig | AyaVisionConfig
    if vision.merge > 1:
        # SwiGLU halves the width, so that its second layer is as wide as the LM.
        width = 2 * lm.config.hidden_size
        config = AyaVisionConfig(downsample_factor=vision.merge, alignment_intermediate_size=width, **common)
    elif vision.tile_grids:
        config = LlavaNextConfig(image_grid_pinpoints=vision.pinpoints, projector_hidden_act=act, **common)
    else:
        tokens = vision.tokens(vision.side, vision.side)
        config = LlavaConfig(image_seq_length=tokens, projector_hidden_act=act, **common)
    with torch.device("meta"):
        model = _KINDS[type(config)](config)
    projector = model.model.multi_modal_projector
    model.model.multi_modal_projector = type(projector)(config)
    if recipe.model.connector == "linear":
        model.model.multi_modal_projector.linear_2 = nn.Identity()
    if vision.tile_grids:
        width = config.text_config.hidden_size
        model.model.image_newline = nn.Parameter(torch.randn(width) * width**-0.5)
    model.model.vision_tower = tower.model
    model.model.language_model = lm.get_decoder()
    model.lm_head = lm.get_output_embeddings()
    model.generation_config = lm.generation_config
    return model


def meta_model(config: LlavaConfig | LlavaNextConfig | AyaVisionConfig) -> LlavaModel:
    """A model of the same shapes as one that another process built, its weights unset."""
    with torch.device("meta"):
        model = _KINDS[type(config)](config)
        if getattr(config, "projector_hidden_act", None) == "linear":
            model.model.multi_modal_projector.linear_2 = nn.Identity()
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


class TrainableVLM(nn.Module):
    """A model as it is trained: which parts learn, and the loss of a micro-batch."""

    hf: LlavaModel

    def __init__(self, parts: ModelBundle, recipe: Recipe) -> None:
        super().__init__()
        hf, vision = parts.model, parts.vision
        self.hf, self.vision, self.has_cls = hf, vision, parts.has_cls
        self.parts: frozenset[Part] = frozenset(recipe.trainable)
        self.loss_chunk = recipe.loss_chunk
        name = attention.register()
        hf.model.language_model.set_attn_implementation(name)
        hf.requires_grad_(False)
        for part in self.parts:
            for module in self.modules_of(part):
                module.requires_grad_(True)
        if "connector" in self.parts and vision.tile_grids:
            hf.model.image_newline.requires_grad_(True)
        for name, parameter in self.vision_tower.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in parts.unused)
        if recipe.lora:
            _adapt(hf.model.language_model, recipe.lora)
            hf.lm_head.requires_grad_(False)
        if recipe.activation_checkpointing and {"lm", "connector", "vision_tower"} & self.parts:
            lm = hf.model.language_model
            # transformers 5.23 gave it another name.
            enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if "vision_tower" not in self.parts:
            self.vision_tower.to(torch.bfloat16 if recipe.precision == "bf16" else torch.float32)
        self.train()

    def _seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """[V, patches, width]: the tower's hidden state of normalised tiles [V, 3, side, side]."""
        hidden: torch.Tensor = self.vision_tower(pixels, output_hidden_states=True).hidden_states[
            self.hf.config.vision_feature_layer
        ]
        return hidden[:, int(self.has_cls) :]

    def modules_of(self, part: Part) -> list[nn.Module]:
        inner = self.hf.model
        return {
            "connector": [inner.multi_modal_projector],
            "lm": [inner.language_model, self.hf.lm_head],
            "vision_tower": [inner.vision_tower],
        }[part]

    @property
    def vision_tower(self) -> nn.Module:
        tower: nn.Module = self.hf.model.vision_tower
        return tower

    @property
    def blocks(self) -> nn.ModuleList:
        """The LM's layers, the units of sharding."""
        layers: nn.ModuleList = self.hf.model.language_model.layers
        return layers

    def train(self, mode: bool = True) -> "TrainableVLM":
        super().train(mode)
        if "vision_tower" not in self.parts:
            self.vision_tower.eval()
        return self

    def forward(self, micro: MicroBatch) -> torch.Tensor:
        """[S] fp32: the sum of the losses of each sample's trained tokens. A micro-batch without any gives zeros that
        can be differentiated, so that every rank runs the same passes."""
        hidden, head = self.target_states(micro), self.hf.lm_head
        # The head's weight is used, not called: within this forward, FSDP has it whole.
        losses = chunked_cross_entropy(hidden, head.weight, head.bias, micro.targets, self.loss_chunk)
        return losses.new_zeros(len(micro.samples)).index_add(0, micro.sample_index, losses)

    def target_states(self, micro: MicroBatch) -> torch.Tensor:
        """[K, width]: the LM's last hidden state before each target token. The head runs for these alone, which for
        short answers are a few tokens in hundreds."""
        embeds = self.hf.get_input_embeddings()(micro.input_ids)
        features = self._features(micro, embeds.dtype)
        if len(micro.images):
            shape = embeds.shape
            embeds = embeds.flatten(0, 1).index_copy(0, micro.image_positions, features).view(shape)
        else:
            embeds = embeds + 0.0 * features.sum()
        hidden: torch.Tensor = self.hf.model.language_model(
            inputs_embeds=embeds,
            position_ids=micro.position_ids,
            use_cache=False,
            bounds=None if micro.bounds is None else micro.bounds.placed(embeds),
        ).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, micro.target_positions)

    def _features(self, micro: MicroBatch, dtype: torch.dtype) -> torch.Tensor:
        """[F, width]: the connector's output for all image tokens; of zeros where there is no image."""
        inner = self.hf.model
        learns = "vision_tower" in self.parts
        if not len(micro.images) and not learns:
            shape = (1, self.vision.merge**2, self.hf.config.vision_config.hidden_size)
            features: torch.Tensor = inner.multi_modal_projector(
                torch.zeros(shape, device=micro.input_ids.device, dtype=dtype)
            )
            return self._with_newline(features)
        pixels = micro.images
        if not len(pixels):
            pixels = torch.zeros(
                (1, 3, self.vision.side, self.vision.side), dtype=torch.uint8, device=micro.input_ids.device
            )
        with torch.set_grad_enabled(learns):
            at = dtype if learns else next(self.vision_tower.parameters()).dtype
            hidden = self._seen(normalise(pixels, self.vision.mean, self.vision.std, at))
        projected: torch.Tensor = inner.multi_modal_projector(hidden.to(dtype))
        if not len(micro.images):
            return self._with_newline(projected.flatten(0, -2))
        if not self.vision.tile_grids:
            return projected.flatten(0, -2)
        packed, _ = inner.pack_image_features(
            projected.split(micro.tiles_per_image),
            micro.image_sizes,
            vision_feature_select_strategy=self.hf.config.vision_feature_select_strategy,
            image_newline=inner.image_newline,
        )
        return torch.cat(packed)

    def _with_newline(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.hf.model.image_newline if self.vision.tile_grids else features


def _adapt(lm: nn.Module, lora: Lora) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise missing("peft", "`lora`") from None
    targets = sorted({name.rpartition(".")[2] for name, module in lm.named_modules() if isinstance(module, nn.Linear)})
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, lm)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name)
