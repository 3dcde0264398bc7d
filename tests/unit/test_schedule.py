import pytest

from doublebind.config import Cluster, Nodes
from doublebind.errors import ConfigError
from doublebind.schedule import Ask, Need, simulate

ONE = Ask(1, 0.0, None)


def cluster(
    count: int = 1, *, bandwidth: float = 1e9, driver: float = 0.0, **node: float
) -> Cluster:
    nodes = Nodes.model_validate({"count": count, "cpus": 2, "memory_gib": 8, **node})
    return Cluster(nodes=(nodes,), store_mib_per_second=bandwidth, driver_seconds=driver)


def cells(n: int, seconds: float = 10.0, mib: float = 0.0, gib: float = 0.0) -> list[Need]:
    return [Need("student", seconds, mib * 2**20, gib * 2**30)] * n


def test_cells_fill_slots_and_a_stage_waits_for_the_one_before() -> None:
    found = simulate([cells(4), cells(3)], cluster(), ONE)
    assert found["seconds"] == 20 + 20
    assert found["slots"] == 2
    assert found["used"] == pytest.approx(70 / 80)
    assert found["bottleneck"] == "cells"
    assert "cost" not in found


def test_the_makespan_is_within_grahams_bound() -> None:
    stage = [Need("student", float(1 + (7 * i) % 13), 0, 0) for i in range(50)]
    found = simulate([stage], cluster(count=4), ONE)
    lower = max(found["bounds"]["cells"], found["bounds"]["stages"])
    assert lower <= found["seconds"] <= found["bounds"]["cells"] + found["bounds"]["stages"]


def test_price_and_speed_count() -> None:
    found = simulate([cells(4)], cluster(speed=2.0, price_per_hour=3.0), ONE)
    assert found["seconds"] == 10
    assert found["cost"] == pytest.approx(3.0 * 10 / 3600)


@pytest.mark.parametrize(
    ("many", "how", "held_up_by"),
    [
        (cells(1000, seconds=0.1), {"count": 100, "driver": 0.01}, "driver"),
        (cells(1000, seconds=0.1, mib=10), {"count": 100, "bandwidth": 100}, "store"),
        (cells(3, seconds=100.0), {"count": 100}, "stages"),
    ],
)
def test_what_holds_it_up_is_named(many: list[Need], how: dict, held_up_by: str) -> None:
    found = simulate([many], cluster(**how), ONE)
    assert found["bottleneck"] == held_up_by
    assert found["seconds"] >= found["bounds"][held_up_by] * 0.999


def test_memory_and_gpus_limit_what_fits() -> None:
    assert simulate([cells(4, gib=5)], cluster(), ONE)["slots"] == 1
    assert simulate([cells(4)], cluster(gpus=1), Ask(1, 0.5, None))["slots"] == 2
    assert simulate([cells(4)], cluster(), Ask(1, 0.0, 4.0))["slots"] == 2
    with pytest.raises(ConfigError, match="none has 1 CPUs, 1 GPUs"):
        simulate([cells(1)], cluster(), Ask(1, 1.0, None))
