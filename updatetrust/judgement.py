"""Decides whether directive, repository and machine agree. Pure. The order of the checks is here and nowhere else.

`agree` needs nothing but public facts, so the updater asks it before it downloads. `judge` adds what only root keeps, so the
installer asks it before it unpacks and again before it switches. Neither says when: the core keeps the window, and at worst a
captured core installs at a bad hour what directive, vendor and floor allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from contracts.directive import Directive, is_plausible

from .target import Kind, Target
from .trustfile import UpdateTrust
from .version import Version


class Code(StrEnum):
    """Why a package is not installed. Append-only."""

    ORDERS_NOTHING = "orders-nothing"
    """The directive only withdraws another."""
    OTHER_AGENT = "other-agent"
    DIRECTIVE_EXPIRED = "directive-expired"
    NOT_IN_REPOSITORY = "not-in-repository"
    OTHER_PRODUCT = "other-product"
    """Directive and repository name different products, or this machine has no such product."""
    LENGTH_DIFFERS = "length-differs"
    DIGEST_DIFFERS = "digest-differs"
    VERSION_DIFFERS = "version-differs"
    BUILD_DIFFERS = "build-differs"
    RELEASED_LATER = "released-later"
    """The repository dates the package after the directive's end."""
    OTHER_HARDWARE = "other-hardware"
    AGENT_TOO_OLD = "agent-too-old"
    NO_FLOOR = "no-floor"
    """The vendor's offline key has set no floor for the product, so it does not know that product."""
    BELOW_FLOOR = "below-floor"
    NUMBER_AHEAD = "number-ahead"
    """The directive's number is far above every one that the license server can have come to."""
    DIRECTIVE_WITHDRAWN = "directive-withdrawn"
    """The license server has taken the directive back."""
    DIRECTIVE_REPLAYED = "directive-replayed"
    KIND_DIFFERS = "kind-differs"
    DOWNGRADE_NOT_ALLOWED = "downgrade-not-allowed"


class Disagreement(Exception):
    """The package must not be installed.

    Attributes:
        code: the reason.
        text: the reason in words.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{text} ({code.value})")
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Installed:
    """One product of this machine, as root's configuration and state have it.

    Attributes:
        kind: how its packages are installed.
        running: the version that was last committed; None before the first.
    """

    kind: Kind
    running: Version | None


@dataclass(frozen=True, slots=True)
class MachineState:
    """What only root keeps.

    Attributes:
        executed: the highest number of a directive that the installer has switched by; 0 before the first.
        withdrawn: the highest number of a directive that the server has withdrawn; 0 before the first.
        products: those of root's configuration.
    """

    executed: int
    products: Mapping[str, Installed]
    withdrawn: int = 0


def effective_floors(kept: Mapping[str, Version], signed: Mapping[str, Version]) -> dict[str, Version]:
    """The floors that count: of each product that the vendor's metadata names, the higher one of metadata and machine.

    Args:
        kept: raised at each commit; root keeps them.
        signed: of the repository's verified metadata.
    """
    return {product: max(floor, kept.get(product, floor)) for product, floor in signed.items()}


def agree(
    directive: Directive,
    target: Target | None,
    trust: UpdateTrust,
    floors: Mapping[str, Version],
    agent: Version,
    now: int,
) -> Target:
    """Checks that the vendor's repository has just the package that the server orders, and that it is for this machine.

    Args:
        directive: with a verified signature.
        target: what the verified metadata has under the directive's path; None if it has nothing there.
        trust: root's file.
        floors: see `effective_floors`.
        agent: version of the license agent that runs.
        now: seconds since 1970 UTC; a floor of the time is enough, since nothing is refused for being early.

    Returns:
        The target, which is there.

    Raises:
        Disagreement: with the first reason in the order of the checks.
    """
    if directive.withdraws is not None:
        raise Disagreement(
            Code.ORDERS_NOTHING, f"directive {directive.number} withdraws directive {directive.withdraws} and orders nothing"
        )
    if directive.agent_id != trust.agent_id:
        raise Disagreement(Code.OTHER_AGENT, f"directive {directive.number} is for the agent {directive.agent_id}")
    if now > directive.not_after:
        raise Disagreement(Code.DIRECTIVE_EXPIRED, f"directive {directive.number} has expired; assign the update again")
    if target is None or target.path != directive.target:
        raise Disagreement(
            Code.NOT_IN_REPOSITORY, f"the update repository has no {directive.target}; publish it, or withdraw the directive"
        )
    said = {
        Code.OTHER_PRODUCT: ("product", directive.product, target.product),
        Code.LENGTH_DIFFERS: ("length", directive.length, target.length),
        Code.DIGEST_DIFFERS: ("SHA-256", directive.sha256, target.sha256),
        Code.VERSION_DIFFERS: ("version", directive.version, target.version),
        Code.BUILD_DIFFERS: ("build id", directive.build_id, target.build_id),
    }
    for code, (what, ordered, published) in said.items():
        if ordered != published:
            raise Disagreement(
                code, f"the {what} of {directive.target} is {ordered} in the directive and {published} in the repository"
            )
    # The installer's floor of the time follows what was installed: neither owner alone can push it so far that all has expired.
    if target.released_at > directive.not_after:
        raise Disagreement(
            Code.RELEASED_LATER,
            f"{target.path} is dated after the end of directive {directive.number}; check the publisher's clock",
        )
    if trust.hardware not in target.hardware:
        raise Disagreement(
            Code.OTHER_HARDWARE, f"{target.path} is for {', '.join(target.hardware)}; this machine is {trust.hardware}"
        )
    if agent < Version.parse(target.min_agent):
        raise Disagreement(
            Code.AGENT_TOO_OLD, f"{target.path} needs license-agent {target.min_agent}; this is {agent}; update it first"
        )
    floor = floors.get(target.product)
    if floor is None:
        raise Disagreement(Code.NO_FLOOR, f"the vendor's offline key has set no lowest version for {target.product}")
    # threat-model T48: a stolen server key orders no version that the vendor has ended.
    if Version.parse(target.version) < floor:
        raise Disagreement(Code.BELOW_FLOOR, f"{target.product} {target.version} is below the lowest version allowed, {floor}")
    return target


def require_not_withdrawn(number: int, withdrawn: int) -> None:
    """Checks that the license server has not taken a directive back.

    Args:
        number: the directive's.
        withdrawn: the highest number of a directive that was withdrawn. Those below are void too: the server has one
            directive for an agent at a time.

    Raises:
        Disagreement: it has.
    """
    if number <= withdrawn:
        raise Disagreement(
            Code.DIRECTIVE_WITHDRAWN, f"the license server has withdrawn directive {number}; assign the update again"
        )


def require_plausible(directive: Directive, floor_time: int) -> None:
    """Checks that the server can have come to a directive's number: what root remembers of it must not end all later ones.

    Args:
        directive: with a verified signature.
        floor_time: as in `judge`.

    Raises:
        Disagreement: it cannot.
    """
    # threat-model T48: a stolen server key orders nothing after it was replaced, and keeps nobody from ordering.
    if not is_plausible(directive, floor_time):
        raise Disagreement(
            Code.NUMBER_AHEAD, f"directive {directive.number} is numbered decades ahead of the time; assign the update again"
        )


def judge(
    directive: Directive,
    target: Target | None,
    trust: UpdateTrust,
    floors: Mapping[str, Version],
    agent: Version,
    state: MachineState,
    floor_time: int,
) -> Target:
    """Checks all that `agree` does, and that the machine's own state allows the installation.

    Args:
        directive: as in `agree`.
        target: as in `agree`.
        trust: as in `agree`.
        floors: as in `agree`.
        agent: as in `agree`.
        state: what root keeps.
        floor_time: a time that is certainly past, seconds since 1970 UTC.

    Returns:
        The target, which is there.

    Raises:
        Disagreement: with the first reason in the order of the checks.
    """
    found = agree(directive, target, trust, floors, agent, floor_time)
    require_plausible(directive, floor_time)
    require_not_withdrawn(directive.number, state.withdrawn)
    if directive.number <= state.executed:
        raise Disagreement(
            Code.DIRECTIVE_REPLAYED,
            f"directive {directive.number} is not above {state.executed}, which was executed; assign the update again",
        )
    installed = state.products.get(found.product)
    if installed is None:
        raise Disagreement(Code.OTHER_PRODUCT, f"this machine's installer.toml has no product {found.product}")
    if installed.kind is not found.kind:
        raise Disagreement(
            Code.KIND_DIFFERS,
            f"{found.path} is a package of the kind {found.kind.value}; installer.toml says {installed.kind.value}",
        )
    if installed.running is not None and Version.parse(found.version) < installed.running and not directive.downgrade:
        raise Disagreement(
            Code.DOWNGRADE_NOT_ALLOWED,
            f"{found.product} {found.version} is below {installed.running}, which runs; a downgrade needs approval",
        )
    return found
