"""The host's side of the memory equation."""

import pytest

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.memory.host import host_shares
from engine.memory.plan import resolve
from engine.memory.records import all_records_bytes
from tests.engine.memory.test_plan import make_facts

GPU = {"device.name": "cuda:0", "precision.bits": 4}


def host_bytes(**settings: object) -> int:
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    found = resolve(EngineConfig().overlay({**GPU, **paths}), make_facts()).config.host.bytes
    assert isinstance(found, int)
    return found


def test_auto_is_what_all_records_take():
    config, _ = resolve(EngineConfig().overlay(GPU), make_facts())
    assert config.host.bytes == sum(all_records_bytes(config, make_facts()).values())
    assert host_bytes(host__bytes="50%") == config.host.bytes // 2


def test_auto_is_at_most_what_the_ram_budget_leaves():
    assert host_bytes(budget__ram_bytes=1_000_000) == 1_000_000
    assert host_bytes(budget__ram_bytes=1 << 50) == host_bytes()


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_there_is_none_where_device_and_host_are_one_memory(device: str):
    assert host_bytes(device__name=device) == 0
    assert host_bytes(device__name=device, host__bytes="30%") == 0


def test_a_number_beyond_the_ram_budget_is_refused():
    with pytest.raises(InfeasibleError, match="lower them or raise --ram"):
        host_bytes(host__bytes=2_000_000, budget__ram_bytes=1_000_000)


def test_both_precisions_of_a_run_have_their_share():
    settings = {"precision.scheme": "gate_threshold", "precision.bits": 8, "precision.low_bits": 4}
    config, _ = resolve(EngineConfig().overlay({**GPU, **settings}), make_facts())
    records = all_records_bytes(config, make_facts())
    assert set(records) == {8, 4}
    shares = host_shares(records, int(config.host.bytes))
    assert shares == records
    half = host_shares(records, int(config.host.bytes) // 2)
    assert half[8] / half[4] == pytest.approx(records[8] / records[4], rel=1e-3)
