"""transformers' side of a model. Importing this package registers the models with transformers' Auto classes."""

from __future__ import annotations

import transformers

from twilbert.hub import modeling, remote_code
from twilbert.hub.configuration import AUTO_MAP, TWilBertConfig


def register() -> None:
    """Register the models with transformers' Auto classes and pipelines; calling it again changes nothing."""
    modeling.TWilBertPreTrainedModel.code = remote_code.files()
    transformers.AutoConfig.register(TWilBertConfig.model_type, TWilBertConfig, exist_ok=True)
    for auto, path in AUTO_MAP.items():
        if auto != "AutoConfig":
            model_class = getattr(modeling, path.partition(".")[2])
            getattr(transformers, auto).register(TWilBertConfig, model_class, exist_ok=True)


register()
