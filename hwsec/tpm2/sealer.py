"""Seals the KEK under a binding, and unseals it if the machine's state allows.

Whether a signed policy fits is decided before the TPM is asked, for the sake of a clear error; the TPM decides it once more.
"""

import hmac
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, ForeignHardware, PcrMismatch, unsigned
from ..nv.layout import NV_POLICY_COUNTER
from ..objectfile import SealedKek
from ..pcr.files import read_policies
from ..pcr.policy import Binding, SignedPolicy, choose_policy, kek_policy
from ..secretmem import SecretBuffer
from ..vault import Vault
from .codes import RC_AUTH_FAIL, RC_BAD_AUTH, RC_POLICY_FAIL, TpmRefusal
from .nv import NvIndices
from .objects import seal, unseal
from .policy import MOVED, assert_auth_value, assert_signed, read_pcrs
from .transport import Transport

_ATTEMPTS = 3  # any extension of a PCR between the assertions and the unsealing costs one (Part 1, 19.7.7.4)


class KekSealer:
    """Seals and unseals the KEK over a connection that somebody else makes.

    Args:
        tpm: the connection.
        nv: our indices, with the policy counter.
        nv_base: the indices follow this number.
        policies: directory of signed policies.
        vault: holds the KEK's auth value.
    """

    def __init__(self, tpm: Transport, nv: NvIndices, nv_base: int, policies: Path | None, vault: Vault) -> None:
        self._tpm = tpm
        self._nv = nv
        self._nv_base = nv_base
        self._policies = policies
        self._vault = vault

    def seal(self, kek: SecretBuffer, auth: SecretBuffer, binding: Binding, counter_auth: SecretBuffer) -> SealedKek:
        """Seals the KEK, and shows that it can be unsealed in the present state of the machine.

        Args:
            kek: what is sealed.
            auth: its new auth value.
            binding: what it is bound to.
            counter_auth: auth value of the policy counter.

        Raises:
            PcrMismatch, PcrUninitialized: it could not be unsealed.
        """
        sealed = SealedKek(seal(self._tpm, kek, auth, kek_policy(binding)), self._vault.wrap(auth), binding)
        with SecretBuffer(len(kek)) as probe:
            self.unseal(sealed, counter_auth, probe)
            if not hmac.compare_digest(probe.view, kek.view):
                raise BackendUnavailable("the TPM does not give back what it was given to seal")
        return sealed

    def unseal(self, sealed: SealedKek, counter_auth: SecretBuffer, into: SecretBuffer) -> None:
        """Unseals the KEK, in a salted policy session made for this once.

        Raises:
            PcrMismatch, PcrUninitialized: the present state of the machine does not allow it.
            ForeignHardware: auth value or policy counter are not ours.
        """
        moved = () if sealed.binding.policy_key is None else MOVED
        for _attempt in range(_ATTEMPTS):
            satisfy = self._assertions(sealed.binding, counter_auth)
            try:
                with self._vault.open(sealed.auth) as auth:
                    return unseal(self._tpm, sealed.blob, auth, satisfy, into, moved)
            except TpmRefusal as reason:
                if reason.code in (RC_BAD_AUTH, RC_AUTH_FAIL):
                    raise unsigned(
                        ForeignHardware(
                            "the TPM refuses the auth value in the file of sealed objects: the file has been changed, or the "
                            "policy counter was defined again"
                        )
                    ) from None
                if reason.code == RC_POLICY_FAIL:
                    raise unsigned(
                        PcrMismatch(
                            "the sealed key has another policy than the file of sealed objects says: its binding there, or the "
                            "vendor's key, has been changed"
                        )
                    ) from None
                if reason.code not in moved:
                    raise
            # PCRs or policy counter have moved since they were read: whether a policy fits is asked again.
        raise unsigned(
            PcrMismatch(
                f"PCRs or policy counter moved each time while the key was being unsealed ({_ATTEMPTS} attempts); try again "
                "when the machine has finished starting"
            )
        )

    def _assertions(self, binding: Binding, counter_auth: SecretBuffer) -> Callable[[Any], None]:
        """What makes a policy session fit the sealed KEK's policy now."""
        tpm, policy_key = self._tpm, binding.policy_key
        if policy_key is None:
            return lambda session: assert_auth_value(tpm, session)
        signed = self.fitting(binding, counter_auth)

        def satisfy(session: Any) -> None:
            assert_signed(tpm, session, signed, policy_key, self.policy_counter(counter_auth))
            assert_auth_value(tpm, session)

        return satisfy

    def read_pcrs(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Values of the SHA-256 bank by index; what the TPM does not have is left out."""
        return read_pcrs(self._tpm, indices)

    def fitting(self, binding: Binding, counter_auth: SecretBuffer, lowest: int = 0) -> SignedPolicy:
        """The signed policy for the present state, with a number from `lowest` on.

        Raises:
            PcrMismatch, PcrUninitialized: no policy fits.
        """
        found = read_policies(self._policies)
        values = self.read_pcrs(binding.pcrs)
        counter = max(self.policy_number(counter_auth), lowest)
        try:
            return choose_policy(found.policies, binding, values, counter, self._nv_base)
        except PcrMismatch as error:
            if not found.passed_over:
                raise
            raise PcrMismatch(f"{error} (passed over: {'; '.join(found.passed_over)})") from None

    def policy_counter(self, counter_auth: SecretBuffer) -> AbstractContextManager[Any]:
        """Gives the handle of the policy counter, its auth value set for the length of the block."""
        self._know_counter(counter_auth)
        return self._nv.lent(NV_POLICY_COUNTER)

    def _know_counter(self, counter_auth: SecretBuffer) -> None:
        if not self._nv.knows(NV_POLICY_COUNTER):
            self._nv.authorize(NV_POLICY_COUNTER, counter_auth)

    def policy_number(self, counter_auth: SecretBuffer) -> int:
        """The policy counter: signed policies with a lower number are refused."""
        self._know_counter(counter_auth)
        return self._nv.read_counter(NV_POLICY_COUNTER)
