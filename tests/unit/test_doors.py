"""Who shares turns with whom, where there are no keys."""

import pytest

from bytelm_server.doors import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("127.0.0.1", ""),
        ("127.3.4.5", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("unknown", ""),
    ],
)
def test_a_client_is_as_many_addresses_as_it_may_have(address: str, network: str) -> None:
    assert network_of((address, 1234)) == network


def test_a_client_without_an_address_is_this_machine() -> None:
    assert network_of(None) == ""
