"""The real openai SDK, with retries of its own, in front of an upstream that fails: how often that one is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI

from tests.kit.acts import answer
from tests.kit.fake_upstream import in_thread
from tests.kit.processes import Sidecar

pytestmark = pytest.mark.real

CALLS = 40
POLICIES = """\
server:
  listen: ${UNDERSTUDY_LISTEN}
  admin: ${UNDERSTUDY_ADMIN}
  access_log: false
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    breaker: {enabled: false}
    retry: {base_s: 0.001}
    # ten, however few calls there are, as by default in ten seconds: a slow machine's calls are in one window, too
    budget: {window_s: 1000, per_s_min: 0.01}
    tiers:
      - {kind: upstream, name: model, url: URL}
"""


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_sdk_with_five_retries_of_its_own_does_not_multiply_ours(folder: Path, tmp_path: Path, status: int):
    """T29. The breaker is switched off, so that it is the budget and `x-should-retry: false` that are seen."""
    with in_thread(answer(status, body={"error": {"message": "down", "type": "server_error"}})) as upstream:
        (folder / "chat.yaml").write_text(POLICIES.replace("URL", upstream.url))
        with Sidecar(folder, tmp_path / "state") as sidecar:
            client = OpenAI(base_url=sidecar.url + "/v1", api_key="unused", max_retries=5)
            for _ in range(CALLS):
                with pytest.raises(APIStatusError) as error:
                    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
                assert (error.value.status_code, error.value.response.headers["x-should-retry"]) == (status, "false")
            client.close()
        attempts = len(upstream.heard)
    print(f"status {status}: {attempts / CALLS:.2f} upstream attempts for each call of the SDK; unhindered it makes 6")
    # within one window: each call once, a fifth of them again, and ten more
    assert attempts <= CALLS * 1.2 + 10
