"""Acts on devices that speak hawkBit's DDI: add and list them, give and revoke what they identify themselves with."""

from typing import Annotated

from pydantic import Field

from contracts.directive import PRODUCT_PATTERN
from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Number, PageForm, Time, VendorId, page
from server.base.ddisettings import MAX_POLL_S, MIN_POLL_S
from server.fleet.ddi import credentials, devices
from server.fleet.ddi import policy as policies
from server.fleet.ddi.credentials import MAX_OVERLAP_S, OVERLAP_S
from server.fleet.ddi.policy import ATTRIBUTE_PATTERN, DdiPolicy

DeviceId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
"""What a path of DDI can name without encoding."""
CredentialId = Annotated[str, Field(min_length=12, max_length=64, pattern=r"^[a-z0-9]+$")]
Overlap = Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)]
_Product = Annotated[str, Field(pattern=PRODUCT_PATTERN.replace(r"\Z", "$"))]
_Attribute = Annotated[str, Field(pattern=ATTRIBUTE_PATTERN.replace(r"\Z", "$"))]


class DdiDevice(Form):
    """A device; times are seconds since 1970 UTC. `configured_at` is when it last reported its attributes."""

    device_id: str
    name: str
    state: str
    created_at: Time
    configured_at: Time | None
    seen_at: Time | None
    auto_confirm: bool


class NewDdiDevice(Form):
    """A device to add."""

    device_id: DeviceId
    name: Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = ""
    hardware: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] | None = None
    zone: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$")] | None = None


class OneDdiDevice(Form):
    """Which device."""

    device_id: DeviceId


class NewToken(Form):
    """For which device, and for how many seconds its former tokens count too."""

    device_id: DeviceId
    overlap_s: Overlap = 0


class NewGatewayToken(Form):
    """For which fleet's devices, and for how many seconds the fleet's former tokens count too."""

    fleet_id: VendorId
    overlap_s: Overlap = OVERLAP_S


class DdiToken(Form):
    """A new token: the only time that its text is known."""

    credential_id: str
    token: str


class NewCertificate(Form):
    """For which device, and its certificate request (PKCS #10 in PEM)."""

    device_id: DeviceId
    csr: Annotated[str, Field(min_length=1, max_length=8192)]


class DdiCertificate(Form):
    """A new certificate and the issuing CA's, in PEM."""

    chain: tuple[str, ...]


class Credential(Form):
    """A token or certificate, never a token's text; times are seconds since 1970 UTC."""

    credential_id: str
    kind: str
    device_id: str | None
    fleet_id: str | None
    state: str
    created_at: Time
    expires_at: Time | None


class CredentialsForm(PageForm):
    """Whose credentials: a device's, a fleet's, or all."""

    device_id: DeviceId | None = None
    fleet_id: VendorId | None = None


class OneCredential(Form):
    """Which token or certificate."""

    credential_id: CredentialId


class DdiCount(Form):
    """How many."""

    count: Number


class OneFleet(Form):
    """Which fleet."""

    fleet_id: VendorId


class FleetDdiPolicy(Form):
    """What a fleet's policy says of devices that speak DDI.

    `versions` has by product the attribute that names its version; a product that is not there has `PRODUCT.version`.
    """

    versions: dict[str, str]
    confirm: bool
    poll_s: int | None


class NewPolicy(Form):
    """For which fleet, and what; it replaces the former one."""

    fleet_id: VendorId
    versions: Annotated[dict[_Product, _Attribute], Field(default_factory=dict, max_length=16)]
    confirm: bool = False
    poll_s: Annotated[int, Field(ge=MIN_POLL_S, le=MAX_POLL_S)] | None = None


def list_devices(context: Context, body: PageForm) -> Listed[DdiDevice]:
    """List devices that speak hawkBit's DDI, in the order of their ids."""
    rows = devices.listed(context.session, body.after, body.limit + 1)
    return page(rows, DdiDevice, body.limit, lambda row: str(row.device_id))


def add(context: Context, body: NewDdiDevice) -> OneDdiDevice:
    """Add a device that speaks hawkBit's DDI; it needs a token or a certificate besides."""
    devices.add(context.session, body.device_id, body.name, context.now, body.hardware, body.zone)
    return OneDdiDevice(device_id=body.device_id)


def make_token(context: Context, body: NewToken) -> DdiToken:
    """Make a device's token, in place of its former ones."""
    made = credentials.make_target(context.session, body.device_id, context.now, body.overlap_s)
    return DdiToken(credential_id=made.credential_id, token=made.text)


def make_gateway_token(context: Context, body: NewGatewayToken) -> DdiToken:
    """Make a token for the devices of a fleet, in place of its former ones."""
    made = credentials.make_gateway(context.session, body.fleet_id, context.now, body.overlap_s)
    return DdiToken(credential_id=made.credential_id, token=made.text)


def issue(context: Context, body: NewCertificate) -> DdiCertificate:
    """Issue a client certificate for a device's key."""
    return DdiCertificate(chain=credentials.issue(context.session, context.server.keys, body.device_id, body.csr, context.now))


def list_credentials(context: Context, body: CredentialsForm) -> Listed[Credential]:
    """List tokens and certificates of devices that speak hawkBit's DDI; never a token's text."""
    rows = credentials.listed(context.session, body.device_id, body.fleet_id, body.after, body.limit + 1)
    return page(rows, Credential, body.limit, lambda row: str(row.credential_id))


def revoke(context: Context, body: OneCredential) -> Credential:
    """Revoke a token or certificate; it is refused from the next request on."""
    return Credential.model_validate(credentials.revoke(context.session, body.credential_id, context.now))


def revoke_all(context: Context, body: OneDdiDevice) -> DdiCount:
    """Revoke all tokens and certificates of a device; tokens of its fleets go on counting for it, unless it is blocked."""
    return DdiCount(count=credentials.revoke_all(context.session, body.device_id, context.now))


def show_policy(context: Context, body: OneFleet) -> FleetDdiPolicy:
    """Show what a fleet's policy says of devices that speak hawkBit's DDI."""
    return _policy(policies.policy_of(policies.required_fleet(context.session, body.fleet_id)))


def set_policy(context: Context, body: NewPolicy) -> FleetDdiPolicy:
    """Set what a fleet's policy says of devices that speak hawkBit's DDI."""
    wanted = DdiPolicy(versions=dict(body.versions), confirm=body.confirm, poll_s=body.poll_s)
    policies.set_policy(context.session, body.fleet_id, wanted, context.now)
    return _policy(wanted)


def _policy(found: DdiPolicy) -> FleetDdiPolicy:
    return FleetDdiPolicy(versions=dict(found.versions), confirm=found.confirm, poll_s=found.poll_s)


_READ, _WRITE = "devices:read", "devices:write"
_DEVICE, _FLEET = "/ddi/devices/{device_id}", "/ddi/fleets/{fleet_id}"
_SECURITY = Role.SECURITY_OFFICER

ACTS = (
    Act("ddi.list", _READ, Role.VIEWER, PageForm, Listed[DdiDevice], list_devices, "/ddi/devices", "GET"),
    Act("ddi.add", _WRITE, _SECURITY, NewDdiDevice, OneDdiDevice, add, "/ddi/devices"),
    Act("ddi.make_token", _WRITE, _SECURITY, NewToken, DdiToken, make_token, f"{_DEVICE}/token"),
    Act("ddi.issue", _WRITE, _SECURITY, NewCertificate, DdiCertificate, issue, f"{_DEVICE}/certificate"),
    Act("ddi.revoke_all", _WRITE, _SECURITY, OneDdiDevice, DdiCount, revoke_all, f"{_DEVICE}/revoke"),
    Act("ddi.make_gateway_token", _WRITE, _SECURITY, NewGatewayToken, DdiToken, make_gateway_token, f"{_FLEET}/gateway-token"),
    Act("ddi.list_credentials", _READ, Role.VIEWER, CredentialsForm, Listed[Credential], list_credentials,
        "/ddi/credentials", "GET"),
    Act("ddi.revoke", _WRITE, _SECURITY, OneCredential, Credential, revoke, "/ddi/credentials/{credential_id}/revoke"),
    Act("ddi.show_policy", _READ, Role.VIEWER, OneFleet, FleetDdiPolicy, show_policy, f"{_FLEET}/policy", "GET"),
    Act("ddi.set_policy", _WRITE, _SECURITY, NewPolicy, FleetDdiPolicy, set_policy, f"{_FLEET}/policy"),
)  # fmt: skip
