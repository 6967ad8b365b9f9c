"""TWilBERT: pre-train, evaluate and fine-tune an encoder of Spanish Twitter conversations."""

__version__ = "0.1.0"
