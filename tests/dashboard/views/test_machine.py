"""The machine page."""

import yaml

from tests.dashboard.conftest import Opened
from tuner.store.database import open_database
from tuner.store.repository import Store


def test_machine_model_versions_and_files_are_from_the_store(opened: Opened):
    app = opened("machine")
    machine, model, versions = (one.value for one in app.dataframe)
    assert "fingerprint" in machine["what"].tolist()
    assert model.set_index("what").loc["family", "is"] == "fake_moe"
    assert "torch" in versions["package"].tolist()


def test_a_file_that_was_written_states_its_provenance(opened: Opened, own_storage: str):
    database = open_database(own_storage)
    store = Store(database)
    study = store.study("small")
    trial = store.trials(study)[0]
    stated = {"provenance": {"commit": "abc", "versions": {"torch": "2.13"}}}
    store.add_export(study.id, trial.id, "knee", "a.yaml", yaml.safe_dump(stated))
    store.add_export(study.id, trial.id, "knee", "a.sh", "exec 'vllm\n")
    database.close()
    files = opened("machine", own_storage).dataframe[-1].value
    assert files["file"].tolist() == ["a.sh", "a.yaml"]
    assert files["commit"].tolist() == ["-", "abc"]
    assert files["versions"].tolist() == ["", "torch 2.13"]
