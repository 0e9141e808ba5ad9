"""A store on an S3 server that fails: what is there in the end is right, or one sentence says why it is not."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import s3fs
from numpy.typing import NDArray

from igkd import store
from igkd.base.errors import UserError
from igkd.base.storage import filesystem, list_names, read_file
from igkd.images.open import open_images
from igkd.store import Plan, Store, hold, lease, part_bytes, part_name
from tests.helpers.faults import Proxy
from tests.helpers.pictures import encoded, write_parquet
from tests.helpers.servers import free_port
from tests.helpers.stores import some_columns, tiny_plan

pytestmark = pytest.mark.slow  # real retries back off for seconds
URI = "s3://igkd/faulty/store"
AGAIN = "run the same command again, finished parts are kept"


@pytest.fixture
def proxy(s3: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, to which the environment points; the place of the store is empty."""
    for found in s3.list_objects_v2(Bucket="igkd", Prefix="faulty/").get("Contents", ()):
        s3.delete_object(Bucket="igkd", Key=found["Key"])
    with Proxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture(scope="module")
def plan() -> Plan:
    return tiny_plan(rows=6, rows_per_file=2, shape=(32, 32))


def expected(plan: Plan, part: int) -> bytes:
    ids = range(part * plan.rows_per_file, min(plan.rows, (part + 1) * plan.rows_per_file))
    return part_bytes(plan, some_columns(plan, ids, part), [])


def part_ids(plan: Plan, part: int) -> NDArray[np.int64]:
    return np.arange(part * plan.rows_per_file, min(plan.rows, (part + 1) * plan.rows_per_file))


def compute(plan: Plan) -> dict[str, Any]:
    """What a job does."""
    missing, entries = store.start(URI, plan), []
    for part in range(plan.parts):
        ids = part_ids(plan, part)
        if part in missing:
            entries.append(store.write_part(URI, plan, part, some_columns(plan, ids, part), []))
        else:
            entries.append(store.check_part(URI, plan, part, ids))
    return store.finish(URI, plan, entries)


def objects(s3: Any) -> dict[str, bytes]:
    """What is really in the bucket, asked for behind the proxy's back."""
    found = s3.list_objects_v2(Bucket="igkd", Prefix="faulty/").get("Contents", ())
    return {o["Key"].rsplit("/", 1)[-1]: s3.get_object(Bucket="igkd", Key=o["Key"])["Body"].read() for o in found}


def is_sound(s3: Any, plan: Plan) -> bool:
    """Whether every byte is as it would be without a fault, to a client of S3 and to igkd."""
    there = objects(s3)
    right = all(there[part_name(part)] == expected(plan, part) for part in range(plan.parts))
    names = {"plan.json", "manifest.json", *map(part_name, range(plan.parts))}
    return right and there.keys() == names and store.verify(URI) == [] and store.describe(URI)["images"] == plan.rows


def sentence(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    error = caught.value
    assert "\n" not in str(error) and "Traceback" not in str(error) and (error.__suppress_context__ or error.__context__ is None)
    return str(error)


PASSING: dict[str, Callable[[Proxy], None]] = {
    "InternalError on put": lambda p: p.error("InternalError", "PUT", "part-00001", 2),
    "ServiceUnavailable on put": lambda p: p.error("ServiceUnavailable", "PUT", "part-00001", 2),
    "SlowDown on put": lambda p: p.error("SlowDown", "PUT", "part-00001", 2),
    "InternalError on anything": lambda p: p.error("InternalError", times=2),
    "InternalError on get": lambda p: p.error("InternalError", "GET", "part-00002", 2),
    "slow": lambda p: p.delay(0.2),
    "cut in a put": lambda p: p.cut_request("PUT", "part-00001", 1),
    "cut in the puts of the plan and the manifest": lambda p: (p.cut_request("PUT", "plan", 1), p.cut_request("PUT", "manifest", 1))[0],
    "put but not answered": lambda p: p.no_answer("PUT", "part-00001", 1),
    "cut in an answer": lambda p: p.cut_answer("GET", "part-00002", 2),
    "cut in the answer of a list": lambda p: p.cut_answer("GET", "list-type", 1),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_noticed(proxy: Proxy, s3: Any, plan: Plan, fault: str) -> None:
    PASSING[fault](proxy)
    compute(plan)
    assert is_sound(s3, plan)
    assert any(seen.fault for seen in proxy.seen)


def test_verify_and_describe_get_over_a_fault(proxy: Proxy, plan: Plan) -> None:
    compute(plan)
    whole = store.describe(URI)
    proxy.cut_answer("GET", "part-00001", 1)
    proxy.error("ServiceUnavailable", "GET", "part-00000", 1)
    proxy.no_answer("HEAD", "part-00002", 1)
    assert store.describe(URI) == whole and {seen.fault for seen in proxy.seen} == {None, "cut answer", "error", "no answer"}
    proxy.heal()
    proxy.cut_answer("GET", "part-00001", 1)
    proxy.error("ServiceUnavailable", "GET", "part-00000", 1)
    assert store.verify(URI) == [] and {seen.fault for seen in proxy.seen} == {None, "cut answer", "error"}


LASTING: dict[str, tuple[Callable[[Proxy], None], str]] = {
    "InternalError": (lambda p: p.error("InternalError", "PUT", "part-00001"), rf"busy or failing .*\(InternalError\); {AGAIN}"),
    "SlowDown": (lambda p: p.error("SlowDown", "PUT", "part-00001"), rf"busy or failing .*\(SlowDown\); {AGAIN}"),
    "cut": (lambda p: p.cut_request("PUT", "part-00001"), rf"the connection to http://127.0.0.1:\d+ broke .*; {AGAIN}"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_stays_is_one_sentence_and_the_same_call_goes_on(proxy: Proxy, s3: Any, plan: Plan, fault: str) -> None:
    inject, words = LASTING[fault]
    inject(proxy)
    with pytest.raises(UserError, match=rf"^cannot write igkd/faulty/store/part-00001.parquet: .*{words}$"):
        compute(plan)
    faults = sum(seen.fault is not None for seen in proxy.seen)
    assert 1 < faults <= 40, "tried again, but not for ever"
    assert objects(s3).keys() == {"plan.json", "part-00000.parquet"}, "no half object"
    proxy.heal()
    assert store.start(URI, plan) == [1, 2]
    compute(plan)
    assert not any(seen.method == "PUT" and "part-00000" in seen.path for seen in proxy.seen)
    assert is_sound(s3, plan)


def test_readers_name_a_lasting_fault_and_do_not_call_it_damage(proxy: Proxy, plan: Plan) -> None:
    compute(plan)
    proxy.cut_answer("GET", "part-00001")
    words = f"the connection broke each time it was tried; {AGAIN}"
    for act in (lambda: store.describe(URI), lambda: Store.open(URI).samples(), lambda: store.check_part(URI, plan, 1, part_ids(plan, 1))):
        assert sentence(act) == f"igkd/faulty/store/part-00001.parquet cannot be read: {words}"
    assert store.verify(URI) == [f"igkd/faulty/store/part-00001.parquet cannot be read: {words}"]


REFUSALS = {
    "InvalidAccessKeyId": "the server does not know the access key; correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get new credentials",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set it by NTP",
    "AccessDenied": "access denied: these credentials may not read here (s3:GetObject, s3:ListBucket); have it permitted",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_one_sentence_whatever_is_done(proxy: Proxy, plan: Plan, code: str) -> None:
    compute(plan)
    held: dict[str, Callable[[], object]] = {
        "open": lambda: Store.open(URI),
        "verify": lambda: store.verify(URI),
        "describe": lambda: store.describe(URI),
        "start": lambda: store.start(URI, plan),
        "check a part": lambda: store.check_part(URI, plan, 0, part_ids(plan, 0)),
        "hold": lambda: hold(URI).__enter__(),
        "images": lambda: open_images("parquet:s3://igkd/faulty"),
    }
    proxy.error(code)
    for name, act in held.items():
        said = sentence(act)
        assert "cannot be read" in said and REFUSALS[code] in said, (name, said)
    said = sentence(lambda: store.write_part(URI, plan, 0, some_columns(plan, range(2)), []))
    assert said.startswith("cannot write igkd/faulty/store/part-00000.parquet: ")
    assert ("may not write here (s3:PutObject" if code == "AccessDenied" else REFUSALS[code]) in said
    proxy.heal()
    proxy.error(code, "HEAD")  # answered without a code
    assert "the server refused without a reason (40" in sentence(lambda: store.describe(URI))


def test_a_bucket_that_may_only_be_read(proxy: Proxy, s3: Any, plan: Plan) -> None:
    proxy.error("AccessDenied", "PUT")
    for act in (lambda: store.start(URI, plan), lambda: hold(URI).__enter__()):
        assert "access denied: these credentials may not write here" in sentence(act)
    assert objects(s3) == {}
    proxy.heal()
    compute(plan)
    proxy.error("AccessDenied", "PUT")
    assert store.sound_manifest(URI, plan) is not None and store.start(URI, plan) == [] and is_sound(s3, plan)


def test_a_bucket_that_does_not_exist(proxy: Proxy, plan: Plan) -> None:
    missing, columns = "s3://no-such-bucket/store", some_columns(plan, range(2))
    for act in (
        lambda: store.start(missing, plan),
        lambda: store.write_part(missing, plan, 0, columns, []),
        lambda: Store.open(missing),
        lambda: hold(missing).__enter__(),
        lambda: open_images("parquet:s3://no-such-bucket/images"),
        lambda: open_images("parquet:s3://no-such-bucket"),
    ):
        said = sentence(act)
        assert "no-such-bucket" in said and said.endswith("the bucket does not exist; create it, or correct its name"), said
    assert sentence(lambda: open_images("parquet:s3://igkd/nothing")) == "parquet:s3://igkd/nothing: nothing is there"


def test_no_server(s3: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for address in (nowhere, "http://no-such-host.invalid:9000"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        words = f"no server answers at {address}; check AWS_ENDPOINT_URL and the network"
        assert sentence(lambda: store.start(URI, plan)) == f"igkd/faulty/store cannot be read: {words}"


def test_an_environment_that_cannot_be_right(s3: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        return sentence(lambda: Store.open(URI))

    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", "nonsense")
        assert said() == f"'{URI}' cannot be opened: Invalid endpoint: nonsense; check AWS_ENDPOINT_URL"
    with monkeypatch.context() as changed:
        changed.setenv("AWS_PROFILE", "nobody")
        assert said().startswith(f"'{URI}' cannot be opened: The config profile (nobody) could not be found; check AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in said()


def test_a_lease_gets_over_a_fault_and_a_lasting_one_is_told(proxy: Proxy, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.01)
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    proxy.error("InternalError", "PUT", "lease", 1)
    proxy.cut_answer("GET", "lease", 1)
    with hold(URI) as held:
        seen = len(proxy.seen)
        while len(proxy.seen) < seen + 4:
            held.check()
            time.sleep(0.01)
        monkeypatch.setattr(lease, "PATIENCE_S", 0.0)
        proxy.error("AccessDenied", "PUT", "lease")
        while not held.lost:
            time.sleep(0.01)
        assert "could not write its lease for long: cannot write igkd/faulty/store/lease.json: access denied" in sentence(held.check)
    assert objects(s3) == {}


def test_describe_reads_little_and_verify_each_part_once(proxy: Proxy, s3: Any) -> None:
    plan = tiny_plan(rows=8 * 200, rows_per_file=200, shape=(32, 32))
    compute(plan)
    size = sum(len(data) for data in objects(s3).values())
    assert size > 8 * 200 * 32 * 32 * 2
    proxy.heal()
    assert store.describe(URI)["images"] == 1600
    described = sum(seen.sent for seen in proxy.seen)
    print(f"describe: {described} of {size} bytes in {len(proxy.seen)} requests")
    assert described < size / 10
    proxy.heal()
    assert store.verify(URI) == []
    gets = [seen for seen in proxy.seen if "part-" in seen.path]
    print(f"verify: {sum(seen.sent for seen in proxy.seen)} of {size} bytes in {len(proxy.seen)} requests")
    assert sorted(seen.path.rsplit("/", 1)[-1].split("?")[0] for seen in gets) == [part_name(part) for part in range(8)]
    proxy.heal()
    assert np.array_equal(Store.open(URI).column("image_id"), np.arange(1600))
    assert sum(seen.sent for seen in proxy.seen) < size / 10


def test_labels_of_images_on_s3_are_read_without_the_images(proxy: Proxy, s3: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    pictures: list[bytes | None] = [encoded(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(100)]
    path = write_parquet(tmp_path / "train-0.parquet", pictures, [i % 3 for i in range(100)], ["a", "b", "c"], row_group=50)
    s3.put_object(Bucket="igkd", Key="faulty/images/train-0.parquet", Body=path.read_bytes())
    for spec in ("parquet:s3://igkd/faulty/images", "parquet:s3://igkd/faulty/images/train-0.parquet"):
        source = open_images(spec)
        proxy.heal()
        assert source.labels("train").tolist() == [i % 3 for i in range(100)]
        assert sum(seen.sent for seen in proxy.seen) < path.stat().st_size / 5
        assert [record.image for record in source.read("train", [3, 99])] == [pictures[3], pictures[99]]


def test_the_proxy_itself(proxy: Proxy) -> None:
    """Without a fault it passes everything on, and what it counts is what went through."""
    fs, root = filesystem("s3://igkd/faulty")
    data = np.random.default_rng(1).bytes(300_000)
    fs.pipe_file(f"{root}/x", data)
    assert read_file(fs, f"{root}/x") == data and list_names(fs, root) == {"x"}
    fs.rm_file(f"{root}/x")
    with pytest.raises(FileNotFoundError):
        read_file(fs, f"{root}/x")
    assert [(seen.method, seen.received) for seen in proxy.seen if seen.received][0] == ("PUT", 300_000)
    assert [seen.sent for seen in proxy.seen if seen.method == "GET"][0] == 300_000
