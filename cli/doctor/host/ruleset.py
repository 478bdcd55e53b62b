"""Judges what gets in and out by a rule set of nftables, as `nft --json list ruleset` prints it. Performs no IO."""

from dataclasses import dataclass, field
from typing import Any

IPV4, IPV6 = "ip", "ip6"
_COVERS = {"ip": (IPV4,), "ip6": (IPV6,), "inet": (IPV4, IPV6)}
_ENDS = ("drop", "reject")
_HARMLESS_PORTS = {67, 68, 546, 547}
"""DHCP: the other side is not known beforehand."""

Rule = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Open:
    """A rule that lets pass what it should not.

    Attributes:
        chain: `family table chain`, as nft names it.
        handle: of the rule.
        what: which protocol and port, or `everything`.
        lists: whether it names ports.
        certain: False where it has conditions of iptables, which nft does not show.
    """

    chain: str
    handle: int
    what: str
    lists: bool = False
    certain: bool = True


@dataclass(slots=True)
class Side:
    """What a hook does.

    Attributes:
        refuses: the families (`ip`, `ip6`) that are refused unless a rule accepts.
        open: rules that accept from or to any address.
        ports: what is accepted from listed or any addresses: protocol and port.
    """

    refuses: set[str] = field(default_factory=set)
    open: list[Open] = field(default_factory=list)
    ports: set[tuple[str, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Chain:
    name: str
    family: str
    hook: str
    policy: str
    rules: list[Rule] = field(default_factory=list)


def side_of(reply: dict[str, Any], hook: str) -> Side:
    """What the rule set does with packets at a hook.

    Args:
        reply: of nft.
        hook: `input` or `output`.
    """
    chains: dict[tuple[str, str, str], _Chain] = {}
    for entry in reply.get("nftables", []):
        if (found := entry.get("chain")) is not None:
            key = (found["family"], found["table"], found["name"])
            base = found.get("type") == "filter"
            chains[key] = _Chain(" ".join(key), found["family"], found.get("hook", "") if base else "", found.get("policy", ""))
        elif (found := entry.get("rule")) is not None:
            chains[found["family"], found["table"], found["chain"]].rules += _spread(found)
    side = Side()
    field_ = "saddr" if hook == "input" else "daddr"
    for key, chain in chains.items():
        if chain.hook == hook and chain.family in _COVERS:
            everything = _walk(key, chains, field_, side, set())
            if (chain.policy == "drop" or _refuses_at_its_end(chain)) and not everything:
                side.refuses.update(_COVERS[chain.family])
    return side


def _spread(rule: Rule) -> list[Rule]:
    """A rule with a verdict map as the rules that it is short for; one with a named map accepts who knows what."""
    for at, part in enumerate(rule["expr"]):
        if "vmap" not in part:
            continue
        data = part["vmap"].get("data")
        entries = data.get("set", []) if isinstance(data, dict) else [[data, {"accept": None}]]
        return [
            {**rule, "expr": [*rule["expr"][:at], {"match": {"op": "==", "left": part["vmap"]["key"], "right": key}}, verdict]}
            for key, verdict in entries
        ]
    return [rule]


def _refuses_at_its_end(chain: _Chain) -> bool:
    return any(not _matches(rule) and any(end in part for part in rule["expr"] for end in _ENDS) for rule in chain.rules[-1:])


def _matches(rule: Rule) -> list[dict[str, Any]]:
    """The conditions of a rule; a limit is one too."""
    return [part for part in rule["expr"] if "match" in part or "xt" in part or "limit" in part]


def _walk(
    key: tuple[str, str, str],
    chains: dict[tuple[str, str, str], _Chain],
    address: str,
    side: Side,
    seen: set[tuple[str, str, str]],
) -> bool:
    """Notes the open rules of a chain and of those that it jumps to; returns whether one accepts everything."""
    if key in seen or key not in chains:
        return False
    seen.add(key)
    everything = False
    for rule in chains[key].rules:
        matches = _matches(rule)
        if not matches and any(end in part for part in rule["expr"] for end in _ENDS):
            break  # nothing gets past it
        for part in rule["expr"]:
            target = part.get("jump") or part.get("goto")
            if isinstance(target, dict):
                below = _walk((key[0], key[1], target["target"]), chains, address, side, seen)
                everything = everything or (below and not matches)
        if not any("accept" in part for part in rule["expr"]):
            continue
        if not matches:
            everything = True
        side.ports |= _ports(matches)
        if not _is_bounded(matches, address):
            side.open.append(
                Open(
                    chains[key].name,
                    int(rule.get("handle", 0)),
                    _what(matches),
                    bool(_ports(matches)),
                    not any("xt" in part for part in matches),
                )
            )
    return everything


def _sides(part: dict[str, Any]) -> tuple[dict[str, Any], str, Any]:
    match = part.get("match", {})
    left = match.get("left")
    return (left if isinstance(left, dict) else {}), match.get("op", ""), match.get("right")


def _is_bounded(matches: list[dict[str, Any]], address: str) -> bool:
    """Whether conditions bind a rule to listed addresses, to this machine, or to what was let pass before."""
    for part in matches:
        left, op, right = _sides(part)
        payload, meta = left.get("payload", {}), left.get("meta", {})
        if op not in ("==", "in"):
            continue
        if payload.get("field") == address and not _is_whole(right):
            return True
        if meta.get("key") in ("iif", "oif", "iifname", "oifname") and right == "lo":
            return True
        if left.get("ct", {}).get("key") == "state" and not {"new", "untracked"} & set(_items(right)):
            return True
        names_protocol = meta.get("key") == "l4proto" or payload.get("field") in ("protocol", "nexthdr")
        if payload.get("protocol") in ("icmp", "icmpv6") or (names_protocol and set(_items(right)) <= {"icmp", "ipv6-icmp"}):
            return True
        if payload.get("field") == "dport" and set(_numbers(right)) and set(_numbers(right)) <= _HARMLESS_PORTS:
            return True
    return False


def _is_whole(right: Any) -> bool:
    """Whether an address is that of everybody: 0.0.0.0/0."""
    return any(isinstance(item, dict) and item.get("prefix", {}).get("len") == 0 for item in _items(right))


def _items(right: Any) -> list[Any]:
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    return right if isinstance(right, list) else [right]


def _numbers(right: Any) -> list[int]:
    found: list[int] = []
    for item in _items(right):
        if isinstance(item, int):
            found.append(item)
        elif isinstance(item, dict) and "range" in item:
            first, last = item["range"]
            found += range(first, last + 1)
        else:
            return []
    return found


def _ports(matches: list[dict[str, Any]]) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for part in matches:
        left, op, right = _sides(part)
        payload = left.get("payload", {})
        if op == "==" and payload.get("field") == "dport":
            protocols = ("tcp", "udp") if payload.get("protocol") == "th" else (payload.get("protocol", ""),)
            found.update((protocol, number) for protocol in protocols for number in _numbers(right))
    return found


def _what(matches: list[dict[str, Any]]) -> str:
    ports = sorted(_ports(matches))
    if ports:
        return ", ".join(f"{protocol} port {port}" for protocol, port in ports[:3]) + (", …" if len(ports) > 3 else "")
    return "everything" if not matches else "what its other conditions match"
