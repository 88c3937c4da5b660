"""Patience with a busy Hub, and plain words about one that refuses."""

from pathlib import Path

import pytest
from hub_stand_in import Fault, HubStandIn, Waits
from huggingface_hub import HfApi, constants

from gen_vla.training.storage.hub_requests import HubError, ask


def check_token() -> str:
    return ask("check the token", HfApi().whoami)["name"]


def test_a_busy_server_is_asked_again_at_growing_intervals_or_when_it_says(hub: HubStandIn, waits: Waits) -> None:
    hub.faults.append(Fault("GET", "/whoami", status=503, times=3))
    assert check_token() == "ada"
    assert waits.seconds == [1.0, 2.0, 4.0]
    hub.faults.append(Fault("GET", "/whoami", status=429, times=1, headers={"Retry-After": "17"}))
    assert check_token() == "ada"
    assert waits.seconds[3:] == [17.0]
    hub.faults.append(
        Fault("GET", "/whoami", status=429, headers={"Retry-After": "3600"})
    )  # an hour is not waited for
    with pytest.raises(HubError, match=r"could not check the token: too many requests .*run it again in some minutes"):
        check_token()
    assert len(waits.seconds) == 4


def test_it_gives_up_after_five_attempts(hub: HubStandIn, waits: Waits, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault("GET", "/whoami"))
    with pytest.raises(HubError, match=r"could not check the token: no answer .*check the connection"):
        check_token()
    assert hub.requests("GET", "/whoami") == 5
    assert waits.seconds == [1.0, 2.0, 4.0, 8.0]
    assert capsys.readouterr().err.count("could not check the token yet") == 4


def test_offline_is_said(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="the variable HF_HUB_OFFLINE forbids asking the Hub; unset it"):
        check_token()
    assert hub.log == []


def test_a_mistake_of_ours_is_not_asked_again(waits: Waits) -> None:
    with pytest.raises(ZeroDivisionError):
        ask("divide", lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        ask("open it", lambda: Path("/no/such/file").read_bytes())
    assert waits.seconds == []
