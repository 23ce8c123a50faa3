"""A project that a stranger sends writes, moves and deletes nothing outside of itself."""

import ast
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dmx.errors import RunError
from dmx.paths import PlaceError, open_own, within
from dmx.tracking.folder import run_folder
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.reap import reap, sync
from tests.faults.world import World


@pytest.fixture
def sent(world: World, tmp_path: Path) -> World:
    """A copy of a project, as a stranger sends it, beside a folder of documents."""
    root = tmp_path / "sent"
    shutil.copytree(world.root, root, ignore=shutil.ignore_patterns("bad", "cache"))
    (tmp_path / "documents/checkpoints/step_000000001").mkdir(parents=True)
    for name in ("letter.txt", "picture.png", "checkpoints/step_000000001/letter.txt"):
        (tmp_path / "documents" / name).write_text("mine")
    copy = World(root)
    copy.run_id = world.run_id
    return copy


def documents(sent: World) -> dict[str, str]:
    folder = sent.root.parent / "documents"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def outside(sent: World) -> set[str]:
    """Return what lies beside the project, but for the documents."""
    return {path.name for path in sent.root.parent.iterdir()} - {"sent", "documents", "facts"}


def executed(sent: World, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(sent.database)) as connection, connection:
        connection.execute(statement, values)


def running(sent: World) -> None:
    """Let the run look as if its process had been killed."""
    executed(sent, "update runs set status = 'RUNNING' where run_uuid = ?", sent.run_id)
    executed(sent, "update tags set value = '1' where run_uuid = ? and key = 'dmx.pid'", sent.run_id)
    executed(sent, "update tags set value = '1' where run_uuid = ? and key = 'dmx.process_started'", sent.run_id)


def told(sent: World, entry: object) -> None:
    with (sent.root / "mlruns/local" / sent.run_id / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(entry) + "\n")


ENTRIES: dict[str, dict[str, object]] = {
    "delete absolute": {"do": "delete", "path": "{documents}"},
    "delete climbing": {"do": "delete", "path": "checkpoints/../../../../../../../documents"},
    "delete a checkpoint elsewhere": {"do": "delete", "path": "{documents}/checkpoints/step_000000001"},
    "delete the settings": {"do": "delete", "path": "config.yaml"},
    "delete everything": {"do": "delete", "path": "."},
    "image": {"do": "image", "source": "{documents}/picture.png", "key": "a", "step": 1, "time": 1},
    "image climbing": {"do": "image", "source": "../../../../documents/picture.png", "key": "a", "step": 1, "time": 1},
    "upload": {"do": "upload", "path": "{documents}/letter.txt"},
    "upload climbing": {"do": "upload", "path": "../../../../../../documents/letter.txt"},
    "model": {"do": "checkpoints", "models": [{"path": "x' or name != '", "step": 1, "names": []}]},
    "no path": {"do": "delete", "path": 5},
    "nothing": {"do": "delete"},
    "surrogate": {"do": "upload", "path": "\ud800"},
    "zero": {"do": "upload", "path": "a\0b"},
    "no entry": {"path": "x"},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_journal_reaches_nothing_outside_of_its_run(sent: World, name: str) -> None:
    place = str(sent.root.parent / "documents")
    entry = {key: value.replace("{documents}", place) if isinstance(value, str) else value
             for key, value in ENTRIES[name].items()}  # fmt: skip
    running(sent)
    told(sent, {"do": "tags", "values": {"before": "1"}})
    told(sent, entry)
    before = documents(sent)
    store = open_store(root=sent.root)
    folder = store.local_artifacts(sent.run_id)
    assert folder is not None
    own = sorted(folder.rglob("*"))
    for work in (
        lambda: reap(store, root=sent.root, notify=str),
        lambda: sync(store, store.get_run(sent.run_id), root=sent.root, notify=str),
    ):
        with pytest.raises(RunError, match="journal"):
            work()
    assert documents(sent) == before
    assert sorted(folder.rglob("*")) == own
    # Not even what came before it was carried out.
    assert "before" not in store.get_run(sent.run_id).tags
    done = sent.call("runs", "reap")
    assert done.code == 2, done.err + done.crash
    assert done.said.count("Error: ") == 1


@pytest.mark.parametrize(
    "form", ["{place}", "file://{place}", "{root}/mlruns/artifacts/../../../documents", "relative"]
)
def test_a_store_names_no_folder_but_its_own(sent: World, form: str) -> None:
    place = sent.root.parent / "documents"
    uri = form.format(place=place, root=sent.root) if form != "relative" else "../documents"
    executed(sent, "update runs set artifact_uri = ? where run_uuid = ?", uri, sent.run_id)
    running(sent)
    told(sent, {"do": "delete", "path": "checkpoints/step_000000001"})
    before = documents(sent)
    for words in (
        ("runs", "reap"),
        ("runs", "sync", sent.run_id),
        ("resume", sent.run_id),
        ("evaluate", "--from-run", sent.run_id),
        ("export", sent.run_id, "-o", str(sent.root / "x.safetensors")),
    ):
        done = sent.call(*words)
        assert done.code == 2, (words, done.out, done.err, done.crash)
        assert "is not inside of" in done.said or "no path that dmx writes" in done.said, done.said
    assert documents(sent) == before
    assert not outside(sent)


@pytest.mark.parametrize("form", ["/{documents}/x.txt", "../../../../../../documents/x.txt", "a/../../x", "", "."])
def test_a_note_of_a_creation_writes_into_its_run_only(sent: World, form: str) -> None:
    store = open_store(root=sent.root)
    place = form.replace("/{documents}", str(sent.root.parent / "documents"))
    content = {"store": store.uri, "params": {}, "texts": {"config.yaml": "changed", place: "bad"}}
    notes = sent.root / "mlruns/creating"
    notes.mkdir(exist_ok=True)
    lines = [json.dumps({"content": content}), json.dumps({"run": sent.run_id, "open": -1})]
    (notes / "abc.jsonl").write_text("\n".join(lines) + "\n")
    before = documents(sent)
    folder = store.local_artifacts(sent.run_id)
    assert folder is not None
    settings = (folder / "config.yaml").read_text()
    done = sent.call("runs", "reap")
    assert done.code == 2, done.err + done.crash
    assert "abc.jsonl' names" in done.said
    done = sent.call("train", sent.root / "balls.yaml")
    assert done.code == 0, done.err + done.crash
    assert "abc.jsonl' names" in done.said
    assert documents(sent) == before
    assert (folder / "config.yaml").read_text() == settings
    assert not outside(sent)


@pytest.mark.parametrize("text", ["[]", "5", '{"content": 5}', '{"content": {"store": 1, "params": 2, "texts": 3}}'])
def test_a_note_that_is_none_is_removed(sent: World, text: str) -> None:
    notes = sent.root / "mlruns/creating"
    notes.mkdir(exist_ok=True)
    (notes / "abc.jsonl").write_text(text + "\n" + '{"open": "many"}\n')
    assert sent.call("runs", "reap").code == 0
    assert not list(notes.glob("*.jsonl"))


def linked(link: Path, target: Path) -> None:
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


LINKS = (
    "mlruns/creating",
    "mlruns/creating/lock",
    "mlruns/local",
    "mlruns/local/{run}",
    "mlruns/local/{run}/lock",
    "mlruns/local/{run}/journal.jsonl",
    "mlruns/local/{run}/delivered",
    "mlruns/.mlflow.db.lock",
    "mlruns/.gitignore",
    "mlruns/mlflow.db",
    "mlruns/artifacts",
    "{artifacts}/log.txt",
    "{artifacts}/history",
    "{artifacts}/history/steps.csv",
    "{artifacts}/checkpoints",
    "{artifacts}/checkpoints/step_000000001",
)


@pytest.mark.parametrize("place", LINKS)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_symbolic_link_is_not_followed(sent: World, place: str, dangling: bool) -> None:
    store = open_store(root=sent.root)
    artifacts = store.local_artifacts(sent.run_id)
    assert artifacts is not None
    link = sent.root / place.format(run=sent.run_id, artifacts=artifacts.relative_to(sent.root))
    folder = not link.suffix and link.name not in ("lock", "delivered", ".gitignore")
    mine = sent.root.parent / "documents" / ("" if folder else "letter.txt")
    linked(link, sent.root.parent / "documents/new" if dangling else mine)
    running(sent) if place != "mlruns/mlflow.db" else None
    before = documents(sent)
    for words in (("runs", "reap"), ("resume", sent.run_id), ("train", str(sent.root / "balls.yaml"))):
        done = sent.call(*words)
        assert not done.crash, (words, done.crash)
        assert documents(sent) == before, words
        assert not (sent.root.parent / "documents/new").exists(), words
    assert not outside(sent)


def test_prepared_cases_go_through_no_link(sent: World) -> None:
    linked(sent.root / "mlruns/cache", sent.root.parent / "documents")
    before = documents(sent)
    done = sent.call("train", sent.root / "balls.yaml")
    assert done.code == 2
    assert "symbolic link" in done.said
    assert documents(sent) == before


def test_the_folder_of_runs_itself_may_be_a_link(sent: World) -> None:
    real = sent.root.parent / "scratch"
    (sent.root / "mlruns").rename(real)
    (sent.root / "mlruns").symlink_to(real)
    # A database in a folder of any name is found by its address; the project's own is always in mlruns.
    done = sent.call("runs", "show", sent.run_id)
    assert done.code == 0, done.err + done.crash


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("a/b.txt", ""),
        ("{owner}/a", ""),
        ("../a", "no path"),
        ("a/../b", "no path"),
        ("", "no path"),
        (".", "not inside"),
        ("{owner}", "not inside"),
        ("/etc/passwd", "not inside"),
        ("{owner}x/a", "not inside"),
        ("link/a", "symbolic link"),
        ("{owner}/link", "symbolic link"),
        ("a" * 5000, "no path here"),
        (None, "no path"),
        (5, "no path"),
        (["a"], "no path"),
    ],
)
def test_a_place_lies_within_its_owner(tmp_path: Path, place: object, says: str) -> None:
    owner = tmp_path / "owner"
    owner.mkdir()
    (owner / "link").symlink_to(tmp_path)
    given = place.format(owner=owner) if isinstance(place, str) else place
    if not says:
        assert within(owner, given, what="It").is_relative_to(owner)
        return
    with pytest.raises(PlaceError, match=says):
        within(owner, given, what="It")


def test_an_owner_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real/a").mkdir(parents=True)
    (tmp_path / "way").symlink_to(tmp_path / "real")
    assert within(tmp_path / "way", tmp_path / "real/a", what="It") == tmp_path / "way/a"
    assert within(tmp_path / "real", tmp_path / "way/a", what="It") == tmp_path / "real/a"


@pytest.mark.parametrize("mode", ["w", "a", "a+", "ab"])
def test_what_dmx_writes_goes_through_no_link(tmp_path: Path, mode: str) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(PlaceError, match="symbolic link"):
        open_own(tmp_path / "lock", mode)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_of_a_run_is_made_only_when_it_is_worked_on(sent: World) -> None:
    shutil.rmtree(sent.root / "mlruns/local")
    store = open_store(root=sent.root)
    folder = run_folder(store, sent.run_id, sent.root)
    assert not folder.path.exists()
    folder.lock()
    assert folder.path.is_dir()
    folder.unlock()


ROOT = Path(__file__).resolve().parents[2] / "dmx"
# Where data of a store, a journal, a note, a checkpoint or a plan comes in.
WATCHED = (
    *sorted((ROOT / "tracking").glob("*.py")),
    ROOT / "training/checkpoint.py",
    *(ROOT / f"workflows/{name}.py" for name in ("identity", "received", "restart", "resume", "source", "trained")),
)
# Ways to a path that were looked at one by one: names that dmx makes itself, what a person has said, what `within` or a
# pattern has let through, and what is handed to `within` next.
LOOKED_AT = {
    "checkpoints": ("parent / f'step_{global_step:09d}'", "parent / f'{path.name}_epoch_{epoch:04d}'", "target / path"),
    "creation": ("_notes_folder(mlruns) / f'{uuid.uuid4().hex}.jsonl'", "Path(database.name)"),
    "delivery": ("Path(entry['path'])",),
    "embedded": (
        "Path(unquote(text.partition('?')[0]))",
        "unquote(text.partition('?')[0])",
        "Path(text)",
        "path.parent.resolve() / path.name",
        "folder / f'.{database.name}.lock'",
        "Path(mkdtemp(dir=_temporary().name))",
        "_alias(database.parent) / database.name",
    ),
    "environment": ("Path(argument)", "Path(sys.argv[0])"),
    "files": ("Path(folder)",),
    "folder": ("(folder or path.parent) / f'.{path.name}{_DRAFT}'",),
    "location": (
        "Path(location)",
        "Path(unquote(parts.path))",
        "unquote(parts.path)",
        "local_path(location)",
        "folder / name",
    ),
    "mlflow_reader": (
        "Path(self._client.download_artifacts(run_id, path, str(target)))",
        "local_path(experiment.artifact_location)",
        "local_path(location)",
    ),
    "mlflow_store": (
        "outgoing / f'{name}+compressed.webp'",
        "outgoing / f'{name}.png'",
        "outgoing / f'{name}{suffix}'",
        "Path(model.path)",
        "Path(path)",
    ),
    "privacy": ("folder / f'salt.{secrets.token_hex(4)}'",),
    "recorder": ("self._run.files / path",),
    "relocate": ("folder / 'artifacts' / path.name", "local_path(location or '')"),
    "session": ("self.files / path", "self.folder.path / source"),
    "checkpoint": ("folder / name", "partial / name"),
    "received": ("tensor.received / plan.parameters",),
    "restart": ("session.root / section.file",),
    "resume": ("Path(str(value))",),
    "source": ("Path(named)",),
    "trained": ("Path(folder)",),
}


def ways(tree: ast.AST) -> set[str]:
    """Return each expression that makes a path of something that is not written in the code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            fixed = isinstance(node.right, ast.Constant) or ast.unparse(node.right).isupper()
            if not fixed:
                found.add(ast.unparse(node))
        if isinstance(node, ast.Call) and node.args and not isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func)
            if name in ("Path", "local_path", "unquote", "url2pathname") or name.endswith((".joinpath", "path.join")):
                found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", WATCHED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_data_names_becomes_a_path_in_one_way(file: Path) -> None:
    new = ways(ast.parse(file.read_text(encoding="utf-8"))) - set(LOOKED_AT.get(file.stem, ()))
    assert not new, f"Let dmx.paths.within say that these lie where they may, or add them to LOOKED_AT: {sorted(new)}"


@pytest.mark.parametrize("code", ["a / entry['path']", "Path(tags['x'])", "local_path(uri)", "folder.joinpath(name)"])
def test_another_way_from_data_to_a_path_is_noticed(code: str) -> None:
    assert ways(ast.parse(code)) == {code}


def test_a_project_that_can_only_be_read_is_shown_and_not_changed(sent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    home = str(sent.root / "mlruns")
    monkeypatch.setattr(
        "dmx.tracking.embedded.access",
        lambda path, mode: not (mode == os.W_OK and str(path).startswith(home)) and real(path, mode),
    )
    before = {path: path.read_bytes() for path in (sent.root / "mlruns").rglob("*") if path.is_file()}
    for words in (
        ("runs", "list"),
        ("runs", "show", sent.run_id),
        ("runs", "compare", sent.run_id, sent.run_id),
        ("runs", "lineage", sent.run_id),
    ):
        done = sent.call(*words)
        assert done.code == 0, (words, done.err, done.crash)
        assert sent.run_id[:8] in done.out or "train" in done.out
    store = open_store(root=sent.root)
    with pytest.raises(RunError, match="read-only"):
        store.set_tags(sent.run_id, {"a": "b"})
    assert {path: path.read_bytes() for path in (sent.root / "mlruns").rglob("*") if path.is_file()} == before


def test_facts_of_who_has_no_home_are_kept_while_the_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmx.cohort.cache import default_cache_dir

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DMX_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert default_cache_dir().is_dir()
    assert default_cache_dir() == default_cache_dir()


@pytest.mark.parametrize("text", ["", "not hexadecimal"])
def test_a_damaged_secret_of_pseudonyms_is_named(tmp_path: Path, text: str) -> None:
    from dmx.tracking.privacy import store_salt

    (tmp_path / "salt").write_text(text or "xyz")
    with pytest.raises(RunError, match="salt' is damaged"):
        store_salt(tmp_path)
