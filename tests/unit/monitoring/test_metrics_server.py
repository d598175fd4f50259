"""The server of a process's metrics and probes."""

import socket

import pytest

from worker.monitoring.http_server import MetricsServer, NoPort


@pytest.mark.parametrize("address", ["localhots.invalid", "192.0.2.1"])
def test_an_address_that_is_not_of_this_machine_is_told_from_a_taken_port(address: str) -> None:
    """The first is the fault of METRICS_ADDRESS, the second that of METRICS_PORT."""
    with pytest.raises(NoPort, match=f"{address}:0 cannot be opened") as caught:
        MetricsServer.start(address, 0, {})
    assert caught.value.of_address
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(NoPort, match="cannot be opened: Address already in use") as caught:
            MetricsServer.start("127.0.0.1", taken.getsockname()[1], {}, ports=1)
        assert not caught.value.of_address
