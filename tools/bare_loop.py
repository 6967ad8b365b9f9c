"""The training step without Ray, DeepSpeed, stream and tracking, fed from memory: what the chain is compared with.

The model in the run's dtype, gradients added up in fp32, fp32 masters, the run's optimiser on one flat tensor.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from tools.turns import Turn, clock
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.stream.stream import accumulation_for, micro_batches
from twilbert.evaluation import scoring
from twilbert.model.config import ModelConfig
from twilbert.model.heads import PretrainingModel
from twilbert.optim.fragments import Fragment
from twilbert.optim.optimizers import OPTIMIZERS
from twilbert.optim.schedules import learning_rate
from twilbert.pretraining.job import Job
from twilbert.recipe.pretraining import Recipe


class Masters:
    """A model's weights and summed gradients as one flat fp32 tensor each, with views in the parameters' shapes."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        sizes = [p.numel() for p in self.parameters]
        self.flat = torch.nn.Parameter(torch.cat([p.detach().float().flatten() for p in self.parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        self.weights, self.sums = (
            [part.view_as(p) for part, p in zip(whole.split(sizes), self.parameters, strict=True)]
            for whole in (self.flat.detach(), self.flat.grad)
        )
        t, offset, fragments = recipe.training, 0, []
        for name, p in named.items():
            fragments.append(Fragment(name, tuple(p.shape), 0, p.numel(), self.flat, offset))
            offset += p.numel()
        settings = {"trust_clip": t.trust_clip} if t.optimizer == "lamb" else {}
        self.optimizer = OPTIMIZERS[t.optimizer](
            [self.flat], beta1=t.beta1, beta2=recipe.beta2, epsilon=t.epsilon, weight_decay=t.weight_decay,
            exclude_1d=t.exclude_1d, **settings,
        )  # fmt: skip
        self.optimizer.bind(fragments, {name: tuple(p.shape) for name, p in named.items()})
        self.most = t.max_grad_norm

    def accumulate(self) -> None:
        """Add the parameters' gradients to the sums, and drop them."""
        torch._foreach_add_(self.sums, [cast(torch.Tensor, p.grad) for p in self.parameters])
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Clip, step, hand the weights to the parameters, empty the sums."""
        assert self.flat.grad is not None
        if self.most:
            self.flat.grad.mul_((self.most / (self.flat.grad.norm() + 1e-6)).clamp(max=1.0))
        self.optimizer.update += 1
        self.optimizer.learning_rate = rate
        self.optimizer.step()
        torch._foreach_copy_(self.parameters, self.weights)
        self.flat.grad.zero_()


def bare_turn(recipe: Recipe, encoded: EncodedCorpus, precision: str) -> Turn:
    """The step of that number, from 1."""
    t = recipe.training
    device = torch.device("cuda" if recipe.cluster.use_gpu else "cpu")
    accumulation = accumulation_for(encoded, "train", t.global_batch_size, 1, t.micro_batch_tokens, recipe.corpus.lanes)
    plan = Job(recipe, cast(Any, None), encoded, precision, None).stream_plan(1, accumulation)
    memory = list(micro_batches(plan, 0, 0, t.max_steps))
    torch.manual_seed(t.seed)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = PretrainingModel(ModelConfig.from_dict(recipe.architecture(encoded.vocab_size))).to(device, dtype).train()
    masters = Masters(model, recipe)

    def turn(step: int) -> dict[str, Any]:
        mine = memory[(step - 1) * accumulation : step * accumulation]
        found: dict[str, Any] = {"real": sum(m.real_tokens for m in mine)}
        masked = max(1, sum(len(m.masked_index) for m in mine))
        replied = max(1, sum(int((m.rop_labels >= 0).sum()) for m in mine))
        with clock(device, found):
            sums = scoring.zero_sums(device)
            for micro_batch in mine:
                out = model(*scoring.tensors(micro_batch, device))
                (out.mlm_loss_sum / masked + out.rop_loss_sum / replied).backward()
                masters.accumulate()
                sums += scoring.sums_of(out, micro_batch)
            masters.update(learning_rate(recipe, step))
            found["loss"] = sums.tolist()[0] / masked
        return found

    return turn
