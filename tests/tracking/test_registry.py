import mlflow_samples as samples
import pytest
from mlflow.exceptions import MlflowException

from lora_select.errors import WorldError
from lora_select.tracking import names, registry, runs


@pytest.fixture
def run_id(store):
    return runs.find_or_create_parent(store, "key", name="tweets")


def test_the_same_adapter_is_registered_once(store, folder, run_id):
    adapter = samples.adapter(folder)
    first = registry.register(store, "tweets", run_id, adapter, folder, tags={names.DECISION_SHA256: samples.SHA})
    again = registry.register(store, "tweets", "another run", adapter, folder)
    assert again == first
    assert first.version == "1"
    assert store.client.get_model_version("tweets", "1").tags[names.DECISION_SHA256] == samples.SHA
    other = samples.adapter(folder, "dora")
    assert registry.register(store, "tweets", run_id, other, folder).version == "2"


@pytest.mark.parametrize("call", ["create_registered_model", "log_artifacts", "create_model_version"])
@pytest.mark.parametrize("arrives", [False, True])
def test_killed_at_any_point_and_done_again(store, folder, run_id, monkeypatch, call, arrives):
    adapter = samples.adapter(folder)
    real = getattr(store.client, call)

    def die(*args, **arguments):
        if arrives:
            real(*args, **arguments)
        raise MlflowException("connection refused")

    monkeypatch.setattr(store.client, call, die)
    with pytest.raises(WorldError, match="cannot register tweets"):
        registry.register(store, "tweets", run_id, adapter, folder)
    monkeypatch.setattr(store.client, call, real)
    assert registry.register(store, "tweets", run_id, adapter, folder).version == "1"
    assert len(store.client.search_model_versions("name = 'tweets'")) == 1


def test_aliases_move_and_tell_where_they_were(store, folder, run_id):
    assert registry.by_alias(store, "tweets") is None
    one = registry.register(store, "tweets", run_id, samples.adapter(folder), folder)
    assert registry.by_alias(store, "tweets") is None
    assert registry.set_alias(store, "tweets", one.version, names.CHAMPION, tags={"gate": "passed"}) is None
    assert registry.set_alias(store, "tweets", one.version, names.CHAMPION) == "1"
    two = registry.register(store, "tweets", run_id, samples.adapter(folder, "dora"), folder)
    registry.set_alias(store, "tweets", two.version, names.CHALLENGER)
    assert registry.set_alias(store, "tweets", two.version, names.CHAMPION) == "1"
    champion = registry.by_alias(store, "tweets")
    assert champion is not None
    assert champion.version == "2"
    assert set(champion.aliases) == {names.CHAMPION, names.CHALLENGER}
    assert store.client.get_model_version("tweets", "1").tags["gate"] == "passed"


def test_the_champion_comes_back_byte_for_byte(store, folder, run_id, tmp_path):
    adapter = samples.adapter(folder)
    version = registry.register(store, "tweets", run_id, adapter, folder)
    registry.set_alias(store, "tweets", version.version, names.CHAMPION)
    champion = registry.by_alias(store, "tweets")
    assert champion is not None
    got = registry.download(store, champion, tmp_path / "champion")
    for ref in adapter.files:
        assert (got / ref.path.removeprefix("adapter/")).read_bytes() == (folder / ref.path).read_bytes()


def test_a_changed_artifact_is_not_taken_for_the_champion(store, folder, run_id, tmp_path):
    version = registry.register(store, "tweets", run_id, samples.adapter(folder), folder)
    place = store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    with open(f"{place}/adapter/adapter_model.safetensors", "a") as stream:
        stream.write("x")
    with pytest.raises(WorldError, match=r"adapter_model\.safetensors of tweets version 1 is not what was registered"):
        registry.download(store, version, tmp_path / "champion")


def test_a_name_with_a_quote(store, folder, run_id):
    adapter = samples.adapter(folder)
    first = registry.register(store, "anna's tweets", run_id, adapter, folder)
    assert registry.register(store, "anna's tweets", run_id, adapter, folder) == first
