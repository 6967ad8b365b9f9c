"""Fine-tuning on one device, in plain PyTorch: what the verbs finetune and tune share.

task files ─ data: encode ─▶ splits ┐
MODEL ─ encoders: find ▸ load ──────┴▶ train: learn from train, evaluate on dev ─▶ Outcome ─ test_scores ─▶ files, page
"""
