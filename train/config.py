"""The training recipe: strict YAML into typed records. What a run does stands here, with every default."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from vlmix.mixture.blend import parse_shares
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import strict_yaml as strict

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0)]
Part = Literal["connector", "lm", "vision_tower"]
AspectRatio = Literal["pad", "crop", "stretch"]
"""How a picture becomes a square: `train.images.to_square`."""
Grid = Annotated[list[Positive], Meta(min_length=2, max_length=2)]


class Model(Struct, frozen=True, kw_only=True):
    """A LLaVA model: a vision tower, a connector and a causal LM."""

    lm: str | dict[str, Any]
    """A folder, hub name, .gguf file or package:// file; or the keys of a configuration to be randomly initialized."""
    vision_tower: str | dict[str, Any]
    """A folder, hub name, .onnx file or package:// file; or the keys of a configuration to be randomly initialized."""
    tokenizer: str | Positive | None = None
    """A folder or hub name; a number: train one with that many tokens on the mixture; by default the LM's own."""
    connector: Literal["mlp", "linear", "pixel_shuffle"] = "mlp"
    """mlp: two layers; linear: one; pixel_shuffle: 2 x 2 patches become one token (AyaVision's: norm, SwiGLU)."""
    init_connector_from: str | None = None
    """Run of stage one, or its connector.safetensors, that the connector starts from."""
    prepend_scheme: Literal["always", "first"] | None = None
    """Where a tokenizer of Llama's SentencePiece kind puts its blank: before every run of text between special tokens,
    or before the first of a prompt alone. None: always for LLaVA's templates, the tokenizer's own way for `chat`."""
    vision_feature_layer: int = -2
    """Hidden state of the tower that is used."""
    image_aspect_ratio: AspectRatio = "pad"
    tile_grids: list[Grid] | None = None
    """Tile grids (rows, columns) of the tower's side, beside the global view: LLaVA-NeXT's form. None: one view."""


class Batch(Struct, frozen=True, kw_only=True):
    """What makes up a step."""

    global_size: Positive = 128
    """Global batch: samples per step over all ranks."""
    micro_size: Positive = 16
    """Samples of a padded micro-batch."""
    pack_length: Count = 0
    """Tokens of a packed micro-batch; 0: padded micro-batches."""
    max_length: Positive = 2048
    """Tokens of a sample; longer ones are cut at the right."""
    length_window: Positive = 1
    """Global batches that are filled by length together."""
    drop_last: bool = False
    """Drop the last batch of an epoch where it is smaller."""
    share_images: Positive = 1
    """How many samples of the same pictures are kept together in the order and trained on at once, at most; needs
    pack_length."""


class Optim(Struct, frozen=True, kw_only=True):
    """AdamW and its schedule, as Hugging Face's trainer runs them for LLaVA."""

    lr: Annotated[float, Meta(gt=0)]
    connector_lr: Rate | None = None
    vision_tower_lr: Rate | None = None
    weight_decay: Rate = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    max_grad_norm: Rate = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.03
    """Share of the steps."""


class Lora(Struct, frozen=True, kw_only=True):
    """Low-rank adapters on every linear layer of the LM; they are merged at export."""

    rank: Positive = 128
    alpha: Annotated[float, Meta(gt=0)] = 256
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.05


class Checkpoints(Struct, frozen=True, kw_only=True):
    """When the state of a run is saved, and how many are kept."""

    interval: Count = 500
    """Steps; 0: only at the end and on a signal."""
    keep: Positive = 2
    best: str = ""
    """The number by which one more is kept: validation.loss, of which the lowest is best, or evaluate.BENCHMARK, of
    which the highest is."""


class Validation(Struct, frozen=True, kw_only=True):
    """The loss on samples that are not trained on: held out of the mixture, or of another one."""

    holdout: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Share of the mixture's pictures that is held out, with all samples that show them."""
    mixture: str = ""
    """Another mixture, instead."""
    interval: Positive = 500
    """Steps; the end of the training is one, too."""
    samples: Count = 2000
    """At most so many, the first in hash order; 0: all."""
    seed: Annotated[int, Meta(ge=0, le=2**31)] = 0
    """Of the hold-out and its hash order; apart from the recipe's, so that runs of several seeds share them."""


class Wandb(Struct, frozen=True, kw_only=True):
    """A run of Weights & Biases that metrics are sent to."""

    project: str = "vlmix"
    entity: str = ""
    """A user or team; yours by default."""
    mode: Literal["online", "offline"] | None = None
    """offline: it is written to the run folder, for `wandb sync`. By default what WANDB_MODE says, else online."""


class EvalConfig(Struct, frozen=True, kw_only=True):
    """One benchmark."""

    data: str = ""
    """Folder of the official files; a YAML file names its questions itself."""
    images: list[str] = []
    split: str = ""
    limit: Count = 0
    """The first so many questions; 0: all."""
    max_new_tokens: Count = 0
    """Of an answer; 0: what LLaVA-1.5 allowed the benchmark."""
    own: tuple[str, ...] = ()
    """The YAML file of a benchmark of one's own, and what it reads. A sweep's `load` fills it in."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """Benchmarks that are asked while a model is trained."""

    benchmarks: Annotated[dict[str, EvalConfig], Meta(min_length=1)]
    """By name, or a YAML file of one's own."""
    interval: Positive = 500
    """Steps; the end of the training is one, too."""
    limit: Count = 0
    """The first so many questions of those that have no limit of their own; 0: all."""
    batch_size: Positive = 16
    """Questions answered together."""


class Recipe(Struct, frozen=True, kw_only=True):
    """A parsed training recipe."""

    name: str
    mixture: str | dict[str, Any] = ""
    """A folder, a view or a URL; or several with weights, {mix665k: 0.8, mine: 0.2}, or with how often an epoch goes
    through each, {mix665k: {repeat: 1}, mine: {repeat: 2}}."""
    out: str = ""
    """Folder of the run; runs/NAME by default."""
    seed: Annotated[int, Meta(ge=0, le=2**31)] = 0
    model: Model
    template: Literal["vicuna", "bare", "plain", "chat"]
    """vicuna: LLaVA's v1; bare: the same without its system message; plain: image and caption (stage one); chat: the
    LM's own chat template."""
    trainable: list[Part]
    """What is trained; the rest stays as it was, bit for bit."""
    lora: Lora | None = None
    batch: Batch = Batch()
    optim: Optim
    epochs: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    max_steps: Annotated[Count, Meta(le=10**9)] = 0
    """Number of steps instead of epochs, over the epochs that it takes."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; weights and the optimizer's state are fp32."""
    activation_checkpointing: bool = True
    """Recompute the LM's activations in the backward pass instead of keeping them."""
    loss_chunk: Positive = 1024
    """Target tokens whose logits are held at a time; the logits of the others are computed before or after."""
    compile: bool = False
    """torch.compile of every block of the LM."""
    reshard_after_forward: bool = True
    """Give gathered weights back after each block's forward (ZeRO-3) or keep them until backward (ZeRO-2)."""
    shard_size: Count = 0
    """Processes that share one copy of weights, gradients and moments, neighbours by rank; 0: all. The GPUs of one node
    (HSDP): weights are gathered within it, and gradients alone cross the network."""
    reduce_gradients: Literal["auto", "each", "last"] = "auto"
    """After which micro-batch of a step gradients are reduced over the processes. last: they are kept whole until then,
    4 bytes per trainable parameter on each GPU; auto: so up to 2^30 trainable parameters."""
    checkpoint: Checkpoints = Checkpoints()
    validation: Validation | None = None
    evaluate: Evaluation | None = None
    log_interval: Positive = 1
    wandb: Wandb | None = None
    loader_workers: Count = 4
    """Processes per rank that prepare batches."""
    cpu_threads: Count = 0
    """CPU threads of a process; 0: torch's choice. Small models are slower with several."""
    max_bad_images: Count = 16
    """Images that may fail to decode before the run stops."""
    peak_tflops: Rate | None = None
    """Dense peak of one device for MFU; known for NVIDIA's A100, H100 and H200."""
    profile: Annotated[list[Positive], Meta(min_length=2, max_length=2)] | None = None
    """First and last step of a trace that torch's profiler takes of the first process."""

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def load(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The training recipe in the YAML file at `path`, with `key=value` overrides (`optim.lr=1e-4`) applied.

    Raises VlmixError for unknown keys, naming the nearest, and for what cannot be trained.
    """
    return parse(strict.load(path, overrides), strict.label(path, overrides))


def parse(data: Any, where: str = "recipe") -> Recipe:
    """A training recipe from plain data."""
    if not isinstance(data, dict):
        raise VlmixError(f"{where}: a training recipe is a mapping with `model`, `template`, `trainable` and `optim`")
    _check(data, Recipe, where)
    recipe: Recipe = strict.convert(data, Recipe, where)
    if isinstance(recipe.mixture, dict):
        parse_shares(recipe.mixture, f"{where}: mixture")
        if len(recipe.mixture) == 1:
            recipe = msgspec.structs.replace(recipe, mixture=next(iter(recipe.mixture)))
    if not recipe.trainable or len(set(recipe.trainable)) != len(recipe.trainable):
        raise VlmixError(f"{where}: `trainable` names what is trained, each once: connector, lm, vision_tower")
    if recipe.lora and "lm" not in recipe.trainable:
        raise VlmixError(f"{where}: `lora` trains the LM; add lm to `trainable`")
    if recipe.batch.pack_length and recipe.batch.pack_length < recipe.batch.max_length:
        raise VlmixError(
            f"{where}: batch.pack_length {recipe.batch.pack_length} is less than batch.max_length "
            f"{recipe.batch.max_length}"
        )
    if recipe.batch.share_images > 1 and not recipe.batch.pack_length:
        raise VlmixError(f"{where}: batch.share_images trains packed samples; set batch.pack_length, to 8192 or so")
    if recipe.batch.share_images > 1 and isinstance(recipe.mixture, dict):
        raise VlmixError(f"{where}: batch.share_images is for one mixture; merge them first (`vlmix merge`), or take 1")
    if recipe.model.connector == "pixel_shuffle" and (
        recipe.model.tile_grids or recipe.model.image_aspect_ratio != "stretch"
    ):
        raise VlmixError(
            f"{where}: model.connector pixel_shuffle is AyaVision's, whose processor stretches an image to one square; "
            "set model.image_aspect_ratio: stretch and take model.tile_grids out"
        )
    _check_measures(recipe, where)
    if recipe.profile and recipe.profile[0] > recipe.profile[1]:
        raise VlmixError(f"{where}: profile is the first and the last step of a trace: [5, 7]")
    if isinstance(recipe.model.lm, dict) and recipe.model.tokenizer is None:
        raise VlmixError(f"{where}: an LM from scratch needs model.tokenizer: a folder, or the size of one to train")
    if isinstance(recipe.model.tokenizer, int) and isinstance(recipe.model.lm, str):
        raise VlmixError(f"{where}: a pretrained LM has its tokenizer; take model.tokenizer out")
    return recipe


def _check_measures(recipe: Recipe, where: str) -> None:
    validation, evaluation, best = recipe.validation, recipe.evaluate, recipe.checkpoint.best
    if validation and (validation.holdout is None) == (not validation.mixture):
        raise VlmixError(f"{where}: validation takes either holdout, a share of the mixture, or another mixture")
    if evaluation and recipe.template == "plain":
        raise VlmixError(f"{where}: template plain is of captions and answers no questions; take `evaluate` out")
    for name, one in (evaluation.benchmarks if evaluation else {}).items():
        if one.own:
            raise VlmixError(
                f"{where}: evaluate: benchmarks.{name}: unknown key 'own'; a YAML file is named as the key"
            )
    if best.startswith("evaluate.") and evaluation:
        return  # which names there are, the benchmarks know
    if best and not (best == "validation.loss" and validation):
        raise VlmixError(
            f"{where}: checkpoint.best {best!r} is nothing that the run measures; it is validation.loss, with "
            "`validation`, or evaluate.BENCHMARK, with `evaluate`"
        )


def _check(data: dict[str, Any], struct: type[Struct], where: str) -> None:
    strict.check_keys(data, struct, where)
    for key, hint in get_type_hints(struct).items():
        kinds = [kind for kind in (hint, *getattr(hint, "__args__", ())) if isinstance(kind, type)]
        section = next((kind for kind in kinds if issubclass(kind, Struct)), None)
        if section is not None and isinstance(data.get(key), dict):
            named = data[key] if get_origin(hint) is dict else {"": data[key]}
            for name, one in named.items():
                if isinstance(one, dict):
                    _check(one, section, f"{where}: {key}{name and f'.{name}'}")
