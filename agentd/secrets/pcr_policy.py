"""Binds the KEK to approved boot states of the machine at an administrator's request. Each act is logged before it is done."""

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.base.hardware import COMMIT_DEADLINE_S, HardwareConnection
from common.files import write_atomic
from common.plain import json_text
from hwsec.pcr.files import read_policies
from hwsec.pcr.policy import SECURE_BOOT_PCR, Binding, Kind, check_initialized, parse_policy, policy_key_from_pem

from .open import as_tpm

if TYPE_CHECKING:
    from hwsec.tpm import TpmBackend


class PcrPolicies:
    """Shows, installs, binds and revokes PCR policies; without a TPM every call is refused.

    Args:
        directory: of the signed policies.
    """

    def __init__(self, core: Core, directory: Path) -> None:
        self._hardware = core.hardware
        self._audit = core.audit
        self._directory = directory

    async def show(self, pcrs: tuple[int, ...]) -> dict[str, Any]:
        """Binding, policy counter, installed policies, and the present values of the binding's PCRs and of `pcrs`."""

        def ask(connection: HardwareConnection) -> tuple[Binding, int, dict[int, bytes]]:
            backend = _tpm_of(connection)
            return backend.binding, backend.policy_number(), backend.read_pcrs((*backend.binding.pcrs, *pcrs))

        binding, number, values = await self._hardware.run(ask, COMMIT_DEADLINE_S)
        found = read_policies(self._directory)
        return {
            "binding": binding.kind,
            "bound_pcrs": list(binding.pcrs),
            "policy_number": number,
            "pcrs": {str(index): value.hex() for index, value in sorted(values.items())},
            "policies": [
                {
                    "number": policy.number,
                    "pcrs": {str(index): value.hex() for index, value in policy.pcrs},
                    "signed_by_our_key": binding.policy_key is not None and policy.is_signed_by(binding.policy_key),
                    "fits": all(values.get(index) == value for index, value in policy.pcrs),
                    "revoked": policy.number < number,
                }
                for policy in found.policies
            ],
            "passed_over": list(found.passed_over),
        }

    async def install(self, text: str, actor: dict[str, Any]) -> str:
        """Stores a signed policy and returns its file's name.

        Raises:
            Refused: it cannot be read, or is not signed by the key that the KEK is bound to.
            OSError: the disk does not take it.
        """
        data = text.encode("utf-8", "replace")
        try:
            policy = parse_policy(data)
        except ValueError as error:
            raise Refused(str(error)) from None
        binding = await self._hardware.run(lambda connection: _tpm_of(connection).binding, COMMIT_DEADLINE_S)
        if binding.policy_key is not None and not policy.is_signed_by(binding.policy_key):
            raise Refused("the policy is not signed by the key that this agent is bound to")
        name = policy_name(data)
        await self._audit.record_durably("tpm.policy_installed", "begun", actor=actor, file=name, number=policy.number)
        await asyncio.to_thread(keep_policy, self._directory, name, data)
        return name

    async def bind(self, kind: Kind, pcrs: tuple[int, ...], key_pem: str, actor: dict[str, Any]) -> None:
        """Seals the KEK to another binding.

        Raises:
            Refused: the binding makes no sense.
            PcrUninitialized, PcrMismatch: it could not be opened afterwards; nothing has changed.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        try:
            key = policy_key_from_pem(key_pem.encode()) if key_pem else None
            wanted = Binding(kind, (SECURE_BOOT_PCR,) if kind == "secure-boot" and not pcrs else pcrs, key)
        except ValueError as error:
            raise Refused(str(error)) from None

        def look(connection: HardwareConnection) -> None:
            check_initialized(wanted, _tpm_of(connection).read_pcrs(wanted.pcrs))

        await self._hardware.run(look, COMMIT_DEADLINE_S)
        await self._audit.record_durably("tpm.binding", "begun", actor=actor, kind=kind, pcrs=list(wanted.pcrs))
        await self._hardware.run(lambda connection: _tpm_of(connection).rebind(wanted), COMMIT_DEADLINE_S)
        self._audit.record("tpm.binding", "ok", actor=actor, kind=kind)

    async def revoke(self, number: int, actor: dict[str, Any]) -> None:
        """Refuses signed policies with a lower number from now on.

        Raises:
            Refused: it is too far ahead.
            PcrMismatch: no installed policy would be left for the present state; nothing has changed.
        """
        await self._audit.record_durably("tpm.policies_revoked", "begun", actor=actor, number=number)
        try:
            await self._hardware.run(lambda connection: _tpm_of(connection).revoke_policies(number), COMMIT_DEADLINE_S)
        except ValueError as error:
            raise Refused(str(error)) from None
        self._audit.record("tpm.policies_revoked", "ok", actor=actor, number=number)


def _tpm_of(connection: HardwareConnection) -> "TpmBackend":
    tpm = as_tpm(connection.backend)
    if tpm is None:
        raise Refused("this agent has no TPM: there is nothing to bind to the machine's state")
    return tpm


def policy_name(data: bytes) -> str:
    """The name of a signed policy's file.

    Raises:
        ValueError: it is not a signed policy.
    """
    return f"policy-{parse_policy(data).number}-{hashlib.sha256(data).hexdigest()[:16]}.json"


def keep_policy(directory: Path, name: str, data: bytes) -> None:
    """Puts a signed policy where the backend looks for it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    write_atomic(directory / name, data)


def parse_pcr_values(data: bytes) -> dict[int, bytes]:
    """PCR values by index, from what `license-agent-cli --json policy show` prints (its member `pcrs`).

    Raises:
        ValueError: there are none in it.
    """
    try:
        found = msgspec.json.decode(data, type=_Shown)
        return {int(index): bytes.fromhex(value) for index, value in found.pcrs.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"no PCR values: {json_text(error)}") from None


class _Shown(msgspec.Struct):
    pcrs: dict[str, str]
