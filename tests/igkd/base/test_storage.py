"""S3 is spoken over TLS that is verified, unless the user says http; credentials come from the environment alone."""

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from igkd.base.errors import UserError, run_cli
from igkd.base.storage import filesystem, read_file
from igkd.store.__main__ import main


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Credentials, and nothing else that could say where S3 is or how it is reached."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    given = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-central-1"}
    for name, value in given.items() | {("AWS_CONFIG_FILE", "/dev/null"), ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")}:
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


class Nothing(BaseHTTPRequestHandler):
    """A server of S3's kind that has no objects."""

    def do_GET(self) -> None:
        self.server.asked = True  # type: ignore[attr-defined]
        body = b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>no</Message></Error>'
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A server on loopback with TLS, whose certificate, in tmp_path/certificate.pem, nobody vouches for."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    server.asked = False  # type: ignore[attr-defined]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_tls_is_the_default(environment: pytest.MonkeyPatch) -> None:
    fs, path = filesystem("s3://bucket/store")
    assert fs.s3.meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com" and path == "bucket/store"


def test_a_certificate_that_nobody_vouches_for_is_refused(
    environment: pytest.MonkeyPatch, impostor: ThreadingHTTPServer, tmp_path: Path
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{impostor.server_address[1]}")
    environment.setenv("AWS_MAX_ATTEMPTS", "1")
    fs, _ = filesystem("s3://bucket/x")
    fs.retries = 1
    with pytest.raises(UserError, match=r"no secure connection to https://127\.0\.0\.1"):
        read_file(fs, "bucket/x")
    assert not impostor.asked  # type: ignore[attr-defined]
    environment.setenv("AWS_CA_BUNDLE", str(tmp_path / "certificate.pem"))  # whoever has a server of his own
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FileNotFoundError):
        read_file(filesystem("s3://bucket/x")[0], "bucket/x")
    assert impostor.asked  # type: ignore[attr-defined]


SECRET = "wJalrXUtnFEMI"
TYPED = [
    f"s3://AKIA:{SECRET}@bucket/store",
    f"s3://AKIA:{SECRET}/y@bucket/store",
    f"s3://{SECRET}@bucket/store",
    f"s3a://AKIA:{SECRET}/store",
]


@pytest.mark.parametrize("uri", TYPED)
def test_credentials_in_a_uri_are_refused_and_not_said_again(uri: str, environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="set AWS_ACCESS_KEY_ID") as caught:
        filesystem(uri)
    assert SECRET not in str(caught.value)


def test_nor_in_the_address_of_the_server(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", f"http://AKIA:{SECRET}@127.0.0.1:9")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL holds more than") as caught:
        filesystem("s3://bucket/store")
    assert SECRET not in str(caught.value)


def test_addresses_without_credentials_are_not_refused(environment: pytest.MonkeyPatch) -> None:
    for uri in ("s3://bucket/a@b:c", "s3://arn:aws:s3:eu-central-1:123456789012:accesspoint/name/key"):
        assert filesystem(uri)[1] == uri.removeprefix("s3://")
    assert filesystem("/a/b@c:d")[1] == "/a/b@c:d" and filesystem("file:///a/b")[1] == "/a/b"


def test_no_program_takes_credentials_on_its_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["verify", TYPED[0]], ["verify", f"folder:{TYPED[0]}"], ["--unknown", TYPED[1]]):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit, match="1"):
            run_cli(main)
        said = "".join(capsys.readouterr())
        assert "set AWS_ACCESS_KEY_ID" in said and SECRET not in said


@pytest.mark.parametrize("uri", ["s3://", "s3:///path", "s3a://"])
def test_a_bucket_has_a_name(uri: str) -> None:
    with pytest.raises(UserError, match="names no bucket; use s3://BUCKET/PATH"):
        filesystem(uri)
