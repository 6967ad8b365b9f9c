"""A model's configuration for transformers: the content of config.json."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

from twilbert.model.config import FIELDS, ModelConfig
from twilbert.model.special_tokens import PAD

AUTO_MAP = {
    "AutoConfig": "configuration_twilbert.TWilBertConfig",
    "AutoModel": "modeling_twilbert.TWilBertModel",
    "AutoModelForPreTraining": "modeling_twilbert.TWilBertForMaskedLM",
    "AutoModelForMaskedLM": "modeling_twilbert.TWilBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_twilbert.TWilBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_twilbert.TWilBertForTokenClassification",
}
"""The class behind each of transformers' Auto classes: file.class in the model's folder."""


class TWilBertConfig(PretrainedConfig):
    """`ModelConfig` as a configuration of transformers: its fields, and the library's usual names for some."""

    model_type = "twilbert"
    attribute_map = {  # noqa: RUF012 (the library's own way of saying it)
        "num_hidden_layers": "n_encoders",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "n_positions",
    }
    # Of a fine-tuned model: `HeadConfig`, and how texts are cleaned and cut. Written only where set.
    head: ClassVar[dict[str, Any] | None] = None
    text: ClassVar[dict[str, Any] | None] = None

    def __init__(self, **values: Any) -> None:
        for name, value in ModelConfig().to_dict().items():
            setattr(self, name, values.pop(name, value))
        # The length transformers cuts at follows from max_len; kept in the file for readers of the file.
        self.n_positions = 2 * self.max_len + 4
        values.pop("n_positions", None)
        values.setdefault("pad_token_id", PAD)
        values.setdefault("tie_word_embeddings", False)
        values.setdefault("auto_map", dict(AUTO_MAP))
        super().__init__(**values)

    @classmethod
    def from_model_config(cls, config: ModelConfig, **others: Any) -> TWilBertConfig:
        """Return the configuration of the same model, with `others` beside its fields."""
        return cls(**config.to_dict(), **others)

    def to_model_config(self) -> ModelConfig:
        """Return the sizes and switches; TwilbertError when they do not fit together."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in FIELDS})

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all fields, those with the default value too, but for the load path and unnamed labels."""
        values = self.to_dict()
        values.pop("_name_or_path", None)
        if values.get("id2label") == {0: "LABEL_0", 1: "LABEL_1"}:
            del values["id2label"], values["label2id"]
        return values
