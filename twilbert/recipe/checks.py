"""Faults of a recipe that concern several fields."""

from __future__ import annotations

from twilbert.recipe.pretraining import ENDING, Model, Recipe


def cross_faults(recipe: Recipe) -> list[str]:
    """Return the faults that concern several fields, each with its dotted path and the remedy."""
    model, training, objective = recipe.model, recipe.training, recipe.objective
    faults: list[str] = []
    if model.attention_size is None and model.hidden_size % model.n_heads:
        faults.append(
            f"model.attention_size: hidden_size {model.hidden_size} does not divide by n_heads {model.n_heads}; "
            "give attention_size, or another n_heads"
        )
    if not model.factorize_embeddings and model.embedding_size != model.hidden_size:
        faults.append(
            f"model.embedding_size: {model.embedding_size} differs from hidden_size {model.hidden_size}; "
            "make them equal, or set model.factorize_embeddings=true"
        )
    if model.max_len is not None and recipe.corpus.max_len > model.max_len:
        faults.append(
            f"corpus.max_len: {recipe.corpus.max_len} tokens need {2 * recipe.corpus.max_len + 3} positions, "
            f"model.max_len={model.max_len} gives {2 * model.max_len + 4}; lower corpus.max_len or raise model.max_len"
        )
    if model.pkm:
        faults += _pkm_faults(model)
    least, most = recipe.cluster.least_workers, recipe.cluster.most_workers
    if least > most:
        faults.append(f"cluster.num_workers: [{least}, {most}] must be [least, most]; swap them")
    faults += _reader_group_faults(recipe)
    probs = objective.masked_lm.probs
    if abs(probs.mask + probs.random + probs.keep - 1) > 1e-9:
        faults.append(
            f"objective.masked_lm.probs: mask {probs.mask} + random {probs.random} + keep {probs.keep} must make 1"
        )
    if training.precision == "bf16" and training.zero_stage == 0:
        faults.append("training.zero_stage: bf16 needs stage 1, 2 or 3 for its fp32 masters; raise it, or use fp32")
    if training.learning_rate is None and training.schedule != "noam":
        faults.append(f"training.learning_rate: a {training.schedule} schedule needs a peak learning rate, e.g. 1e-4")
    examples = {"lamb": "0.00125 at 2,048 samples a step (You et al. 2020)", "muon": "0.003"}
    if training.learning_rate is None and training.optimizer in examples:
        faults.append(
            f"training.learning_rate: {training.optimizer} needs its own, e.g. {examples[training.optimizer]}"
        )
    ends = recipe.decay_start if training.schedule == "wsd" else recipe.schedule_steps
    if training.schedule in ENDING and training.warmup_steps >= ends:
        faults.append(
            f"training.warmup_steps: {training.warmup_steps} leaves nothing of the {ends} steps before "
            f"{'the decay of wsd' if training.schedule == 'wsd' else 'the end of the schedule'}; "
            "lower warmup_steps, or raise max_steps"
        )
    return faults


def _reader_group_faults(recipe: Recipe) -> list[str]:
    lanes, samples = recipe.corpus.lanes, recipe.training.global_batch_size
    faults = []
    if samples % lanes:
        faults.append(f"corpus.lanes: {lanes} must divide training.global_batch_size={samples}; choose a divisor")
    cluster = recipe.cluster
    unfit = [n for n in range(cluster.least_workers, cluster.most_workers + 1) if lanes % n] if lanes > 1 else []
    if unfit:
        fitting = [str(n) for n in range(1, lanes + 1) if lanes % n == 0]
        faults.append(
            f"cluster.num_workers: {unfit[0]} workers do not divide corpus.lanes={lanes}; use {', '.join(fitting)}, "
            "or another corpus.lanes"
        )
    return faults


def _pkm_faults(model: Model) -> list[str]:
    params, faults = model.pkm_params, []
    wrong = [layer for layer in params.in_layers if not 0 <= layer < model.n_encoders]
    if wrong or not params.in_layers or len(set(params.in_layers)) < len(params.in_layers):
        faults.append(
            f"model.pkm_params.in_layers: {list(params.in_layers)} must name different layers "
            f"from 0 to {model.n_encoders - 1}, at least one"
        )
    if params.knn > params.memory_size:
        faults.append(f"model.pkm_params.knn: {params.knn} is more than the {params.memory_size} keys of memory_size")
    if params.k_dim % 2:
        faults.append(f"model.pkm_params.k_dim: {params.k_dim} must be even, a half for each of the two key sets")
    return faults
