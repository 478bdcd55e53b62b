"""Carries out the core's orders, one at a time. Each can be repeated: after a crash of either side the core asks again.

The state is written before and after what it describes, so a kill at any point leaves a version that runs and an order that can
be repeated. What a captured core can order is what `judging` lets pass, and a way back to the last good version; nothing else.
"""

import logging
from collections.abc import Callable, Iterable
from typing import BinaryIO, cast

import msgspec

from common.files import is_full, os_problem
from common.statetable import UnknownTransition
from contracts.jose import BadSignature, MalformedToken
from ipc.errors import RemoteProtocolError
from ipc.installermessages import (
    INSTALLER_VERSION,
    Check,
    Commit,
    Committed,
    Describe,
    Description,
    Installed,
    Prepare,
    Prepared,
    Problem,
    ProductList,
    Products,
    ProductState,
    Progress,
    Prove,
    Proved,
    Refused,
    RollBack,
    RolledBack,
    Switch,
    Switched,
    Withdraw,
    Withdrawn,
    to_installer_decoder,
)
from ipc.messages import Request
from settings.errors import ConfigError
from updatetrust.judgement import Disagreement, require_not_withdrawn
from updatetrust.metadata import MetadataRefused
from updatetrust.metadatafiles import BadMetadataFiles
from updatetrust.target import MalformedTarget
from updatetrust.trustfile import BadTrustFile
from updatetrust.version import MalformedVersion
from updatetrust.version import Version as Ordered

from . import VERSION
from .backends.deb import BUSY, NO_ROOM
from .contract import Backend, BackendRefused, Content, Place
from .judging import assess, recheck, withdraw
from .machine import Machine, found_product
from .phases import PHASES, Event, Phase
from .staged import Staged, StagedRefused, remove_copy
from .state import Pending, Product, State, StateNotWritten, StateUnusable, Version

log = logging.getLogger("installer")

ORDERS = ("products", "prepare", "switch", "prove", "commit", "roll_back", "withdraw")
RESTART_WITHIN_S = 150.0
"""Longer than apply.py waits for systemctl."""
CONFIG_WITHIN_S = 60.0
"""How long it may take to keep a product's configuration, or to put it back."""
PASSES = 3
"""A package is copied, judged and unpacked: its bytes are read three times."""

Send = Callable[[Progress], None]
"""Is given each progress, which may be many times a second."""


class OrderRefused(Exception):
    """The order cannot be carried out as things are."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def answer(frame: bytes, machine: Machine, send: Send) -> Request:
    """Returns the answer to one frame, whatever it holds.

    Args:
        frame: from the core.
        machine: what it is carried out on.
        send: is called while `prepare` goes on.
    """
    try:
        order = to_installer_decoder().decode(frame)
    except RemoteProtocolError as error:
        return refusal(error.request_id or 0, "malformed", str(error))
    if isinstance(order, Describe):
        return Description(v=INSTALLER_VERSION, id=order.id, program=VERSION, orders=ORDERS)
    code, text = "internal", ""
    try:
        return Orders(machine).carry_out(order, send)
    except (OrderRefused, BackendRefused, StagedRefused) as refused:
        code, text = refused.code, str(refused)
    except Disagreement as refused:
        code, text = refused.code.value, refused.text
    except MetadataRefused as refused:
        code, text = refused.fault.value, refused.text
    except (BadMetadataFiles, MalformedTarget, MalformedVersion) as refused:
        code, text = "metadata-malformed", str(refused)
    except (BadSignature, MalformedToken) as refused:
        code, text = "signature", str(refused)
    except ConfigError as refused:
        code, text = "configuration", "; ".join(refused.problems)
    except BadTrustFile as refused:
        code, text = "trust", str(refused)
    except StateNotWritten as refused:
        code, text = ("no-room" if refused.full else "disk"), str(refused)
    except StateUnusable as refused:
        code, text = "state", str(refused)
    except UnknownTransition as refused:
        code, text = "wrong-phase", str(refused)
    except OSError as error:
        code, text = _of_the_disk(error)
    log.warning("declined %s: %s (%s)", type(order).__name__.lower(), text, code)
    return refusal(order.id, code, text)


def _of_the_disk(error: OSError) -> tuple[str, str]:
    return ("no-room" if is_full(error) else "disk"), os_problem(error)


def refusal(order_id: int, code: str, text: str) -> Refused:
    """Makes the answer that declines an order."""
    return Refused(v=INSTALLER_VERSION, id=order_id, code=code[:64], text=text[:500])


class Orders:
    """Carries out one order.

    Args:
        machine: what it is carried out on.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._config = machine.config()
        self._state = machine.state.load()

    def carry_out(self, order: Request, send: Send) -> Request:
        """Carries an order out and returns its answer.

        Raises:
            OrderRefused and everything that `answer` turns into a refusal.
        """
        match order:
            case Products():
                return ProductList(v=INSTALLER_VERSION, id=order.id, products=tuple(self._products()))
            case Prepare():
                return self._prepare(order, send)
            case Switch():
                return self._switch(order)
            case Prove():
                return self._prove(order)
            case Commit():
                return self._commit(order)
            case RollBack():
                return self._roll_back(order)
            case Withdraw():
                return self._withdraw(order)
        raise TypeError(f"an order without an answer: {type(order).__name__}")

    # ---- what is there

    def _products(self) -> Iterable[ProductState]:
        for name, config in self._config.products.items():
            try:
                product = found_product(name, self._machine.backend(config), self._state)
            except (BackendRefused, OSError) as error:
                # The others can be updated all the same, and what this one is may be mended meanwhile.
                code, text = (error.code, str(error)) if isinstance(error, BackendRefused) else _of_the_disk(error)
                log.warning("%s: %s (%s)", name, text, code)
                yield ProductState(
                    product=name, backend=config.backend, running=None, previous=None, state="idle", pending=None, number=0,
                    problem=Problem(code=code[:64], text=text[:500]),
                )  # fmt: skip
                continue
            pending, before = product.pending, self._before(name, product)
            yield ProductState(
                product=name,
                backend=config.backend,
                running=None if product.good is None else _installed(product.places[product.good]),
                previous=None if before is None else _installed(product.places[before]),
                state=product.phase.value,
                pending=None if pending is None else _installed(product.places[pending.place]),
                number=0 if pending is None else pending.number,
            )

    # ---- the orders

    def _prepare(self, order: Prepare, send: Send) -> Prepared:
        backend, product = self._look(order.product)
        if product.pending is not None and product.places[product.pending.place].sha256 == order.sha256:
            require_not_withdrawn(product.pending.number, self._state.withdrawn)
            return _prepared(order, product.places[product.pending.place])
        PHASES.step(product.phase, Event.PREPARED)
        with Staged(self._machine.staging, order.sha256) as staged:
            # Adopted versions count for the judgement, so the product goes into the state that is judged by.
            assessed = assess(
                staged.papers(),
                order.product,
                order.sha256,
                self._machine.trust(),
                self._with(order.product, product),
                {name: each.backend for name, each in self._config.products.items()},
                Ordered.parse(VERSION),
            )
            total = PASSES * assessed.target.length

            def report(done: int) -> None:
                send(Progress(v=INSTALLER_VERSION, id=order.id, done=min(done, total), total=total))

            package = staged.copy(assessed.target.length, order.sha256, self._machine.work, report)
        with package:
            self._machine.trace("the package's copy: written")
            place: Place = "b" if backend.active() == "a" else "a"
            # From here on the place holds a part of something, or nothing.
            product = msgspec.structs.replace(
                product,
                phase=Phase.IDLE,
                pending=None,
                places={each: version for each, version in product.places.items() if each != place},
            )
            self._state = assessed.state
            self._save(order.product, product)
            target = assessed.target
            backend.stage(
                place,
                cast(BinaryIO, _Counted(package, target.length, report)),
                Content(target.product, target.version, target.build_id),
                self._machine.trace,
            )
        version = Version(version=target.version, build_id=target.build_id, sha256=order.sha256)
        product = msgspec.structs.replace(
            product,
            phase=PHASES.step(product.phase, Event.PREPARED),
            places=product.places | {place: version},
            pending=assessed.pending(place),
        )
        self._save(order.product, product)
        remove_copy(self._machine.work, self._machine.trace)
        log.info(
            "prepared %s %s (%s) by directive %d", order.product, target.version, target.build_id, assessed.directive.number
        )
        return _prepared(order, version)

    def _switch(self, order: Switch) -> Switched:
        backend, product = self._look(order.product)
        after = PHASES.step(product.phase, Event.SWITCHING)
        pending = _pending(product)
        version = product.places[pending.place]
        if version.sha256 != order.sha256:
            raise OrderRefused("other-package", f"prepared is the package {version.sha256}; prepare this one first")
        recheck(self._state, order.product, pending, version.version)
        if product.phase is Phase.STAGED:  # once it has switched, what is there may be the new version's
            self._save_config(order.product)
        pending = msgspec.structs.replace(pending, proved=False)
        self._save(order.product, msgspec.structs.replace(product, phase=after, pending=pending))
        try:
            backend.activate(pending.place, self._machine.trace)
        except BackendRefused as busy:
            if busy.code in (BUSY, NO_ROOM):  # nothing was begun, or it is undone: the core must not find an update on trial
                self._save(order.product, product)
            raise
        restarted, text = self._restart(order.product, backend)
        log.info("switched %s to %s%s", order.product, version.version, "" if restarted else f"; not restarted: {text}")
        return Switched(v=INSTALLER_VERSION, id=order.id, restarted=restarted, text=text)

    def _prove(self, order: Prove) -> Proved:
        backend, product = self._look(order.product)
        after = PHASES.step(product.phase, Event.PROVE)
        pending = msgspec.structs.replace(_pending(product), proved=False)
        active = backend.active()
        if active != pending.place and (reason := backend.returned(pending.place)):
            raise OrderRefused("rescued", f"{product.places[pending.place].version} was taken back: {reason}"[:500])
        if active != pending.place:
            raise OrderRefused("not-switched", f"{order.product} was not switched to the end; order switch again")
        product = msgspec.structs.replace(product, phase=after, pending=pending)
        self._save(order.product, product)
        checks = self._machine.examine(self._config.products[order.product])
        proved = _all_ok(checks)
        self._save(order.product, msgspec.structs.replace(product, pending=msgspec.structs.replace(pending, proved=proved)))
        log.info(
            "proved %s: %s", order.product, "it works" if proved else "; ".join(each.text for each in checks if not each.ok)
        )
        return Proved(v=INSTALLER_VERSION, id=order.id, ok=proved, checks=checks)

    def _commit(self, order: Commit) -> Committed:
        backend, product = self._look(order.product)
        if product.phase is Phase.IDLE and product.last == "committed" and product.good is not None:
            return _committed(order, product.places[product.good])
        after = PHASES.step(product.phase, Event.COMMITTED)
        pending = _pending(product)
        if not pending.proved or backend.active() != pending.place:
            raise OrderRefused(
                "not-proved", f"the new version of {order.product} was not found working; order prove, or roll_back"
            )
        backend.keep(pending.place, self._machine.trace)
        self._state = msgspec.structs.replace(
            self._state,
            executed=max(self._state.executed, pending.number),
            floors=self._state.floors | {order.product: pending.floor},
        )
        product = msgspec.structs.replace(product, phase=after, good=pending.place, pending=None, last="committed")
        self._save(order.product, product)
        version = product.places[pending.place]
        log.info("committed %s %s; the lowest version allowed is %s", order.product, version.version, pending.floor)
        return _committed(order, version)

    def _roll_back(self, order: RollBack) -> RolledBack:
        backend, product = self._look(order.product)
        if product.phase is Phase.IDLE and product.last == "rolled-back":
            return self._rolled_back(order, product, True, "")
        if product.phase is Phase.IDLE:
            product = self._on_trial_again(order.product, product)
            self._save(order.product, product)
        after = PHASES.step(product.phase, Event.ROLLED_BACK)
        restarted, text, config = True, "", ""
        if product.phase is not Phase.STAGED:
            # The good version is exempt from the floor: it ran until now, and a till without a version sells nothing.
            if product.good is None:
                backend.deactivate(self._machine.trace)
                restarted, text = (
                    False,
                    "there was no version before this one; what runs of it goes on until its unit is stopped",
                )
            else:
                backend.activate(product.good, self._machine.trace)
                # After a commit the way back installs a version like any other; nobody will commit it.
                backend.keep(product.good, self._machine.trace)
                config = self._restore_config(order.product)
                restarted, text = self._restart(order.product, backend)
        product = msgspec.structs.replace(product, phase=after, pending=None, last="rolled-back")
        self._save(order.product, product)
        log.warning("rolled %s back: %s%s", order.product, order.reason, "" if restarted else f"; not restarted: {text}")
        return self._rolled_back(order, product, restarted, text, config)

    def _withdraw(self, order: Withdraw) -> Withdrawn:
        # What is prepared by it stays where it is, and is not switched to; what is switched already is finished.
        state = withdraw(order.directive, order.key_set, self._machine.trust(), self._state)
        if state is None:
            raise OrderRefused("withdraws-nothing", "the directive withdraws no other one; order prepare for what it orders")
        if state != self._state:
            self._machine.state.save(state)
            log.info("no directive up to %d counts any more: the license server has withdrawn it", state.withdrawn)
        return Withdrawn(v=INSTALLER_VERSION, id=order.id, number=state.withdrawn)

    # ---- what several of them do

    def _look(self, name: str) -> tuple[Backend, Product]:
        config = self._config.products.get(name)
        if config is None:
            raise OrderRefused("unknown-product", f"installer.toml has no [product.{name}]; add it, or withdraw the directive")
        backend = self._machine.backend(config)
        return backend, found_product(name, backend, self._state)

    def _before(self, name: str, product: Product) -> Place | None:
        """The place of the version that ran before the one that was committed last, if it may run again."""
        if product.phase is not Phase.IDLE or product.last != "committed":
            return None  # what an update left that was taken back has not proved itself
        floor = self._state.floors.get(name)
        for place, version in product.places.items():
            if place != product.good and (floor is None or Ordered.parse(version.version) >= Ordered.parse(floor)):
                return place
        return None

    def _on_trial_again(self, name: str, product: Product) -> Product:
        """The product as if its last commit had not come yet, so that the way back is that of a trial, with its repetitions."""
        before = self._before(name, product)
        if before is None or product.good is None:
            raise OrderRefused(
                "wrong-phase",
                f"no update of {name} is under way, and no version that was committed before and is not below the lowest one "
                "allowed is kept; an older version needs a directive",
            )
        floor = self._state.floors.get(name, product.places[before].version)
        pending = Pending(place=product.good, number=self._state.executed, not_after=0, floor=floor)
        return msgspec.structs.replace(product, phase=Phase.PROVING, good=before, pending=pending)

    def _with(self, name: str, product: Product) -> State:
        return msgspec.structs.replace(self._state, products=self._state.products | {name: product})

    def _save(self, name: str, product: Product) -> None:
        self._state = self._with(name, product)
        self._machine.state.save(self._state)

    def _restart(self, product: str, backend: Backend) -> tuple[bool, str]:
        if backend.restarts:
            return True, ""
        checks = self._machine.jobs.restart(product, RESTART_WITHIN_S)
        return _all_ok(checks), "; ".join(check.text for check in checks if not check.ok)[:500]

    def _save_config(self, product: str) -> None:
        if self._config.products[product].config is None:
            return
        checks = self._machine.upgrades.save_config(product, CONFIG_WITHIN_S)
        if not _all_ok(checks):
            text = "; ".join(check.text for check in checks if not check.ok)
            if any(check.name == NO_ROOM for check in checks):
                raise OrderRefused("no-room", text)
            raise OrderRefused("config-not-kept", f"{text}; without it there is no way back")

    def _restore_config(self, product: str) -> str:
        """Puts the configuration back, and says what was changed; the way back goes on without it, for a till has to sell."""
        if self._config.products[product].config is None:
            return ""
        checks = self._machine.upgrades.restore_config(product, CONFIG_WITHIN_S)
        text = "; ".join(check.text for check in checks if check.text)
        if not _all_ok(checks):
            text = f"the configuration was not put back, do it by hand: {text}"
        if text:
            log.warning("%s: %s", product, text)
        return text[:500]

    def _rolled_back(self, order: RollBack, product: Product, restarted: bool, text: str, config: str = "") -> RolledBack:
        version = "" if product.good is None else product.places[product.good].version
        return RolledBack(v=INSTALLER_VERSION, id=order.id, version=version, restarted=restarted, text=text, config=config)


class _Counted:
    """A package that reports how far it was read."""

    def __init__(self, file: BinaryIO, done: int, report: Callable[[int], None]) -> None:
        self._file, self._done, self._report = file, done, report

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._done += len(data)
        self._report(self._done)
        return data

    def seek(self, place: int) -> int:
        return self._file.seek(place)


def _pending(product: Product) -> Pending:
    if product.pending is None:  # the state's own check lets no other phase than idle through without one
        raise ValueError(f"a product that is {product.phase.value} has no pending update")
    return product.pending


def _all_ok(checks: tuple[Check, ...]) -> bool:
    # No check at all is not a pass.
    return bool(checks) and all(check.ok for check in checks)


def _installed(version: Version) -> Installed:
    return Installed(version=version.version, build_id=version.build_id)


def _prepared(order: Prepare, version: Version) -> Prepared:
    return Prepared(v=INSTALLER_VERSION, id=order.id, version=version.version, build_id=version.build_id)


def _committed(order: Commit, version: Version) -> Committed:
    return Committed(v=INSTALLER_VERSION, id=order.id, version=version.version, build_id=version.build_id)
