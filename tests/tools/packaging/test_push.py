"""A classifier's card says what its records say, and `push` uploads what loading needs and no text of the user's."""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from huggingface_hub import HfApi

from tests.support.tiny_runs import reviews, write_csv
from ulmfit_pipe import PipelineSettings, PushError, PushSettings, cli, push, run_pipeline
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_language_model_folder):
    """Return the folder of a finished run with a test table."""
    folder = tmp_path_factory.mktemp("push")
    write_csv(folder / "train.csv", reviews(30))
    write_csv(folder / "test.csv", reviews(20, seed=4))
    settings = PipelineSettings(
        train_file=[str(folder / "train.csv")],
        test_file=str(folder / "test.csv"),
        output_dir=str(folder / "run"),
        model=str(tiny_language_model_folder),
        language_model=LanguageModelSettings(epochs=1, batch_size=4),
        classifier=ClassifierSettings(plan="probe", batch_size=8),
    )
    run_pipeline(settings)
    return folder / "run"


class Hub(BaseHTTPRequestHandler):
    """Answers what an upload asks, and keeps it."""

    refuse = False

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            kept = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": kept})
        elif "/commit/" in self.path:
            self.answer({"commitUrl": "https://huggingface.co/team/reviews/commit/1", "commitOid": "1"})
        else:
            self.answer({"url": "https://huggingface.co/team/reviews"}, code=401 if self.refuse else 200)

    def do_GET(self):
        self.answer({"siblings": [], "sha": "0", "id": "team/reviews"}, code=401 if self.refuse else 200)

    def answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def client(server):
    return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_test")


def test_the_card_has_data_scores_training_licence_and_no_path(run):
    card = (run / "classifier" / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    header = yaml.safe_load(card.split("---")[1])
    (value,) = (v["value"] for v in header["model-index"][0]["results"][0]["metrics"] if v["type"] == "accuracy")
    assert value == round(metrics["test"]["accuracy"], 4)
    low, high = metrics["test"]["interval"]["accuracy"]
    assert f"| accuracy | {metrics['test']['accuracy']:.4f} | {low:.3f} to {high:.3f} |" in card
    assert "- training: 30 rows (bad 15, good 15)" in card
    assert "| bad | " in card and "logistic regression on frozen features" in card
    assert "its licence, which was not recorded, holds" in card and "license" not in header
    assert "trust_remote_code=True" in card and "Texts of any length are read whole" in card
    assert str(run.parent) not in card


def test_push_uploads_what_loading_needs_and_the_card_alone(run, hub):
    address = push(PushSettings(str(run / "classifier"), "team/reviews", private=True), api=client(hub))
    assert address.endswith("/team/reviews")
    created = json.loads(hub.asked[0][1])
    assert (created["organization"], created["name"]) == ("team", "reviews")
    assert created.get("private") is True or created.get("visibility") == "private"
    (commit,) = (body for path, body in hub.asked if "/commit/" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
    assert set(sent) == {"README.md", *json.loads((run / "classifier" / "stage.json").read_text())["files"]}
    for name, value in sent.items():
        assert base64.b64decode(value["content"]) == (run / "classifier" / name).read_bytes()
    assert not {"settings.yaml", "predictions.csv", "report.html", "stage.json"} & set(sent)


def test_a_refusal_and_a_missing_network_say_one_sentence(run, hub, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "refuse", True)
    given = PushSettings(str(run / "classifier"), "team/reviews")
    with pytest.raises(PushError, match=r"^the hub refused team/reviews \(HTTP 401\); log in with: hf auth login"):
        push(given, api=client(hub))
    with pytest.raises(PushError, match=r"^the hub cannot be reached \(ConnectError\); nothing is lost: give the same"):
        push(given, api=HfApi(endpoint="http://127.0.0.1:9", token="hf_test"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match=r"^the hub cannot be reached \(OfflineModeIsEnabled\); nothing is lost"):
        push(given)
    monkeypatch.setattr(sys, "argv", ["ulmfit", "push", given.model, given.repo])
    with pytest.raises(SystemExit, match="^2$"):
        cli.main()
    assert capsys.readouterr().err.startswith("ulmfit push: error: the hub cannot be reached (OfflineModeIsEnabled); ")


def test_what_is_no_finished_classifier_or_no_name_is_refused(run, tmp_path, tiny_language_model_folder):
    with pytest.raises(
        ArtifactError, match="holds no stage.json, so it is not a finished text classifier; give the fo"
    ):
        push(PushSettings(str(tmp_path), "team/reviews"))
    with pytest.raises(ArtifactError, match="did you mean .*classifier"):
        push(PushSettings(str(run), "team/reviews"))
    with pytest.raises(ArtifactError, match="holds a language_model, so it is not a finished text classifier"):
        push(PushSettings(str(run / "language_model"), "team/reviews"))
    with pytest.raises(ValueError, match="^repo must be NAMESPACE/NAME, such as my-team/reviews, got 'reviews'"):
        PushSettings(str(run), "reviews")
    with pytest.raises(PushError, match="^'team/a--b..c' is not the name of a repository; write NAMESPACE/NAME"):
        push(PushSettings(str(run / "classifier"), "team/a--b..c"))
