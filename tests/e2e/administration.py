"""The administrator's side in the booted guest: certificates and ssh-agent, the REST interface, `doctor`, and faults.

Each fault is put into the machine, `status` and `doctor` must name it, it is taken away, and everything must be in order again.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.scenario import Scenario

ADMIN = "ann"
"""A user of the guest who is let in by the first lock; her certificate opens the others."""
CERTIFICATE, SSH_AGENT = "/home/ann/ann.pem", "/home/ann/agent.sock"
CLI = f"SSH_AUTH_SOCK={SSH_AGENT} license-agent-cli --auth-cert {CERTIFICATE}"
REST = "license-agent-manage"
GUEST_ADDRESS, PORT = "10.0.2.15", 8470
REST_EXPOSURE = 1.3
"""The most that `systemd-analyze security` may say of the REST interface."""
CONFIG, ETC = "/etc/license-agent/config.toml", "/etc/license-agent"
AUDIT_LOG = "/var/log/license-agent/audit.log"
_STOP = "systemctl stop license-agent-pos.socket license-agent-admin.socket license-agent.service"
_START = "systemctl start license-agent.service"
_SYNCHRONIZED = "python3 -B /payload/probes/synchronized.py"
"""The guest has no time server; without one `doctor` rightly complains."""


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: what is wrong, for the report.
        put: puts it into the machine.
        status: a part of what `status` says of it.
        check: the check of `doctor` that names it.
        doctor: a part of what that says.
        remove: takes it away.
        contact: whether the agent must speak with its server before all is in order again.
    """

    name: str
    put: str
    status: str
    check: str
    doctor: str
    remove: str
    contact: bool = False


def _shifted(seconds: int) -> str:
    return f"python3 -c 'import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {seconds})'"


FAULTS = (
    Fault(
        "the TPM's device is taken away",
        # Not by its driver: the kernel would give the TPM another number when it comes back, until the machine restarts.
        f"{_STOP} && mv /dev/tpmrm0 /dev/away && {_START}",
        "no TPM answers at device:/dev/tpmrm0",
        "tpm.device",
        "/dev/tpmrm0 is not there",
        f"{_STOP} && mv /dev/away /dev/tpmrm0 && {_START}",
        contact=True,
    ),
    Fault(
        "node_exporter does not read the metrics",
        "mv /var/lib/prometheus/node-exporter/license-agent.prom /root/",
        "node_exporter does not read the agent's metrics",
        "metrics.collected",
        "node_exporter does not read the agent's metrics",
        "mv /root/license-agent.prom /var/lib/prometheus/node-exporter/",
    ),
    Fault(
        "somebody wrote into the audit log",
        f"echo edited >>{AUDIT_LOG}",
        "Another program changed the open audit file",
        "audit.log",
        "the audit log was tampered with",
        # In the same file, while nobody writes to it.
        f"{_STOP} && grep -vx edited {AUDIT_LOG} >/root/audit.log && cat /root/audit.log >{AUDIT_LOG} && {_START}",
        contact=True,
    ),
    Fault(
        "the core's AppArmor profile is unloaded",
        "apparmor_parser -R /etc/apparmor.d/license-agent",
        "the AppArmor profile license-agent is not loaded",
        "units.apparmor",
        "the agent's process runs as 'unconfined'",
        "apparmor_parser -r /etc/apparmor.d/license-agent && systemctl restart license-agent",
        contact=True,
    ),
    Fault(
        "a drop-in opens the link's sandbox",
        "printf '[Service]\\nNoNewPrivileges=no\\n' >/etc/systemd/system/license-agent-link.service.d/looser.conf",
        "NoNewPrivileges= of license-agent-link.service",
        "units.sandbox",
        "NoNewPrivileges= of license-agent-link.service",
        "rm /etc/systemd/system/license-agent-link.service.d/looser.conf && systemctl daemon-reload",
    ),
    Fault(
        "the REST interface cannot read its key",
        f"chmod 0600 {ETC}/manage-key.pem && ! systemctl restart {REST}",
        "license-agent-manage.service has failed",
        "manage.service",
        "license-agent-manage cannot read /etc/license-agent/manage-key.pem",
        f"chmod 0640 {ETC}/manage-key.pem && systemctl restart {REST}",
    ),
    Fault(
        "others may read the configuration",
        f"chmod 0644 {CONFIG}",
        "config.toml has mode 0644",
        "files.modes",
        "config.toml has mode 0644",
        f"chmod 0600 {CONFIG}",
    ),
    Fault(
        "the disk is full",
        # Allocating stops where there is no room, and the rest is filled to the last block.
        "fallocate -l $(df --output=avail -B1 / | tail -1) /srv/full; cat /dev/zero >>/srv/full; sync; test -e /srv/full",
        "no room is left for /var/log/license-agent",
        "disk.room",
        "no room is left for /var/log/license-agent",
        "rm /srv/full",
    ),
    Fault(
        "the license server is not reached",
        f"ip route add unreachable 10.0.2.100/32; for _ in 1 2 3 4; do runuser -u {ADMIN} -- sh -c '{CLI} contact'; done; true",
        "contacts with the license server failed",
        "server.contact",
        "contacts failed",
        "ip route del unreachable 10.0.2.100/32",
        contact=True,
    ),
    Fault(
        "the link's socket is down",
        "systemctl stop license-agent-link.socket",
        "license-agent-link.socket is inactive",
        "units.active",
        "license-agent-link.socket is inactive",
        "systemctl start license-agent-link.socket",
    ),
    Fault(
        "the clock is wrong",
        _shifted(-3 * 3600),
        "the machine's clock is wrong",
        "agent.verdict",
        "the machine's clock is wrong",
        f"{_shifted(3 * 3600)} && {_SYNCHRONIZED}",
    ),
    Fault(
        "the admin CA ends soon",
        "license-agent-cli admin-ca install --yes /root/short/admin-ca.pem",
        "The admin CA ends within 30 days",
        "agent.verdict",
        "The admin CA ends within 30 days",
        "license-agent-cli admin-ca install --yes /root/ca/admin-ca.pem",
    ),
)


class Administration:
    """What an administrator does in the guest.

    Args:
        scenario: the guest, with the agent provisioned and of the present release.
    """

    def __init__(self, scenario: "Scenario") -> None:
        self.guest, self.check, self.same = scenario.guest, scenario.check, scenario.same
        self.sh, self.out, self.until = scenario.sh, scenario.out, scenario.until
        self.scenario = scenario

    def set_up(self) -> None:
        """All that the guides say, from the admin CA to the REST interface."""
        self.install()
        self.certificates()
        self.rest()
        self.sh(_SYNCHRONIZED)
        self.restart()

    def restart(self) -> None:
        """Restarts the agent: attempts of other users at its sockets, in the steps before, rightly leave alerts until then."""
        self.sh("systemctl restart license-agent")
        self.contact()

    # Certificates

    def certificates(self) -> None:
        """Requires certificates, and works with one whose key lies in ssh-agent only."""
        self.make_admin()
        self.require()
        refused = self.sh("license-agent-cli secrets", user="till", check=False)
        self.check(
            "a till's user does not reach the admin socket", refused.status and "may not be opened" in refused.stderr, refused
        )
        refused = self.sh("license-agent-cli secrets", user=ADMIN, check=False)
        self.check("an administrator is refused without a certificate", "certificate" in refused.stderr, refused.stderr)
        refused = self.sh("license-agent-cli secrets", check=False)
        self.check("root too", refused.status != 0 and "certificate" in refused.stderr, refused.stderr)
        told = json.loads(self.out(f"{CLI} --json secrets", user=ADMIN))
        self.check("with a certificate and the key in ssh-agent she is served", "active" in json.dumps(told).lower(), told)
        named = self.out(f"grep -c 'Ann Keeper' {AUDIT_LOG}", check=False)
        self.check("the audit log names her", int(named or 0) > 0, named)
        emptied = self.sh(f"SSH_AUTH_SOCK={SSH_AGENT} ssh-add -q -D && {CLI} secrets", user=ADMIN, check=False)
        self.check("without the key she is refused", "does not hold the key" in emptied.stderr, emptied.stderr)
        self.add_key()

    def make_admin(self) -> None:
        """A user with a P-256 key, an admin CA, and certificates; the key goes into ssh-agent."""
        self.sh(f"useradd --create-home --groups license-agent-admin {ADMIN}")
        self.sh(
            "cd ~ && umask 077 && openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ann.key"
            f" && openssl pkey -in ann.key -pubout -out ann.pub && ssh-agent -a {SSH_AGENT} >/dev/null",
            user=ADMIN,
        )
        self.sh("umask 077 && head -c 18 /dev/urandom | base64 >/root/passphrase")
        ca = "license-agent admin-ca {} --dir /root/{} --passphrase-file /root/passphrase"
        self.sh(f"{ca.format('new', 'ca')} && {ca.format('new', 'short')} --days 20")
        issue = ca.format("issue", "ca")
        self.sh(f"{issue} --name 'Ann Keeper' --role admin --public-key /home/{ADMIN}/ann.pub --out {CERTIFICATE}")
        self.sh(f"chown {ADMIN} {CERTIFICATE} && {issue} --name Monitor --role viewer --out /root/monitor.pem")
        self.add_key()

    def add_key(self) -> None:
        self.sh(f"SSH_AUTH_SOCK={SSH_AGENT} ssh-add -q ~/ann.key", user=ADMIN)

    def require(self) -> None:
        """Installs the admin CA, as root; from then on each administrator needs a certificate."""
        if self.sh(f"grep -q '\"{ADMIN}\"' {CONFIG}", check=False).status != 0:
            self.sh(f'printf \'[management]\\nallowed_uids = ["{ADMIN}", "{REST}"]\\n\' >>{CONFIG}')
        told = json.loads(self.out("license-agent-cli --json admin-ca install --yes /root/ca/admin-ca.pem"))
        self.same("root has installed the admin CA, and certificates are required", "required", told["mode"])

    def contact(self) -> None:
        """Has the agent speak with its server, as soon as it works."""
        self.until("she has the agent ask its server", lambda: self.sh(f"{CLI} contact", user=ADMIN, check=False).status == 0)

    # The REST interface

    def install(self) -> None:
        """Installs its package; the agent's configuration names its user."""
        if self.sh(f"dpkg-query -W {REST}", check=False).status:
            self.scenario.apt(f"install {REST}")

    def rest(self) -> None:
        """Sets up license-agent-manage as its guide says, and asks it."""
        self.same("the REST interface is off at first", "inactive", self.out(f"systemctl is-active {REST}", check=False))
        self.sh(
            f"cd {ETC} && umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 800"
            " -subj '/CN=license agent management' -addext subjectAltName=IP:127.0.0.1"
            " -addext keyUsage=critical,digitalSignature,keyCertSign -addext extendedKeyUsage=serverAuth"
            " -keyout manage-key.pem -out manage-cert.pem 2>/dev/null && chmod 0644 manage-cert.pem"
            f" && chgrp {REST} manage-key.pem && chmod 0640 manage-key.pem"
            f' && printf \'[tls]\\ncertificate = "{ETC}/manage-cert.pem"\\nkey = "{ETC}/manage-key.pem"\\n\' >manage.toml'
            " && chmod 0644 manage.toml"
        )
        self.sh(f"systemctl reload license-agent && {REST} check-config && systemctl enable -q --now {REST}")
        self.scenario.active(REST)
        pid = self.scenario.pid(REST)
        self.same("its AppArmor profile is enforced", f"{REST} (enforce)", self.out(f"cat /proc/{pid}/attr/current"))
        capabilities = self.out(f"sed -n 's/^Cap[EB][fn][fd]:\\s*//p' /proc/{pid}/status").split()
        self.same("it has no capability, and gains none", ["0" * 16] * 2, capabilities)
        found = self.scenario.exposure_of(REST)
        self.check(f"systemd-analyze security {REST}: at most {REST_EXPOSURE}", found <= REST_EXPOSURE, found)
        told = json.loads(self.out(self.asked("127.0.0.1")))
        version = self.out("license-agent --version").split()[-1]
        self.same("it answers /system/info over mutual TLS", version, told.get("version", told))
        refused = self.sh(self.asked("127.0.0.1", with_certificate=False), check=False)
        self.check("and refuses who shows no certificate", refused.status not in (0, 7, 28), refused)
        refused = self.sh(self.asked(GUEST_ADDRESS), check=False)
        self.same("at another address nobody listens", 7, refused.status)
        refused = self.sh(f"{self.asked('127.0.0.1')} --interface {GUEST_ADDRESS} --max-time 5", check=False)
        self.same("what comes from another address does not arrive", 28, refused.status)
        self.sh(f"printf '[listen]\\naddress = \"{GUEST_ADDRESS}\"\\n' | cat - {ETC}/manage.toml >/root/manage.toml")
        refused = self.sh(f"{REST} check-config --config /root/manage.toml", check=False)
        self.check("and it can be given no other address", refused.status == 78 and "loopback" in refused.stderr, refused)

    def asked(self, address: str, with_certificate: bool = True) -> str:
        certificate = "--cert /root/monitor.pem " if with_certificate else ""
        return f"curl --silent --show-error --cacert {ETC}/manage-cert.pem {certificate}https://{address}:{PORT}/system/info"

    # Doctor

    def doctor(self) -> dict[str, dict[str, Any]]:
        told = json.loads(self.out("license-agent-cli --json doctor", check=False))
        return {check["id"]: check for check in told["checks"]}

    def in_order(self, when: str) -> None:
        """`doctor` passes every check: no failure, no warning, nothing that could not be checked."""
        complaints = {name: check["findings"] for name, check in self.doctor().items() if check["state"] != "pass"}
        self.check(f"doctor is green {when}", not complaints, json.dumps(complaints) if complaints else "")

    def healthy(self) -> bool:
        done = self.sh("license-agent-cli --json status", check=False)
        return done.status == 0 and not json.loads(done.stdout)["machine"]

    def faults(self) -> None:
        """Puts in one fault after the other."""
        for fault in FAULTS:
            self.named(fault)

    def named(self, fault: Fault) -> None:
        self.sh(fault.put)
        texts: list[str] = []

        def is_named() -> bool:
            texts.append(self.out("license-agent-cli status", check=False))
            return fault.status in texts[-1]

        self.until(f"{fault.name}: status names it", is_named)
        found = self.doctor()[fault.check]
        causes = [finding["cause"] for finding in found["findings"] if finding["state"] in ("fail", "warn")]
        self.check(f"{fault.name}: doctor names it ({fault.check})", any(fault.doctor in cause for cause in causes), found)
        self.sh(fault.remove)
        self.scenario.active("license-agent")
        if fault.contact:
            self.contact()
        self.until(f"{fault.name}: status is fine again", self.healthy)
        self.in_order(f"without it ({fault.name})")

    def end(self) -> None:
        """Lets root and the users of [management] work without certificates again, as the other steps do."""
        self.sh("license-agent-cli admin-ca end --yes")

    def leave(self) -> None:
        """Takes the REST interface away: its package belongs to one release of the agent."""
        self.scenario.apt(f"purge {REST}")
        self.same(
            "a purge leaves nothing of it", "", self.out(f"ls -d /usr/lib/{REST} /etc/apparmor.d/{REST} 2>/dev/null || true")
        )
        self.sh(f"rm -f {ETC}/manage.toml {ETC}/manage-cert.pem {ETC}/manage-key.pem && sed -i 's/, \"{REST}\"]/]/' {CONFIG}")
        self.sh("systemctl reload license-agent")


def short(scenario: "Scenario") -> None:
    """Authentication, ssh-agent, the REST interface, and `doctor` on a machine in order."""
    admin = Administration(scenario)
    admin.set_up()
    admin.in_order("with certificates required and the REST interface")
    admin.end()


def long(scenario: "Scenario") -> None:
    """Every fault is named, and leaves nothing behind."""
    admin = Administration(scenario)
    if scenario.sh(f"id {ADMIN}", check=False).status:
        admin.set_up()
    else:
        admin.require()
        admin.restart()
    admin.faults()
    admin.end()
    admin.leave()
