"""`require` is answered by the license that a till would want; the pages of a list have each license once."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.licenses.choice import Held, HeldLicenses, page
from ipc.answers import NEAREST_FIRST, LicenseReason

FEATURES, PRODUCTS = ["sales", "fuel", "scale"], ["till", "pump"]
opened = st.builds(
    lambda number, reason, features, product, expires: Held(
        f"l-{number}",
        reason,
        True,
        0,
        expires,
        tuple(features),
        {} if product is None else {"product": product},
    ),
    st.integers(0, 40),
    st.sampled_from(LicenseReason),
    st.sets(st.sampled_from(FEATURES)),
    st.none() | st.just("") | st.sampled_from(PRODUCTS),
    st.integers(1, 4),
)
unopened = st.builds(lambda number, reason: Held(f"u-{number}", reason), st.integers(0, 9), st.sampled_from(NEAREST_FIRST[1:]))
machines = st.lists(opened | unopened, max_size=12, unique_by=lambda held: held.license_id)
products = st.none() | st.sampled_from([*PRODUCTS, "none has it"])
allowed = st.none() | st.frozensets(st.sampled_from(PRODUCTS))


def able(held: Held, feature: str, product: str | None, known: frozenset[str] | None) -> bool:
    return (
        held.opened
        and feature in held.features
        and (product is None or held.metadata.get("product") == product)
        and (known is None or held.metadata.get("product") in known)
    )


@given(machines, st.sampled_from(FEATURES), products, allowed)
def test_no_license_is_nearer_to_valid_than_the_chosen_one(
    machine: list[Held], feature: str, product: str | None, known: frozenset[str] | None
) -> None:
    chosen = HeldLicenses(machine).choose(feature, product, known)
    candidates = [held for held in machine if able(held, feature, product, known)]
    if not candidates:
        candidates = [held for held in machine if not held.opened]
    if not candidates:
        assert chosen is None
        return
    assert chosen in candidates
    rank = NEAREST_FIRST.index(chosen.reason)
    assert all(NEAREST_FIRST.index(other.reason) >= rank for other in candidates)
    alike = [other for other in candidates if other.reason is chosen.reason]
    assert (chosen.expires_at or 0) == max(other.expires_at or 0 for other in alike)
    assert chosen.valid == any(other.valid for other in candidates)


@given(machines, st.sampled_from(FEATURES), products, allowed, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_licenses(
    machine: list[Held], feature: str, product: str | None, known: frozenset[str] | None, random: object
) -> None:
    before = HeldLicenses(machine).choose(feature, product, known)
    random.shuffle(machine)  # type: ignore[attr-defined]
    assert HeldLicenses(machine).choose(feature, product, known) == before


@given(machines, opened, st.sampled_from(FEATURES), products)
def test_another_license_never_takes_a_valid_answer_away(
    machine: list[Held], more: Held, feature: str, product: str | None
) -> None:
    before = HeldLicenses(machine).choose(feature, product)
    if before is not None and before.valid and all(held.license_id != more.license_id for held in machine):
        after = HeldLicenses([*machine, more]).choose(feature, product)
        assert after is not None and after.valid and (after.expires_at or 0) >= (before.expires_at or 0)


@given(machines, st.text(max_size=5), allowed)
def test_a_license_of_a_product_that_the_caller_may_not_know_is_neither_listed_nor_chosen(
    machine: list[Held], after: str, known: frozenset[str] | None
) -> None:
    licenses = HeldLicenses(machine)
    listed = list(licenses.after(after, known))
    assert [held.license_id for held in listed] == sorted(
        held.license_id for held in machine if held.license_id > after and (known is None or held.product in known)
    )
    for feature in FEATURES:
        chosen = licenses.choose(feature, None, known)
        assert chosen is None or not chosen.opened or known is None or chosen.product in known


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(1, 50)), max_size=60, unique_by=lambda one: one[0]), st.integers(1, 9)
)
def test_pages_have_each_license_once_within_their_bounds(sizes: list[tuple[int, int]], most: int) -> None:
    by_id = {f"{number:03d}": size for number, size in sizes}
    licenses = HeldLicenses([Held(license_id, LicenseReason.OK, True) for license_id in by_id])
    found: list[str] = []
    after = ""
    for _ in range(len(by_id) + 1):
        held, more = page(licenses.after(after), lambda one: by_id[one.license_id], most, 100)
        found += [one.license_id for one in held]
        assert len(held) <= most and (sum(by_id[one.license_id] for one in held) <= 100 or len(held) == 1)
        if not more:
            break
        after = held[-1].license_id
    assert found == sorted(by_id)


def test_a_license_larger_than_a_page_has_one_of_its_own() -> None:
    licenses = [Held(license_id, LicenseReason.OK, True) for license_id in "abc"]
    assert page(licenses, lambda _: 999, 32, 100) == (licenses[:1], True)
    assert page([], lambda _: 999, 32, 100) == ([], False)
