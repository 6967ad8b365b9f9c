"""The update of a fine-tuning: fp32 weights, an optimiser for each learning rate, the bf16 copy that computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twilbert.finetuning.encoders import Base
from twilbert.optim.fragments import Fragment, FragmentOptimizer
from twilbert.optim.optimizers import OPTIMIZERS
from twilbert.recipe.finetuning import FinetuneRecipe, Training


class Weights:
    """The trainable parameters of a network.

    fp32: those themselves. bf16: fp32 masters beside a network in bf16; gradients are added up in fp32, and masters
    copied back after an update. There is an optimiser for each learning rate; gradients are clipped, and tested for
    finite values, over all of them.
    """

    def __init__(self, network: nn.Module, base: Base, recipe: FinetuneRecipe, *, bf16: bool) -> None:
        self.network = network
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(is_trained(base, name, recipe))
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._frozen_state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        if bf16:
            self._masters = {name: nn.Parameter(p.detach().clone()) for name, p in trained.items()}
            network.to(torch.bfloat16)
        else:
            self._masters = trained
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._max_grad_norm = recipe.training.max_grad_norm
        self._optimizers = _optimizers(self._masters, base, recipe)

    def take_gradients(self) -> None:
        """Add the gradients of a backward pass to the masters'."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> bool:
        """Update the weights; return False, and leave them, where a gradient is not finite."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._masters.values() if p.grad is not None])
        is_finite = bool(norm.isfinite())
        if is_finite:
            if self._max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(self._masters.values(), self._max_grad_norm, norm)
            for scale, optimizer in self._optimizers:
                _update(optimizer, learning_rate * scale)
            for name, parameter in self._parameters.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
        for master in self._masters.values():
            master.grad = None
        return is_finite

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all of the network's weights and buffers, fp32, on the CPU."""
        # A network in bf16 holds only rounded copies of frozen weights.
        changed = dict(self.network.named_buffers()) | self._masters
        return {
            name: changed[name].detach().cpu().clone() if name in changed else frozen
            for name, frozen in self._frozen_state.items()
        }


def is_trained(base: Base, name: str, recipe: FinetuneRecipe) -> bool:
    """Return whether a parameter is trained: the head's always, a layer's where trainable_layers has it."""
    layers, layer = recipe.encoder.trainable_layers, base.layer_of(name)
    if layer == base.n_layers or layers == "all":
        return True
    return not isinstance(layers, str) and layer in layers


def _optimizers(
    masters: dict[str, nn.Parameter], base: Base, recipe: FinetuneRecipe
) -> list[tuple[float, torch.optim.Optimizer]]:
    """Return (factor of the learning rate, optimiser) for each group of layers with one rate."""
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, master in masters.items():
        depth = base.n_layers - base.layer_of(name)  # 0: the head; 1: the last layer
        groups.setdefault(recipe.encoder.layer_decay ** max(0, depth), {})[name] = master
    make = _fused_adamw if recipe.training.optimizer == "adamw" else _of_pretraining
    return [(scale, make(group, recipe.training)) for scale, group in groups.items()]


def _fused_adamw(group: dict[str, nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """Torch's AdamW, in one pass over memory; one-dimensional parameters are not decayed."""
    kinds = [[p for p in group.values() if (p.dim() > 1) == decayed] for decayed in (True, False)]
    return torch.optim.AdamW(
        [
            {"params": some, "weight_decay": decay}
            for some, decay in zip(kinds, (settings.weight_decay, 0.0), strict=True)
            if some
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def _of_pretraining(group: dict[str, nn.Parameter], settings: Training) -> FragmentOptimizer:
    """Adam of the original, or LAMB, as in pre-training; each tensor is one fragment."""
    optimizer = OPTIMIZERS[settings.optimizer](
        group.values(),
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    shapes = {name: tuple(p.shape) for name, p in group.items()}
    optimizer.bind([Fragment(name, shapes[name], 0, p.numel(), p, 0) for name, p in group.items()], shapes)
    return optimizer


def _update(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    if isinstance(optimizer, FragmentOptimizer):
        optimizer.learning_rate = learning_rate
        optimizer.update += 1
    else:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    optimizer.step()
