"""Who made a bundle: a signature in the form of OpenSSF model signing 1, by a key of a curve.

A Sigstore bundle (v0.3, JSON) holds a DSSE envelope over an in-toto statement (v1) whose predicate
lists the files by SHA-256. Sources: model-transparency's `_signing/` (`signing.py`,
`sign_ec_key.py`, `sign_sigstore_pb.py`) and secure-systems-lab/dsse, `protocol.md` v1.0.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tel_edge.runtime import extras
from tel_edge.runtime.errors import InputError

NAME = "model.sig"
# Bytes of a signature; it has some 200 for each file.
MOST = 4_000_000
MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
# Curves that model signing takes, and the hash that goes with each.
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


def make(called: str, digests: Mapping[str, str], key: Path) -> bytes:
    """Sign files, given by path and SHA-256, with the private key of a PEM file.

    `called` is the model's name, which nobody checks. Raises `InputError` for what is no such key.
    """
    extras.check("cryptography", "sign")
    from cryptography.hazmat.primitives.asymmetric import ec

    private = _private(key)
    paths = sorted(digests, key=PurePosixPath)
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": called, "digest": {"sha256": _root([digests[p] for p in paths])}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [NAME],
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digests[path]} for path in paths
            ],
        },
    }
    payload = json.dumps(statement).encode()
    signed = private.sign(_encoded(payload), ec.ECDSA(_hash(private)))
    document = {
        "mediaType": MEDIA,
        "verificationMaterial": {
            "publicKey": {"hint": _hint(private.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signed).decode(), "keyid": ""}],
        },
    }
    return json.dumps(document).encode() + b"\n"


def read(text: bytes, key: Path, where: str) -> dict[str, str]:
    """Return what was signed, SHA-256 by path, once the public key of a PEM file has proved it.

    Raises `InputError`, naming `where`, for another key, a signature that was changed, and what is
    no signature of files by SHA-256.
    """
    extras.check("cryptography", "sign")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    public = _public(key)
    try:
        document = json.loads(text)
        envelope = document["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        [only] = envelope["signatures"]
        signed = base64.b64decode(only["sig"], validate=True)
        hint = document["verificationMaterial"].get("publicKey", {}).get("hint")
        if (document["mediaType"], envelope["payloadType"]) != (MEDIA, PAYLOAD):
            raise ValueError("another media type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{error!r:.80}"
        raise InputError(f"{where}: no signature of OpenSSF model signing ({why})") from None
    try:
        public.verify(signed, _encoded(payload), ec.ECDSA(_hash(public)))
    except InvalidSignature:
        changed = hint == _hint(public)
        why = "it was changed after it was signed" if changed else "another key signed it"
        raise InputError(f"{where}: not signed by the key of {key}; {why}") from None
    # From here on it is what the owner of the key wrote.
    try:
        return _listed(json.loads(payload))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{where}: signs no list of files by SHA-256 ({error!r:.80}); sign with tel-bundle, "
            "or model_signing's defaults"
        ) from None


def _listed(statement: Any) -> dict[str, str]:
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError("another type of statement")
    serialization = statement["predicate"]["serialization"]
    if (serialization["method"], serialization["hash_type"]) != ("files", "sha256"):
        raise ValueError("another way of hashing")
    rows = statement["predicate"]["resources"]
    found = {str(row["name"]): str(row["digest"]) for row in rows if row["algorithm"] == "sha256"}
    [subject] = statement["subject"]
    if len(found) != len(rows) or subject["digest"]["sha256"] != _root(found.values()):
        raise ValueError("not the digest of its own list")
    return found


def _root(digests: Any) -> str:
    """Return the digest of all: SHA-256 over the bytes of each, in their order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _encoded(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding, which is what is signed."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload


def _private(key: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _text(key)
    try:
        made = load_pem_private_key(text, None)
    except TypeError:
        raise InputError(f"{key}: locked by a password; openssl ec -in {key} unlocks it") from None
    except (ValueError, UnsupportedAlgorithm):
        made = None
    if _curve(made.public_key() if hasattr(made, "public_key") else made) is None:
        raise InputError(
            f"{key}: no private key of an elliptic curve ({', '.join(CURVES)}) in PEM form; make "
            "one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        )
    return made


def _public(key: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = _text(key)
    try:
        made = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        made = None
    if _curve(made) is None:
        raise InputError(
            f"{key}: no public key of an elliptic curve ({', '.join(CURVES)}) in PEM form; make "
            "it from the private one with: openssl ec -in key.pem -pubout -out key.pub"
        )
    return made


def _text(key: Path) -> bytes:
    try:
        with key.open("rb") as stream:
            return stream.read(MOST)
    except OSError as error:
        raise InputError(f"--key {key}: {error.strerror}") from None


def _curve(public: Any) -> str | None:
    name = getattr(getattr(public, "curve", None), "name", None)
    return name if name in CURVES else None


def _hash(key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, CURVES[key.curve.name])()


def _hint(public: Any) -> str:
    """Return what a signature calls its key: SHA-256 of the public key in PEM form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
