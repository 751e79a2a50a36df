"""Exports as a whole: bad input, what is left behind, and what a bundle says."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

import edgeprune
from edgeprune import export
from edgeprune.bundle import read_manifest
from edgeprune.debias.curves import TabulatedCurve, save_curve
from edgeprune.errors import EdgepruneError, InputError, OutputError, UnsupportedModelError, VerificationError
from edgeprune.exporter import decision, graph, pipeline, placing, weights
from edgeprune.exporter.origin import model_name
from edgeprune.exporter.pipeline import ExportOptions, default_output, resolve_model
from edgeprune.progress import Silent
from edgeprune.scratch import PARTIAL
from tests.export.conftest import CURVE, Exported
from tests.manifests import FILES, make_manifest, write_bundle
from tests.tiny import llava_config, save_llava

BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "keep of 0": ({"keep": 0.0}, r"keep ratio is 0\.0: expected a number above 0"),
    "keep above 1": ({"keep": 30}, r"keep ratio is 30: .*0\.3 keeps 30"),
    "keep not a number": ({"keep": float("nan")}, "keep ratio is nan"),
    "layer before the first": ({"layer": 0}, r"layer 0 .*4 decoder layers.*1 to 3"),
    "layer behind the last": ({"layer": 4}, r"layer 4 .*4 decoder layers.*1 to 3"),
    "unknown method": ({"method": "fastw"}, r"unknown pruning method 'fastw': choose one of .*fastv"),
    "opset too old": ({"opset": 17}, "opset 17 is not supported: choose 18 to 23"),
    "opset too new": ({"opset": 24}, "opset 24 is not supported: choose 18 to 23"),
    "unknown dtype": ({"dtype": "int8"}, "the dtype 'int8' is not supported: choose one of fp32, fp16, bf16"),
    "unknown weights": (
        {"weights": "int3"},
        r"weights of the type 'int3' are not supported: choose one of fp32, .* int4, int8, fp8, nvfp4",
    ),
    "weights wider than the dtype": (
        {"weights": "fp32", "dtype": "fp16"},
        r"weights in fp32 and computation in fp16 .*leave out `weights`",
    ),
    "opset without blocks": (
        {"weights": "int4", "opset": 20},
        "opset 20 has no int4 weights in blocks: expected 21",
    ),
    "opset without nvfp4": (
        {"weights": "nvfp4", "opset": 22},
        "opset 22 has no nvfp4 weights in blocks: expected 23",
    ),
    "images without rounding": (
        {"calibrate_images": "images"},
        "`calibrate_images` was given and weights are not rounded: expected int4 or int8",
    ),
    "questions without images": (
        {"weights": "int4", "calibrate_prompts": "questions"},
        "`calibrate_prompts` was given without images",
    ),
    "share of no pruning": ({"method": "none"}, "`keep=0.3` was given and the method none prunes nothing"),
    "layers of no pruning": (
        {"method": "none", "keep": 1, "layer": (1, 2)},
        "`layer=1,2` was given and the method none prunes nothing: leave it out",
    ),
    "curve of no pruning": ({"method": "none", "keep": None, "curve": "fastv"}, "`curve=fastv` was given"),
    "unknown curve": ({"curve": "cubist"}, r"'cubist' is neither a bias curve preset nor a file"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused_and_leave_nothing(name: str, llama_folder: Path, tmp_path: Path) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(InputError, match=message):
        export(llama_folder, output=tmp_path / "out", **{"keep": 0.3, **options})
    assert not list(tmp_path.iterdir())


def test_a_table_shorter_than_the_visual_tokens(llama_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    save_curve(TabulatedCurve(weights=tuple(np.linspace(1, 0.5, 35).tolist())), path)
    with pytest.raises(InputError, match=r"35 .*36"):
        export(llama_folder, keep=0.3, curve=path, output=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["curve.json"]


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _yarn(folder: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    llava_config("qwen2", rope_parameters=rope).save_pretrained(folder)


def _other_sizes(folder: Path) -> None:
    llava_config(intermediate_size=64).save_pretrained(folder)


DAMAGED: dict[str, tuple[Callable[[Path], None], type[EdgepruneError], str]] = {
    "no weights": (_no_weights, InputError, r"has no model\.safetensors"),
    "truncated weights": (_cut, InputError, r"model\.safetensors is not a whole safetensors file"),
    "pickled weights": (_pickle, InputError, r"is a pickle, which is never loaded"),
    "rotary scaling": (_yarn, UnsupportedModelError, r"'yarn' rotary scaling"),
    "config of another model": (_other_sizes, InputError, "do not belong together"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_model_that_cannot_be_exported(name: str, llama_folder: Path, tmp_path: Path) -> None:
    damage, kind, message = DAMAGED[name]
    model = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    damage(model)
    with pytest.raises(kind, match=message):
        export(model, keep=0.3, output=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def handmade(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replaces tracing and writing by files made by hand; `error` is raised when half of them are written."""
    plan = SimpleNamespace(error=None, calls=0)

    def write(*arguments: Any) -> Any:
        scratch = next(
            value for value in arguments if isinstance(value, Path) and value.name.endswith(PARTIAL)
        )
        plan.calls += 1
        for number, (name, content) in enumerate(FILES.items()):
            if number == 2 and plan.error is not None:
                raise plan.error
            (scratch / name).write_bytes(content)
        return make_manifest()

    monkeypatch.setattr(pipeline, "_trace", lambda *_: None)
    monkeypatch.setattr(pipeline, "_write", write)
    return plan


def test_without_verification_the_manifest_says_so(
    handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path
) -> None:
    bundle = export(llama_folder, keep=0.3, output=tmp_path / "out", verify=False)
    assert bundle == tmp_path / "out"
    verification = read_manifest(bundle, check="hashes").verification
    assert verification.skipped == "it was not asked for"
    assert not verification.checks


def test_an_earlier_bundle_needs_force(handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path) -> None:
    earlier = write_bundle(tmp_path / "out", edgeprune_version="0.0.1")
    with pytest.raises(OutputError, match=r"exists already: .*`force=True`"):
        export(llama_folder, keep=0.3, output=earlier, verify=False)
    assert handmade.calls == 0
    assert read_manifest(earlier).edgeprune_version == "0.0.1"
    export(llama_folder, keep=0.3, output=earlier, verify=False, force=True)
    assert read_manifest(earlier).edgeprune_version == "0.1.0"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_models_own_folder_is_never_the_output(
    handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama_folder, tmp_path / "above" / "model"))
    before = {path: path.read_bytes() for path in model.iterdir()}
    (tmp_path / "link").symlink_to(model)
    for output in (model, tmp_path / "link", tmp_path / "above", model / "..", model / "." / ".." / "model"):
        with pytest.raises(InputError, match="is, or holds, the model's own folder"):
            export(model, keep=0.3, output=output, verify=False, force=True)
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    assert handmade.calls == 0


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_an_export_that_dies_leaves_the_earlier_bundle(
    error: BaseException, handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path
) -> None:
    earlier = write_bundle(tmp_path / "out", edgeprune_version="0.0.1")
    handmade.error = error
    with pytest.raises(type(error)):
        export(llama_folder, keep=0.3, output=earlier, verify=False, force=True)
    assert read_manifest(earlier, check="hashes").edgeprune_version == "0.0.1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_disagreement_writes_nothing(
    handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.verification import original as verify

    monkeypatch.setattr(verify, "compare", lambda *_: [verify.Check(name="logits", value=0.5, limit=1e-4)])
    message = r"does not agree with the original model: logits 0\.5 \(limit 0\.0001\).*Nothing was written"
    with pytest.raises(VerificationError, match=message):
        export(llama_folder, keep=0.3, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path) -> None:
    handmade.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"is full: free some space or choose another `output`"):
        export(llama_folder, keep=0.3, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_known_before_anything_is_traced(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(pipeline.graph, "trace_vision", None)
    with pytest.raises(OutputError, match=r"is full: 217 kB are needed and 1 kB are free, 216 kB too little"):
        export(llama_folder, keep=0.3, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be made"):
        export(llama_folder, keep=0.3, output=tmp_path / "file" / "out")


def test_a_bundle_is_named_after_model_method_and_keep(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()

    def name(model: str | Path, **options: Any) -> str:
        return str(default_output(model, ExportOptions(**{"keep": 0.3, **options})))

    assert name(tmp_path / "llava") == "llava-fastv-0.3"
    assert name(f"{tmp_path}/llava/") == "llava-fastv-0.3"
    assert name("llava-hf/llava-1.5-7b-hf", keep=0.25) == "llava-1.5-7b-hf-fastv-0.25"
    assert name("llava", method="himap", keep=("115/576", 0.1)) == "llava-himap-0.199653-0.1"
    assert name("llava-hf/llava-1.5-7b-hf", method="none") == "llava-1.5-7b-hf-unpruned"


@pytest.mark.parametrize("linked", [False, True])
def test_a_snapshot_of_the_hubs_cache_goes_by_its_hub_id(linked: bool, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--llava-hf--llava-1.5-7b-hf" / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    if linked:
        (tmp_path / "link").symlink_to(snapshot)
        snapshot = tmp_path / "link"
    assert str(default_output(snapshot, ExportOptions(keep=0.3))) == "llava-1.5-7b-hf-fastv-0.3"
    assert model_name(snapshot) == "llava-hf/llava-1.5-7b-hf"


def test_a_folders_name_is_made_fit_to_be_shown(tmp_path: Path) -> None:
    (folder := tmp_path / "two\nlines\x1b[31m").mkdir()
    assert model_name(folder) == "two_lines_[31m"


def test_folders_whose_names_the_libraries_cannot_take(llama_folder: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xe9en"))
    shutil.copytree(llama_folder, odd)
    with pytest.raises(
        InputError, match=r"the name of the model's folder, b'.*\\xe9en', is not UTF-8: expected"
    ):
        export(odd, output=tmp_path / "out")
    with pytest.raises(
        InputError, match=r"the name of the output, b'.*\\xe9en-out', is not UTF-8: .*rename it"
    ):
        export(llama_folder, output=f"{odd}-out")


@pytest.mark.parametrize(
    ("part", "changes", "field"),
    [
        ("text_config", {"max_position_embeddings": 10**30}, "max_positions"),
        ("text_config", {"intermediate_size": 1 << 21}, "intermediate_size"),
    ],
)
def test_a_value_that_no_bundle_can_hold_is_the_models_fault(
    part: str, changes: dict[str, Any], field: str, llama_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config[part].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=rf"has a value that no bundle can hold \({field}: "):
        export(folder, keep=0.3, output=tmp_path / "out")


def test_the_package_itself_exports(handmade: SimpleNamespace, llama_folder: Path, tmp_path: Path) -> None:
    assert edgeprune.export(llama_folder, keep=0.3, output=tmp_path / "out", verify=False).is_dir()


@pytest.mark.parametrize(
    "text", ["./missing", "/nowhere/at/all", "~/missing-model", "a/b/c", "file.txt", "./" + "x" * 300]
)
def test_a_path_that_is_no_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(InputError, match="is not a folder: expected a model folder"):
        resolve_model(text, Silent())


def test_a_hub_id_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("somebody/llava", Silent()) == tmp_path
    assert asked["name"] == "somebody/llava"
    assert not any("bin" in pattern or pattern in ("*", "*.py") for pattern in asked["allow_patterns"])


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"neither a folder here nor a model .*\(no connection\): check"):
        resolve_model("somebody/llava", Silent())


def test_bad_options_are_refused_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    for name in ("keep of 0", "unknown method", "opset too old", "unknown dtype", "unknown curve"):
        options, message = BAD_OPTIONS[name]
        with pytest.raises(InputError, match=message):
            export("somebody/llava", **{"keep": 0.3, **options})


@pytest.mark.slow
def test_a_head_of_its_own_beside_a_config_that_ties_is_exported(tmp_path: Path) -> None:
    """The comparison with Hugging Face's model, which takes the stored head, holds."""
    from safetensors.torch import load_file, save_file

    folder = save_llava(tmp_path / "model", "llama")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    (head,) = [name for name in tensors if name.endswith("lm_head.weight")]
    (embedding,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    save_file({**tensors, head: tensors[embedding].flip(0)}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    bundle = export(folder, keep=0.3, output=tmp_path / "out")
    assert all(check.holds for check in read_manifest(bundle).verification.checks)


def test_most_bytes_decide_the_dtype(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(10).half(), "b": torch.zeros(4)}, tmp_path / "model.safetensors")
    assert decision.stored_dtype(tmp_path) == torch.float16
    quantised = {"a": torch.zeros(99, dtype=torch.int32), "b": torch.zeros(99).to(torch.float8_e4m3fn)}
    save_file({**quantised, "c": torch.zeros(4).bfloat16()}, tmp_path / "model.safetensors")
    assert decision.stored_dtype(tmp_path) == torch.bfloat16
    save_file({"a": torch.zeros(10, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not stored as fp32, fp16 or bf16: export the model before"):
        decision.stored_dtype(tmp_path)


@pytest.mark.slow
def test_the_bundle_says_what_it_is(pruned: Exported) -> None:
    manifest = read_manifest(pruned.bundle, check="hashes")
    assert {entry.path for entry in manifest.files} | {"edgeprune.json"} == {
        path.name for path in pruned.bundle.iterdir()
    }
    assert manifest.edgeprune_version == edgeprune.__version__
    assert (manifest.opset, manifest.precision.compute, manifest.model.source) == (18, "fp32", "llama")
    assert manifest.curve == CURVE
    assert manifest.padding_mask.kind == "share"
    assert [(group.first, group.last) for group in manifest.cache_groups] == [(0, 1), (2, 3)]
    assert [(stage.layer, stage.keep) for stage in manifest.plan.stages] == [(2, 3000)]
    assert [one.value for one in manifest.plan.debias] == ["position", "padding"]
    text = llava_config().text_config
    assert (manifest.model.layers, manifest.model.kv_heads, manifest.model.head_dim) == (4, 2, 8)
    assert (manifest.model.vocab_size, manifest.model.max_positions) == (
        text.vocab_size,
        text.max_position_embeddings,
    )


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_the_bundle(pruned: Exported) -> None:
    places = [str(pruned.bundle.parents[1]), str(Path(edgeprune.__file__).parents[1]), "site-packages"]
    for path in pruned.bundle.iterdir():
        content = path.read_bytes()
        for place in places:
            assert place.encode() not in content, f"{path.name} names {place}"

    def values(part: Any) -> list[str]:
        if isinstance(part, dict):
            return [text for value in part.values() for text in values(value)]
        if isinstance(part, list):
            return [text for value in part for text in values(value)]
        return [part] if isinstance(part, str) else []

    found = values(json.loads((pruned.bundle / "edgeprune.json").read_text()))
    assert not [text for text in found if text.startswith("/")]


@pytest.mark.slow
def test_every_export_was_compared_or_says_why_not(
    pruned: Exported, half: Exported, brain: Exported, unpruned: Exported
) -> None:
    for exported in (pruned, half, unpruned):
        verification = exported.manifest.verification
        assert verification.skipped is None
        names = [check.name for check in verification.checks]
        assert "prefill logits, graph against torch" in names
        assert "decode logits, graph against torch" in names
        assert "visual embeddings" in names
        assert all(check.holds for check in verification.checks)
    assert "kept tokens, graph against numpy" in [c.name for c in pruned.manifest.verification.checks]
    assert "score, graph against Hugging Face" in [c.name for c in pruned.manifest.verification.checks]
    # Also of a bundle that prunes: what its stages keep is told when they run.
    for exported in (pruned, half, unpruned):
        assert "unpruned prefill logits, graph against Hugging Face" in [
            check.name for check in exported.manifest.verification.checks
        ]
    assert brain.manifest.verification.skipped == "ONNX Runtime's CPU kernels do not run bfloat16"


@pytest.mark.slow
def test_dtypes_decide_where_weights_lie(
    pruned: Exported, half: Exported, brain: Exported, unpruned: Exported
) -> None:
    def files(exported: Exported) -> list[str]:
        return sorted(path.name for path in exported.bundle.glob("*.safetensors"))

    assert files(pruned) == files(brain) == ["model.safetensors"]
    for exported in (pruned, brain):
        original = (exported.model / "model.safetensors").read_bytes()
        assert (exported.bundle / "model.safetensors").read_bytes() == original
    assert files(half) == [placing.CONVERTED]
    shards = [path.name for path in weights.checkpoint_files(unpruned.model)]
    assert files(unpruned) == shards
    assert len(shards) > 2
    assert (half.manifest.precision.compute, brain.manifest.precision.compute) == ("fp16", "bf16")
    assert half.manifest.model.text_model == "gemma"


@pytest.mark.slow
def test_weights_that_stay_as_they_are_can_be_linked(pruned: Exported, tmp_path: Path) -> None:
    file = "model.safetensors"
    for force in (False, True):  # also of a file that has two links already
        out = edgeprune.export(pruned.model, keep=0.5, output=tmp_path / "out", link=True, force=force)
    assert (out / file).samefile(pruned.model / file)
    assert (out / file).stat().st_nlink == 2
    assert read_manifest(out, check="hashes").verification.checks
    assert not (pruned.bundle / file).samefile(pruned.model / file)
    edgeprune.load(out)


def test_links_across_file_systems_are_refused_before_a_graph_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(graph, "trace_vision", None)
    model = save_llava(tmp_path / "model")
    with pytest.raises(InputError, match=r"cannot be linked .*expected both on one file system"):
        edgeprune.export(model, keep=0.5, output=tmp_path / "out", link=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
