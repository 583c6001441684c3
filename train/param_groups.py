"""Parameter groups of the optimizer."""

from collections.abc import Iterator

from torch import nn

from vlmix.train.config import Part, Recipe
from vlmix.train.model import TrainableVLM


def param_groups(model: TrainableVLM, recipe: Recipe) -> Iterator[dict[str, object]]:
    """Parameter groups for AdamW: by learning rate, and by weight decay (none on vectors, such as norms and biases)."""
    optim = recipe.optim
    rates = {
        "connector": optim.lr if optim.connector_lr is None else optim.connector_lr,
        "vision_tower": optim.lr if optim.vision_tower_lr is None else optim.vision_tower_lr,
        "lm": optim.lr,
    }
    found: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    for (part, decays), parameters in sorted(found.items(), key=lambda item: item[0]):
        yield {
            "params": parameters,
            "part": part,
            "lr": rates[part],
            "base_lr": rates[part],
            "weight_decay": optim.weight_decay if decays else 0.0,
        }


def count_parameters(model: TrainableVLM) -> dict[str, dict[str, int]]:
    """Part -> how many of its parameters are trained, and how many frozen."""
    found: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = found.setdefault(part_of(name), {"trained": 0, "frozen": 0})
        part["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return found


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by its name in the model."""
    if "vision_tower." in name:
        return "vision_tower"
    return "connector" if "multi_modal_projector." in name or name.endswith("image_newline") else "lm"
