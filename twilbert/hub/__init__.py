"""transformers' side of a model. Importing this package registers the models with transformers' Auto classes."""

from __future__ import annotations

import transformers

from twilbert.hub import configuration, modeling, remote_code


def register() -> None:
    """Make transformers' Auto classes and pipelines know the models; calling it again changes nothing."""
    modeling.TWilBertPreTrainedModel.code = remote_code.files()
    configuration.register()
    for auto, path in configuration.AUTO_MAP.items():
        if auto != "AutoConfig":
            model_class = getattr(modeling, path.partition(".")[2])
            getattr(transformers, auto).register(configuration.TWilBertConfig, model_class, exist_ok=True)


register()
