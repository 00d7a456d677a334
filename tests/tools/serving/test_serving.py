"""A classifier over a real socket: the scores of `predict`, limits, and an orderly end."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from ulmfit_pipe import Predictor, ServeError, ServeSettings, build_app, serve
from ulmfit_pipe.tools.serving.batching import Batcher, QueueFullError, StoppingError

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
TEXTS = ["a warm film", "dull", "the music was slow and dull and long", "warm and funny"]


def ask(url, body=None, *, raw=None):
    """Return status and body, as JSON where it is."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, headers, text = answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, headers, text = error.code, error.headers, error.read().decode()
    return status, json.loads(text) if "json" in headers["Content-Type"] else text


@pytest.fixture(scope="module")
def predictor(tiny_classifier_folder):
    return Predictor.load(tiny_classifier_folder)


@pytest.fixture(scope="module")
def running(predictor):
    """Return a function that serves with these limits and returns the address."""
    servers = []

    def start(**limits):
        settings = ServeSettings(model="unused", **limits)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_app(predictor, settings), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def url(running):
    return running(request_texts=8, text_characters=2_000, most_waiting=10_000)


def test_64_clients_get_the_scores_of_predict_and_none_is_lost(url, predictor):
    expected = {text: predictor.predict([text])[0] for text in TEXTS}
    asked = [[TEXTS[i % 4], TEXTS[(i + j) % 4]] for i in range(64) for j in range(4)]
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda texts: ask(f"{url}/predict", {"texts": texts}), asked))
    assert [status for status, _ in answers] == [200] * 256
    for texts, (_, body) in zip(asked, answers, strict=True):
        for text, row in zip(texts, body["predictions"], strict=True):
            assert row["label"] == expected[text]["label"]
            assert row["scores"] == pytest.approx(expected[text]["scores"], abs=1e-5)
    counted = ask(f"{url}/metrics")[1]
    assert 'ulmfit_requests_total{path="/predict",status="200"}' in counted
    batches = float(re.search(r"ulmfit_batch_texts_count ([\d.]+)", counted)[1])
    assert float(re.search(r"ulmfit_batch_texts_sum ([\d.]+)", counted)[1]) >= 512
    assert batches < 256  # requests at the same time share one


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"texts": ["fine", " "]}, "text 1 (counted from 0) is empty"),
        ({"texts": "one text"}, "list"),
        ({"texts": ["a"] * 9}, "at most 8"),
        ({"texts": ["a" * 2_001]}, "at most 2000"),
        ({"texts": [3]}, "valid string"),
        ({}, "required"),
        ({"texts": ["fine"], "abstain_below": 7}, "abstain_below must lie in 0..1"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_422_and_a_sentence(url, body, words):
    status, found = ask(f"{url}/predict", body)
    assert status == 422
    assert words in json.dumps(found)


def test_no_texts_have_no_predictions_and_an_unsure_label_is_null(url):
    assert ask(f"{url}/predict", {"texts": []}) == (200, {"predictions": []})
    row = ask(f"{url}/predict", {"texts": TEXTS[:1], "abstain_below": 1.0})[1]["predictions"][0]
    assert row["label"] is None
    assert row["score"] > 0


def test_broken_json_and_a_body_that_is_too_large_are_refused(url):
    assert ask(f"{url}/predict", raw=b"{")[0] == 422
    status, found = ask(f"{url}/predict", raw=b'{"texts": ["' + b"a" * 200_000 + b'"]}')
    assert status == 413
    assert "more than 192,000 bytes" in found["detail"]


def test_an_explanation_says_what_each_word_does(url):
    status, found = ask(f"{url}/explain", {"text": "warm <b>film</b>"})
    assert status == 200
    assert found["words"]
    assert "<b>film" not in found["html"]
    status, found = ask(f"{url}/explain", {"text": "warm", "label": "no such label"})
    assert status == 422
    assert "no such label" in found["detail"]


def test_state_page_and_description(url):
    assert ask(f"{url}/health") == (200, {"status": "ok"})
    assert ask(f"{url}/ready") == (200, {"status": "ready"})
    page = ask(url)[1]
    assert "<textarea" in page
    assert "http" not in re.sub(r"http-equiv|httponly", "", page)  # nothing comes from elsewhere
    described = ask(f"{url}/openapi.json")[1]["paths"]
    assert {"/predict", "/explain", "/health", "/ready", "/metrics"} <= set(described)
    assert ask(f"{url}/nothing/here")[0] == 404
    assert 'path="none",status="404"' in ask(f"{url}/metrics")[1]


def test_a_queue_that_is_full_answers_429():
    async def work():
        release = threading.Event()

        def predict(texts):
            release.wait(10)
            return [{"text": text} for text in texts]

        batcher = Batcher(predict, most_texts=2, most_waiting=3)
        batcher.start()
        first = asyncio.create_task(batcher.submit(["a", "b"]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(["c", "d"])
        assert batcher.ready
        second = asyncio.create_task(batcher.submit(["e"]))
        await asyncio.sleep(0)
        assert not batcher.ready
        release.set()
        stopped = asyncio.create_task(batcher.stop())  # what waits is answered first
        assert await first == [{"text": "a"}, {"text": "b"}]
        assert await second == [{"text": "e"}]
        await stopped
        with pytest.raises(StoppingError):
            await batcher.submit(["f"])

    asyncio.run(work())


def test_a_text_at_fault_does_not_fail_the_requests_beside_it():
    async def work():
        batches = []

        def predict(texts):
            batches.append(list(texts))
            if "bad" in texts:
                raise ValueError("bad text")
            return [{"text": text} for text in texts]

        batcher = Batcher(predict, most_texts=8, most_waiting=8)
        asked = [asyncio.create_task(batcher.submit([text])) for text in ("good", "bad", "fine")]
        await asyncio.sleep(0)
        batcher.start()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found[0] == [{"text": "good"}]
        assert isinstance(found[1], ValueError)
        assert found[2] == [{"text": "fine"}]
        assert batches == [["good", "bad", "fine"], ["good"], ["bad"], ["fine"]]
        await batcher.stop()

    asyncio.run(work())


def test_a_full_server_says_so_over_http(running, predictor, monkeypatch):
    release = threading.Event()
    original = predictor.predict
    monkeypatch.setattr(predictor, "predict", lambda texts: release.wait(20) and original(texts))
    url = running(request_texts=2, most_waiting=2)
    with ThreadPoolExecutor(1) as client:
        first = client.submit(ask, f"{url}/predict", {"texts": TEXTS[:2]})
        while ask(f"{url}/ready")[0] == 200:
            time.sleep(0.01)
        assert ask(f"{url}/predict", {"texts": ["warm"]}) == (
            429,
            {"detail": "too many texts wait; ask again in a second"},
        )
        release.set()
        assert first.result()[0] == 200


def test_a_port_that_is_taken_is_named(tiny_classifier_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen on port {port} of 127.0.0.1: .*another --port"):
            serve(ServeSettings(model=str(tiny_classifier_folder), port=port))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(tiny_classifier_folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ServeError, match=r"is not installed, which serving needs: pip install 'ulmfit_pipe\[serve\]'"):
        serve(ServeSettings(model=str(tiny_classifier_folder), port=0))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"batch_texts": 0}, "batch_texts must be 1 or more, got 0"),
        ({"port": 70_000}, r"port must lie in 0\.\.65535, got 70000"),
        ({"most_waiting": 3, "request_texts": 4}, "most_waiting 3 is below request_texts 4"),
    ],
)
def test_limits_are_checked(limits, words):
    with pytest.raises(ValueError, match=words):
        ServeSettings(model="any", **limits)


def test_the_command_serves_until_it_is_stopped_and_answers_first(tiny_classifier_folder):
    command = [sys.executable, "-m", "ulmfit_pipe", "serve", str(tiny_classifier_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as server:
        line = server.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask, f"{url}/predict", {"texts": TEXTS}) for _ in range(8)]
            assert answers[0].result()[0] == 200
            server.send_signal(signal.SIGTERM)
            assert all(answer.result()[0] == 200 for answer in answers if not answer.exception())
        out, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in out + err
