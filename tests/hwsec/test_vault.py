"""A vault opens what it wrapped, for one block, from any thread, and leaves nothing behind."""

import copy
import threading

import pytest
from cryptography.exceptions import InvalidTag

from hwsec.secretmem import SecretBuffer
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret, os_random_into
from tests.support.waiting import READY_S

SECRET = b"Ex0mple-secret-0f-32-bytes-xyz!!"
OTHER = bytes(range(32))


def wrap(vault: Vault, secret: bytes = SECRET) -> WrappedSecret:
    with SecretBuffer(len(secret)) as buffer:
        buffer.view[:] = secret
        return vault.wrap(buffer)


def opened(vault: Vault, wrapped: WrappedSecret) -> bytes:
    with vault.open(wrapped) as secret:
        return bytes(secret.view)


def test_what_was_wrapped_can_be_opened_again_and_again(vault: Vault) -> None:
    first, second = wrap(vault, SECRET), wrap(vault, OTHER)
    for _time in range(3):
        assert opened(vault, first) == SECRET
        assert opened(vault, second) == OTHER


def test_a_wrapped_secret_tells_nothing(vault: Vault) -> None:
    wrapped = wrap(vault)
    assert str(wrapped) == repr(wrapped) == f"{wrapped}" == "<wrapped secret>"
    stored = wrapped.nonce + wrapped.ciphertext
    assert SECRET not in stored
    assert SECRET[:8] not in stored
    assert copy.copy(wrapped) == wrapped


def test_no_nonce_is_used_twice(vault: Vault) -> None:
    wrapped = [wrap(vault) for _number in range(200)]
    assert len({each.nonce for each in wrapped}) == 200
    assert len({each.ciphertext for each in wrapped}) == 200


def test_a_secret_is_gone_after_its_block(vault: Vault) -> None:
    wrapped = wrap(vault)
    with vault.open(wrapped) as secret:
        pages = memoryview(secret._map)
        assert pages[:32] == SECRET
    assert bytes(pages) == bytes(len(pages))


def test_a_secret_is_gone_after_an_error_in_its_block_and_the_next_is_served(vault: Vault) -> None:
    wrapped = wrap(vault)
    for _time in range(2):
        with pytest.raises(ZeroDivisionError), vault.open(wrapped) as secret:
            pages = memoryview(secret._map)
            raise ZeroDivisionError
        assert bytes(pages) == bytes(len(pages))
    assert opened(vault, wrapped) == SECRET


def test_open_blocks_nest_in_buffers_of_their_own(vault: Vault) -> None:
    first, second = wrap(vault, SECRET), wrap(vault, OTHER)
    with vault.open(first) as outer:
        with vault.open(second) as inner, vault.open(first) as innermost:
            pages = [memoryview(inner._map), memoryview(innermost._map)]
            assert (bytes(outer.view), bytes(inner.view), bytes(innermost.view)) == (SECRET, OTHER, SECRET)
        assert bytes(outer.view) == SECRET
        assert all(bytes(each) == bytes(len(each)) for each in pages)


def test_threads_open_their_secrets_at_the_same_time(vault: Vault) -> None:
    count, rounds = 8, 50
    together = threading.Barrier(count)
    inside = threading.Barrier(count)
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            mine = bytes([number]) * SECRET_BYTES
            wrapped = wrap(vault, mine)
            together.wait(READY_S)
            with vault.open(wrapped) as secret:
                inside.wait(READY_S)  # all of them are open now
                if bytes(secret.view) != mine:
                    wrong.append((number, "together"))
                inside.wait(READY_S)
            for time in range(rounds):
                if opened(vault, wrap(vault, mine)) != mine or opened(vault, wrapped) != mine:
                    wrong.append((number, time))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(READY_S)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_another_vault_cannot_open_it(vault: Vault) -> None:
    wrapped = wrap(vault)
    stranger = Vault()
    for _time in range(2):
        with pytest.raises(InvalidTag):
            opened(stranger, wrapped)
    assert opened(stranger, wrap(stranger)) == SECRET
    stranger.close()


def test_a_changed_ciphertext_is_refused(vault: Vault) -> None:
    wrapped = wrap(vault)
    for position in range(len(wrapped.ciphertext)):
        changed = bytearray(wrapped.ciphertext)
        changed[position] ^= 1
        with pytest.raises(InvalidTag):
            opened(vault, WrappedSecret(wrapped.nonce, bytes(changed)))


@pytest.mark.parametrize("size", [1, 31, 33, 64])
def test_only_secrets_of_32_bytes_are_wrapped(vault: Vault, size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        wrap(vault, bytes(size))


def test_a_closed_vault_opens_and_wraps_nothing() -> None:
    vault = Vault()
    wrapped = wrap(vault)
    key, scratch = memoryview(vault._key._map), memoryview(vault._scratch._map)
    assert any(key)
    vault.close()
    vault.close()
    assert not any(key)
    assert not any(scratch)
    for _time in range(2):
        with pytest.raises(ValueError, match="closed"):
            opened(vault, wrapped)
        with pytest.raises(ValueError, match="closed"):
            wrap(vault)


def test_closing_a_vault_leaves_an_open_secret_until_its_block_ends() -> None:
    vault = Vault()
    wrapped = wrap(vault)
    with vault.open(wrapped) as first, vault.open(wrapped) as second:
        pages = [memoryview(first._map), memoryview(second._map)]
        vault.close()
        assert bytes(first.view) == bytes(second.view) == SECRET
    assert not any(any(each) for each in pages)


def test_a_vault_prints_no_key(vault: Vault) -> None:
    told = f"{vault} {vars(vault)}"
    assert bytes(vault._key.view).hex() not in told
    assert "secret of 32 bytes" in told


def test_random_fills_the_whole_view() -> None:
    seen = set()
    for _time in range(20):
        data = bytearray(300)
        os_random_into(memoryview(data)[:299])
        assert data[299] == 0
        assert len(set(data[:299])) > 100
        seen.add(bytes(data))
    assert len(seen) == 20
    os_random_into(memoryview(bytearray()))
