"""A model for other programs: a hub folder that transformers opens without twilbert, with its card; ONNX; the hub.

MODEL ─ find ─▶ hub folder: weights, code, tokenizer that cleans, card ─▶ OUT ─ --push ─▶ the hub
              └▶ onnx/model.onnx, checked against torch
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from twilbert import cli, outputs, storage
from twilbert.data.tokenizer.sentencepiece import with_cleaning
from twilbert.data.tokenizer.tokenizer import CONFIG_FILE, SETTINGS_FILE, SUM, TOKENIZER_FILE
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub import card as model_card
from twilbert.hub.folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, ModelFolder, find_model, save_model_folder
from twilbert.hub.onnx import TOLERANCE, Checked, check_onnx, write_onnx
from twilbert.model.classifier import ClassificationModel
from twilbert.model.heads import PretrainingModel
from twilbert.parsing import read_record
from twilbert.plugins import UntrustedCode
from twilbert.tracking.history import held_out_scores

ONNX_NAME = "model.onnx"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_TOKEN = "HF_TOKEN"
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(
    model: str, out: str, *, onnx: bool = False, hub_folder: bool = True, title: str = "", overwrite: bool = False
) -> Checked | None:
    """Write `out`, whole or not at all; return how an ONNX file that was asked for compares with torch.

    With `hub_folder` everything transformers needs, the card under the name `title` (the folder's own when empty), and
    the ONNX file under onnx/; without it the ONNX file, configuration and tokenizer, or the ONNX file alone into a
    folder of the same weights. UsageError for wrong arguments, TwilbertError where the model is damaged or the ONNX
    file computes something else.
    """
    if not onnx and not hub_folder:
        raise UsageError("nothing to write; ask for a hub folder or for ONNX")
    if onnx:
        _require_onnx()
    source = _open(model)
    network = source.load().eval()
    if not hub_folder and storage.exists(storage.join(out, WEIGHTS_NAME)):
        return _add_onnx(source, network, out, overwrite=overwrite)
    title = title or storage.absolute(out).rsplit("/", 1)[-1]
    records = model_card.read_records(source, held_out_scores(source.path))
    new = outputs.new_folder(out, "export", overwrite=overwrite, inputs=[model, source.path])
    with tempfile.TemporaryDirectory() as scratch, new as target:
        checked = _onnx(network, scratch) if onnx else None
        if hub_folder:
            onnx_text = None if checked is None else _onnx_text(checked)
            card = {CARD_NAME: model_card.model_card(title, source.config, source.head, records, onnx_text).encode()}
            save_model_folder(
                target, source.config, network.state_dict(), source.path, head=source.head, text=source.text,
                cleaning=source.text["cleaning"], files=card,
            )  # fmt: skip
        else:
            _copy(source.path, target, (CONFIG_NAME, CONFIG_FILE))
        _write_tokenizer(source, target)
        _copy(scratch, storage.join(target, "onnx") if hub_folder else target, storage.list_dir(scratch))
    return checked


def _require_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs the package {missing[0]}: pip install 'twilbert[export]'")


def _open(model: str) -> ModelFolder:
    folder = ModelFolder.open(find_model(model))
    if folder.third_party:
        raise UsageError(
            f"{folder.path}: fine-tuned on an encoder of transformers, which opens its part of the folder directly; "
            "export writes models of ours alone"
        )
    try:
        _ = folder.head
    except UntrustedCode as error:
        raise UsageError(
            f"{folder.path}: has a custom head, whose code no other program has and which was not run; fine-tune with "
            "a pooling and a linear layer instead"
        ) from error
    return folder


def _onnx(network: PretrainingModel | ClassificationModel, scratch: str) -> Checked:
    file = str(Path(scratch) / ONNX_NAME)
    cli.say("writing ONNX and checking it against torch")
    write_onnx(network, file)
    return check_onnx(network, file)


def _add_onnx(
    source: ModelFolder, network: PretrainingModel | ClassificationModel, out: str, *, overwrite: bool
) -> Checked:
    """Write the ONNX file beside the same model's weights; nothing else there is touched."""
    weights, others = (storage.join(folder, WEIGHTS_NAME) for folder in (source.path, out))
    if storage.sha256_file(weights) != storage.sha256_file(others):
        raise UsageError(f"{storage.absolute(out)}: holds another model's weights; choose another folder")
    if storage.exists(storage.join(out, ONNX_NAME)) and not overwrite:
        raise UsageError(f"{storage.join(storage.absolute(out), ONNX_NAME)}: already there; --overwrite replaces it")
    with tempfile.TemporaryDirectory() as scratch:
        checked, names = _onnx(network, scratch), storage.list_dir(scratch)
        _copy(scratch, out, names)
    outputs.add_to_record(out, "export", names)
    cli.say(f"{out}: its tokenizer is unchanged, and cleans no texts; that of an export to a separate folder does")
    return checked


def _onnx_text(checked: Checked) -> str:
    onnx, torch = checked.onnx_texts_per_second, checked.torch_texts_per_second
    return (
        f"`onnx/{ONNX_NAME}`: inputs input_ids, attention_mask, token_type_ids, batch and positions free, fp32. "
        f"Largest difference to torch {checked.difference:.1e}. On the CPU it was exported on: {onnx:,.0f} texts/s in "
        f"onnxruntime, {torch:,.0f} in torch (batches of 16 texts of 32 tokens)."
    )


def _write_tokenizer(source: ModelFolder, target: str) -> None:
    """Write the tokenizer, which then cleans texts itself."""
    if not source.has_tokenizer:
        cli.say(f"{source.path} has no tokenizer: what is written takes token ids and no texts")
        return
    content = storage.read_bytes(storage.join(source.path, TOKENIZER_FILE))
    content = with_cleaning(content, source.text["cleaning"], remove_rt=source.text["remove_rt"])
    storage.write_bytes_atomic(storage.join(target, TOKENIZER_FILE), content)
    settings = storage.join(target, SETTINGS_FILE)
    if storage.exists(settings):  # they hold the checksum of the tokenizer without cleaning
        written = read_record(settings, dict[str, Any]) | {SUM: hashlib.sha256(content).hexdigest()}
        storage.write_json_atomic(settings, written)


def _copy(source: str, target: str, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        file = storage.join(source, name)
        if storage.exists(file):
            storage.write_bytes_atomic(storage.join(target, name), storage.read_bytes(file))


def push(folder: str, repo: str, token: str) -> str:
    """Upload a hub folder to `repo`, made private where it is new; returns its address. TwilbertError when refused."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="twilbert-export", ignore_patterns=outputs.RECORD
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).replace(token, "…").strip().splitlines()[0]
        raise TwilbertError(
            f"{repo}: the hub refused ({reason}); {folder} is written, and can be pushed again"
        ) from error
    return str(address)


def _token(repo: str, out: str) -> str:
    """The token to push with; UsageError, before any work, where pushing could not succeed."""
    if not _REPO.fullmatch(repo):
        raise UsageError(f"--push {repo}: expected OWNER/NAME, as the hub names repositories")
    if not storage.is_local(out):
        raise UsageError(f"--push: {out} is not on this machine; export to a local folder to push it")
    token = os.environ.get(_TOKEN, "")
    if not token:
        raise UsageError(f"--push needs a token that may write: put it into the environment variable {_TOKEN}")
    return token


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "export",
        "Write a model for other programs: a hub folder with its card (the default), ONNX, or both.",
        "twilbert-export runs/base-1a2b3c4d twilbert-base --onnx --hub-folder\n"
        "  HF_TOKEN=… twilbert-export runs/irony irony --push me/twilbert-irony",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder, checkpoint, run folder or run name")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--onnx", action="store_true", help="an ONNX file, checked against torch; OUT may be MODEL")
    parser.add_argument("--hub-folder", action="store_true", help="weights, code, tokenizer and card, for transformers")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help=f"upload the hub folder there; the token comes from {_TOKEN}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    return parser


def _command(args: argparse.Namespace) -> str:
    out = storage.absolute(args.out)
    token = _token(args.push, out) if args.push else ""
    hub = args.hub_folder or bool(args.push) or not args.onnx
    title = args.push.partition("/")[2] if args.push else ""
    checked = export(args.model, out, onnx=args.onnx, hub_folder=hub, title=title, overwrite=args.overwrite)
    written = [f"hub folder in {out}"] if hub else []
    if checked is not None:
        speeds = [
            ["onnxruntime", round(checked.onnx_texts_per_second)],
            ["torch", round(checked.torch_texts_per_second)],
        ]
        cli.table(["CPU, 16 texts of 32 tokens", "texts/s"], speeds)
        print(f"largest difference to torch: {checked.difference:.1e} (allowed: {TOLERANCE:.0e})")
        written.append(f"ONNX in {storage.join(out, 'onnx', ONNX_NAME) if hub else storage.join(out, ONNX_NAME)}")
    if args.push:
        written.append(f"pushed to {push(out, args.push, token)} (a new one is private)")
    return "; ".join(written)


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-export."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.export import main as _main

    raise SystemExit(_main())
