"""Who signed a bundle: in OpenSSF's form, with cryptography alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import for_shipping as made
import pytest

pytest.importorskip("cryptography")
from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tel_edge.runtime.bundles import manifest
from tel_edge.runtime.bundles.shipping import active, checking, signature, sources, store
from tel_edge.runtime.bundles.shipping.pulling import pull
from tel_edge.runtime.errors import InputError

FIXTURE = ROOT / "tests" / "fixtures" / "model_signing"
A, B = "a" * 64, "b" * 64


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return made.keys(tmp_path)


def test_what_was_signed_is_whole_and_travels(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    [one] = made.versions(tmp_path / "out", "x")
    with pytest.raises(InputError, match=r"nobody signed it \(no model.sig\)"):
        checking.check(one, public)
    assert store.sign(one, private) == one / "model.sig"
    assert (one / "model.sig").stat().st_mode & 0o777 == 0o444
    assert one.stat().st_mode & 0o777 == 0o555
    assert [path.name for path in one.parent.glob(".*.partial")] == []
    checking.check(one, public)
    home = tmp_path / "home"
    pulled = pull(*sources.opened(str(one.parent)), home, public)
    assert active.activate(home, pulled.folder.name, public) == one.name
    # The name is of what was signed, with the signature or without it.
    assert pulled.folder.name == one.name


def test_a_signature_that_comes_later_is_taken(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    [one] = made.versions(tmp_path / "out", "x")
    source, home = str(tmp_path / "out"), tmp_path / "home"
    pull(*sources.opened(source), home)
    store.sign(one, private)
    added = pull(*sources.opened(source), home, public)
    assert (added.new, added.moved) == (True, 0)
    checking.check(home / one.name, public)


def test_another_key_is_refused_before_anything_comes(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, _ = keys
    _, other = made.keys(tmp_path, "other")
    [one] = made.versions(tmp_path / "out", "x")
    store.sign(one, private)
    said = f"model.sig: not signed by the key of {other}; another key signed it"
    with pytest.raises(InputError, match=said):
        checking.check(one, other)
    with pytest.raises(InputError, match=said):
        pull(*sources.opened(str(one)), tmp_path / "home", other)
    assert not (tmp_path / "home").exists()


def test_what_was_not_signed_is_named(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A manifest and files that fit each other, under the signature of others."""
    private, public = keys
    one, two = made.versions(tmp_path / "out", "x", "y")
    store.sign(one, private)
    store.unsealed(two)
    (two / "model.sig").write_bytes((one / "model.sig").read_bytes())
    with pytest.raises(InputError, match=r"manifest\.json: not what the key of .*key.pub signed"):
        checking.check(two, public)
    # And what is signed and is not in the manifest.
    digests = checking.digests(manifest.read(one), one.name)
    text = signature.make("x", {**digests, "more": A}, private)
    with pytest.raises(InputError, match="more: not what the key of"):
        checking.signed(manifest.read(one), one.name, text, public, "here")


def changed(text: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(text)
    change(document)
    return json.dumps(document).encode()


def within(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    def made_of(document: dict[str, Any]) -> None:
        envelope = document["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return made_of


CHANGES: tuple[tuple[Callable[[dict[str, Any]], object], str], ...] = (
    (
        within(lambda s: s["predicate"]["resources"][0].update(digest=B)),
        "it was changed after it was signed",
    ),
    (lambda d: d.update(mediaType="x"), "no signature of OpenSSF model signing"),
    (lambda d: d["dsseEnvelope"].update(payloadType="x"), "no signature of OpenSSF"),
    (lambda d: d["dsseEnvelope"].update(payload="?"), "no signature of OpenSSF"),
    (lambda d: d["dsseEnvelope"].update(signatures=[]), "no signature of OpenSSF"),
    (lambda d: d.pop("dsseEnvelope"), "no signature of OpenSSF"),
    (lambda d: d.update(verificationMaterial=[]), "no signature of OpenSSF"),
)


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_was_changed_is_refused(
    change: Callable[[dict[str, Any]], object], said: str, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    text = signature.make("x", {"b": B, "a/c": A}, private)
    assert signature.read(text, public, "here") == {"b": B, "a/c": A}
    with pytest.raises(InputError) as refused:
        signature.read(changed(text, change), public, "here")
    assert said in str(refused.value)
    assert str(refused.value).count("\n") <= 1


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"null", b"{}", b"\xff"])
def test_what_is_no_signature(text: bytes, keys: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="here: no signature of OpenSSF model signing"):
        signature.read(text, keys[1], "here")


STATEMENTS: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
    lambda s: s["predicate"]["serialization"].update(method="shards"),
    lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
    lambda s: s["predicate"]["resources"][0].update(algorithm="blake2"),
    lambda s: s["predicate"].update(resources=[]),
    lambda s: s["subject"][0]["digest"].update(sha256=A),
)


@pytest.mark.parametrize("change", STATEMENTS)
def test_other_statements_by_the_right_key(
    change: Callable[[dict[str, Any]], object],
    keys: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As other settings of model signing make them, and as a mistake would."""
    real = json.dumps

    def dumps(document: dict[str, Any], **how: Any) -> str:
        if "_type" in document:
            change(document)
        return real(document, **how)

    monkeypatch.setattr(signature.json, "dumps", dumps)
    text = signature.make("x", {"b": B}, keys[0])
    with pytest.raises(InputError, match="here: signs no list of files by SHA-256"):
        signature.read(text, keys[1], "here")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key = ec.generate_private_key(curve)
    private, public = written(tmp_path, key)
    text = signature.make("x", {"b": B}, private)
    assert signature.read(text, public, "here") == {"b": B}


def written(folder: Path, key: Any, locked: bytes | None = None) -> tuple[Path, Path]:
    how = BestAvailableEncryption(locked) if locked else NoEncryption()
    private, public = folder / "other.pem", folder / "other.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_what_is_no_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    text = signature.make("x", {"b": B}, keys[0])
    (tmp_path / "empty").touch()
    others = [written(tmp_path, ed25519.Ed25519PrivateKey.generate())[at] for at in (0, 1)]
    for private in (tmp_path / "empty", keys[1], others[0]):
        with pytest.raises(InputError, match="no private key of an elliptic curve"):
            signature.make("x", {"b": B}, private)
    for public in (tmp_path / "empty", keys[0], others[1]):
        with pytest.raises(InputError, match="no public key of an elliptic curve"):
            signature.read(text, public, "here")
    odd = written(tmp_path, ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(InputError, match="no private key of an elliptic curve"):
        signature.make("x", {"b": B}, odd[0])
    locked = written(tmp_path, ec.generate_private_key(ec.SECP256R1()), b"secret")
    with pytest.raises(InputError, match="locked by a password; openssl ec -in"):
        signature.make("x", {"b": B}, locked[0])
    with pytest.raises(InputError, match=r"--key .*nowhere: No such file"):
        signature.read(text, tmp_path / "nowhere", "here")


def test_what_model_signing_signed_is_read(tmp_path: Path) -> None:
    """`tests/with_signing` made it, by model-signing 1.1.1."""
    found = signature.read((FIXTURE / "model.sig").read_bytes(), FIXTURE / "key.pub", "here")
    files = sorted(path for path in (FIXTURE / "model").rglob("*") if path.is_file())
    assert found == {
        path.relative_to(FIXTURE / "model").as_posix(): checking.digest.of_file(path)
        for path in files
    }
