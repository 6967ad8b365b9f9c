"""Sweeps over tasks and models, on Ray Tune.

    recipe ─ sweep: studies, trials ─ search: Ray Tune ▸ trial ─▶ records ─ final ─▶ results, page

A study is one task with one model; all studies of a sweep share the cluster. Trials read train and dev alone.
"""
