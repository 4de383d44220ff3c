"""OpenSSF model signature with the user's own key: the digests of every file of a folder, signed, and checked before use.

Keys are named by path in the environment, `LORA_SELECT_SIGNING_KEY` (private, PEM, NIST P-256, P-384 or P-521; its password, if
it has one, in `LORA_SELECT_SIGNING_PASSWORD`) and `LORA_SELECT_VERIFY_KEY` (public). They are never in a config, record or log.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.errors import InputError, MissingLibraryError, WorldError, library

SIGNING_KEY = "LORA_SELECT_SIGNING_KEY"
SIGNING_PASSWORD = "LORA_SELECT_SIGNING_PASSWORD"
VERIFY_KEY = "LORA_SELECT_VERIFY_KEY"
ADAPTER_SIGNATURE = "adapter.sig"
EVIDENCE_SIGNATURE = "evidence.sig"
MAKE_A_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem && openssl ec -in signing.pem -pubout -out verify.pem"


@final
@dataclass(frozen=True, repr=False)
class SigningKey:
    """A private key's path and password; it shows neither."""

    path: Path
    password: str | None = None

    def __repr__(self) -> str:
        return "SigningKey(...)"


def signing_key(environment: Mapping[str, str] = os.environ) -> SigningKey | None:
    """The key that the environment names, None where it names none.

    Raises:
        InputError: it names a file that is not there.
    """
    path = _named_file(SIGNING_KEY, environment, f"make a key with: {MAKE_A_KEY}")
    return SigningKey(path, environment.get(SIGNING_PASSWORD) or None) if path else None


def verify_key(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The public key that the environment names, None where it names none: then nothing has to be signed.

    Raises:
        InputError: it names a file that is not there.
    """
    return _named_file(VERIFY_KEY, environment, "name the public key of who signs, or unset it")


def sign(folder: Path, signature: Path, key: SigningKey) -> str:
    """Sign every file of `folder` and write the signature (a Sigstore bundle) outside of it.

    Returns:
        SHA-256 of the public key in PEM, which the bundle names too.

    Raises:
        MissingLibraryError: model-signing is not installed.
        InputError: the key cannot be used; the sentence does not hold it.
    """
    signing = library("model_signing.signing", "model-signing")
    if signature.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the signature {signature} lies in the folder that it signs")
    password = None if key.password is None else key.password.encode()
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key.path, password=password)
        public = _public(key.path.read_bytes(), password)
    except Exception as error:  # a wrong password, an RSA key, no PEM
        raise InputError(
            f"the key that {SIGNING_KEY} names cannot be used ({type(error).__name__}); it must be an elliptic-curve key in PEM and "
            f"its password, if any, in {SIGNING_PASSWORD}: {MAKE_A_KEY}"
        ) from None
    config.set_hashing_config(_hashing()).sign(folder, signature)
    return public


def verify(folder: Path, signature: Path, public_key: Path) -> None:
    """Check that every file of `folder` is what was signed, no file more and none fewer.

    Raises:
        MissingLibraryError: model-signing is not installed.
        InputError: the public key cannot be read.
        WorldError: there is no signature, it is by another key, or a file was changed, added or removed; names the file.
    """
    verifying = library("model_signing.verifying", "model-signing")
    if not signature.is_file():
        raise WorldError(f"{folder} is not signed: {signature.name} is not there, and {VERIFY_KEY} asks for it")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(f"the public key that {VERIFY_KEY} names cannot be read ({type(error).__name__})") from error
    try:
        config.set_hashing_config(_hashing()).verify(folder, signature)
    except Exception as error:  # ValueError of the library, InvalidSignature of cryptography, a bundle that is no JSON
        said = str(error) or "it was made with another key, or changed"
        raise WorldError(f"the signature of {folder} does not hold: {' '.join(said.split())[:500]}") from error


def ready(environment: Mapping[str, str] = os.environ) -> None:
    """Where a public key is named, see that what will be signed is taken by it, before anything is trained for a promotion.

    Raises:
        InputError: no private key is named, a key cannot be used, or the two are no pair.
    """
    public, private = verify_key(environment), signing_key(environment)
    if public is None:
        return
    if private is None:
        raise InputError(
            f"{VERIFY_KEY} lets only a signed adapter be promoted, and no key signs: name the private key in {SIGNING_KEY}, or unset "
            f"{VERIFY_KEY}"
        )
    with tempfile.TemporaryDirectory(prefix="lora-select-") as place:
        folder = Path(place) / "sample"
        folder.mkdir()
        (folder / "sample").write_text("sample")
        try:
            sign(folder, Path(place) / ADAPTER_SIGNATURE, private)
            verify(folder, Path(place) / ADAPTER_SIGNATURE, public)
        except MissingLibraryError as error:
            raise InputError(f"{VERIFY_KEY} asks for signatures: {error}") from error
        except WorldError as error:
            raise InputError(
                f"the keys that {SIGNING_KEY} and {VERIFY_KEY} name are no pair: what one signs the other refuses"
            ) from error


def require(folder: Path, signature: Path, environment: Mapping[str, str] = os.environ) -> str:
    """What promotion, approval, rollback, export and verify call: check where a public key is named, and say what was done.

    Returns:
        `verified` or `not asked for` (no public key is named).

    Raises:
        InputError: the public key cannot be read, or model-signing is not installed.
        WorldError: as :func:`verify`.
    """
    key = verify_key(environment)
    if key is None:
        return "not asked for"
    try:
        verify(folder, signature, key)
    except MissingLibraryError as error:
        raise InputError(f"{VERIFY_KEY} asks for signatures: {error}") from error
    return "verified"


def _named_file(variable: str, environment: Mapping[str, str], way_out: str) -> Path | None:
    """The file that the variable names, None where it names none."""
    path = environment.get(variable)
    if path and not Path(path).is_file():
        raise InputError(f"{variable} names a file that is not there; {way_out}")  # its value may be a key
    return Path(path) if path else None


def _hashing() -> Any:
    """Nothing is left out, also no `.gitattributes`: a file that is not signed is a file that can be slipped in."""
    hashing = library("model_signing.hashing", "model-signing")
    return (
        hashing.Config()
        .use_file_serialization(hashing_algorithm="sha256")
        .set_ignored_paths(paths=[], ignore_git_paths=False)
    )


def _public(private: bytes, password: bytes | None) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(private, password)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_key().public_bytes(encoding, form)).hexdigest()
