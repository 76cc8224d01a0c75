"""OpenSSF's model_signing beside ours: each verifies what the other one signed.

`make test-signing` runs this in an environment of its own. Bundles are made, signed and verified by
the main one, through `TEL_BIN`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("model_signing")

import model_signing
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("TEL_BIN", ROOT / ".venv/bin")).absolute() / "python"
FIXTURE = ROOT / "tests" / "fixtures" / "model_signing"
MAKE = """
import sys
from pathlib import Path
import for_shipping
print(for_shipping.versions(Path(sys.argv[1]), "x")[0])
"""


def tel(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join(str(ROOT / name) for name in ("src", "tests/makers"))
    env = {**os.environ, "PYTHONPATH": places}
    return subprocess.run([PYTHON, *argv], capture_output=True, text=True, check=False, env=env)


def bundle(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return tel("-m", "tel_edge.runtime.commands.bundle", *argv)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    made = tel("-c", MAKE, tmp_path / "home")
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    made = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def verify(folder: Path, public: Path) -> None:
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(folder, folder / "model.sig")


def sign(folder: Path, private: Path, place: Path) -> None:
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=private)
    config.sign(folder, place)


def test_what_tel_bundle_signs_model_signing_verifies(
    version: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    done = bundle("sign", version, "--key", private)
    assert done.returncode == 0, done.stderr
    verify(version, public)
    # Its command line too.
    command = [sys.executable, "-m", "model_signing", "verify", "key", version, "--signature",
               version / "model.sig", "--public_key", public]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    version.chmod(0o755)
    (version / "more").touch()
    with pytest.raises(ValueError, match=r"[Mm]ismatch"):
        verify(version, public)


def test_what_model_signing_signs_tel_bundle_verifies(
    version: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    sign(version, private, tmp_path / "made.sig")
    version.chmod(0o755)
    shutil.copyfile(tmp_path / "made.sig", version / "model.sig")
    done = bundle("verify", version, "--key", public)
    assert done.returncode == 0, done.stderr
    assert "signed by the key of" in done.stdout
    [adapter] = version.glob("*oranbench*")
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.unlink()
    adapter.write_bytes(content)
    done = bundle("verify", version, "--key", public)
    assert (done.returncode, f"{adapter.name}: damaged" in done.stderr) == (2, True)


def test_the_kept_signature_is_one_of_theirs() -> None:
    """Which the tests without this library read; `python FILE` here writes it anew."""
    config = model_signing.verifying.Config().use_elliptic_key_verifier(
        public_key=FIXTURE / "key.pub"
    )
    config.verify(FIXTURE / "model", FIXTURE / "model.sig")


def main() -> None:
    """Write the fixture; its private key is thrown away."""
    made = ec.generate_private_key(ec.SECP256R1())
    private = FIXTURE / "key.pem"
    (FIXTURE / "model" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", "sub/x.gguf"):
        (FIXTURE / "model" / name).write_text(f"{name}\n")
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        sign(FIXTURE / "model", private, FIXTURE / "model.sig")
    finally:
        private.unlink()
    (FIXTURE / "key.pub").write_bytes(
        made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


if __name__ == "__main__":
    main()
