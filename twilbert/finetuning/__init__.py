"""Fine-tuning on one device, in plain PyTorch: what the verbs finetune and tune share.

task files ─ data: encode ─▶ splits ┐
MODEL ─ base: find ▸ load ──────────┴▶ loop: train, judged on dev ─▶ Outcome ─ final: test, once ─▶ files, page
"""
