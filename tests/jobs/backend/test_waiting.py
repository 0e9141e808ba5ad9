import pytest
import ray

from jobs.backend.waiting import say_if_waiting, waits


def test_a_job_waits_only_for_what_others_hold() -> None:
    there = {"CPU": 4.0, "GPU": 1.0}
    assert waits({"CPU": 2}, {"CPU": 1.0}, there) == "waits for 2 processors: 3 of the cluster's 4 are held by other jobs"
    assert waits({"CPU": 0.5, "GPU": 1}, {"CPU": 4.0}, there) == "waits for 1 GPU: 1 of the cluster's 1 are held by other jobs"
    assert waits({"CPU": 4, "GPU": 1}, there, there) == "" == waits({}, {}, there)
    assert waits({"CPU": 5}, {"CPU": 1.0}, there) == ""  # nodes that an autoscaler may add: waiting is no matter of other jobs


def test_processors_that_another_job_holds_are_seen(cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    say_if_waiting({"CPU": 0.5})
    assert capsys.readouterr().out == ""
    total = ray.cluster_resources()["CPU"]
    group = ray.util.placement_group([{"CPU": total}])
    try:
        ray.get(group.ready())
        for _ in range(100):
            say_if_waiting({"CPU": 1})
            if said := capsys.readouterr().out:
                break
            ray.wait([group.ready()], timeout=1)
        assert said.startswith("waits for 1 processor: ")
    finally:
        ray.util.remove_placement_group(group)
