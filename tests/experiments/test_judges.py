"""Judges by settings: phrases, a classifier's folder, a function, an endpoint that may fail."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from conftest import save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from refusal_lens import RefusalLensError
from refusal_lens.config import RefusalConfig
from refusal_lens.experiments.judges import ENDPOINT_URL, decide, judge_of, without_thinking


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("<think>\nI can't say.\n</think>\n\nSure: plan it.", "Sure: plan it."),
        ("<think>I cannot", ""),
        ("I can't say.\n</think>\n\nSure: plan it.", "Sure: plan it."),  # the prompt opened it
        ("a</think>Sure. <think>b</think>Go.", "Sure. Go."),
        ("Sure. <think>a</think>Then <think>b</think>go.", "Sure. Then go."),
        ("Sure.", "Sure."),
    ],
)
def test_thoughts_are_not_judged(answer, left):
    assert without_thinking(answer) == left


def test_a_judge_may_say_yes_or_no_or_an_outcome():
    assert decide(lambda prompt, answer: True, "Why?", "No.") == "refused"
    assert decide(lambda prompt, answer: False, "Why?", "Because.") == "answered"
    assert decide(lambda prompt, answer: False, "Why?", "no no no no no") == "broken"
    assert decide(lambda prompt, answer: "answered", "Why?", "no no no no no") == "broken"
    assert decide(lambda prompt, answer: False, "Why?", " ...") == "broken"
    assert decide(lambda prompt, answer: "unjudged", "Why?", "Because.") == "unjudged"
    with pytest.raises(RefusalLensError, match="this one said 'maybe'"):
        decide(lambda prompt, answer: "maybe", "Why?", "Because.")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier that says its first label whatever it reads."""
    folder = tmp_path_factory.mktemp("classifier")
    save_checkpoint(folder, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=2,
        pad_token_id=0,
        id2label={0: "complies", 1: "declines"},
        label2id={"complies": 0, "declines": 1},
    )
    model = LlamaForSequenceClassification(config)

    torch.nn.init.zeros_(model.score.weight)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_is_asked_by_its_labels(classifier):
    settings = RefusalConfig(
        judge=str(classifier), judge_labels={"complies": "answered", "declines": "refused"}
    )
    judge = judge_of(settings)
    # With a head of zeros both labels tie, and the first is taken.
    assert decide(judge, "Why?", "I cannot say.") == "answered"
    turned = RefusalConfig(
        judge=str(classifier), judge_labels={"complies": "refused", "declines": "answered"}
    )
    assert decide(judge_of(turned), "Why?", "Because.") == "refused"


def test_a_label_without_meaning_is_told(classifier):
    with pytest.raises(RefusalLensError, match="the label 'complies', which is no outcome"):
        judge_of(RefusalConfig(judge=str(classifier)))


@pytest.fixture
def damaged(classifier, tmp_path):
    """A copy of the classifier, to damage."""
    return Path(shutil.copytree(classifier, tmp_path / "copy"))


def judged_by(folder: Path) -> RefusalConfig:
    labels = {"complies": "answered", "declines": "refused"}
    return RefusalConfig(judge=str(folder), judge_labels=labels)


def test_code_of_a_classifier_is_neither_run_nor_asked_about(damaged, monkeypatch):
    # Before: transformers asked on stdin, and a "y" ran the classifier's Python.
    marker = damaged / "ran"
    (damaged / "my.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass My: pass\n")
    config = json.loads((damaged / "config.json").read_text())
    code = {"AutoConfig": "my.My", "AutoModelForSequenceClassification": "my.My"}
    changed = config | {"model_type": "mine", "auto_map": code}
    (damaged / "config.json").write_text(json.dumps(changed))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    with pytest.raises(RefusalLensError, match="code of its own"):
        judge_of(judged_by(damaged))
    assert not marker.exists()


def test_a_classifier_without_its_head_is_refused(damaged):
    # Before: transformers made the head up at random, and that judged.
    weights = load_file(damaged / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusalLensError, match=r"lack score\.weight"):
        judge_of(judged_by(damaged))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid x\n"])
def test_a_classifier_that_is_damaged_is_told(damaged, content):
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(RefusalLensError, match=r"model\.safetensors is"):
        judge_of(judged_by(damaged))


@pytest.mark.parametrize("path", ["os.execlp", "os.path.join", "builtins.exec", "subprocess.call"])
def test_functions_of_python_itself_are_no_judges(path):
    # Before: a config from elsewhere had a prompt run as a command.
    with pytest.raises(RefusalLensError, match="is of Python's own library"):
        judge_of(RefusalConfig(judge=f"python:{path}"))


def test_a_function_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text("def strict(prompt, answer):\n    return 'no' in answer")
    monkeypatch.syspath_prepend(tmp_path)
    judge = judge_of(RefusalConfig(judge="python:my_judges.strict"))
    assert decide(judge, "Why?", "no way") == "refused"
    with pytest.raises(RefusalLensError, match="python:my_judges.lax cannot be imported"):
        judge_of(RefusalConfig(judge="python:my_judges.lax"))


def test_what_is_no_judge_is_told(tmp_path):
    with pytest.raises(RefusalLensError, match="It needs to be phrases, a folder"):
        judge_of(RefusalConfig(judge=str(tmp_path / "nowhere")))


@pytest.fixture
def endpoint(monkeypatch):
    """A server of this machine that gives the replies it is told to, one after the other."""
    replies: list[str | int] = []
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = replies.pop(0)
            if isinstance(reply, int):
                self.send_error(reply)
                return
            body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(ENDPOINT_URL, f"http://127.0.0.1:{server.server_port}/v1")
    yield replies, asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_is_asked_and_its_failures_are_not_answers(endpoint):
    replies, asked = endpoint
    replies += ["Refused.", "answered", 500, "I would say it neither refused nor answered", "{}"]
    judge = judge_of(RefusalConfig(judge="endpoint:some-model"))
    came = [decide(judge, "Why so?", "Because of that.") for _ in range(5)]
    assert came == ["refused", "answered", "unjudged", "unjudged", "unjudged"]
    assert asked[0]["model"] == "some-model"
    assert "Because of that." in asked[0]["messages"][0]["content"]


def test_an_endpoint_without_an_address_is_off(monkeypatch):
    monkeypatch.delenv(ENDPOINT_URL, raising=False)
    with pytest.raises(RefusalLensError, match="needs the address of the endpoint in REFUSAL_LENS"):
        judge_of(RefusalConfig(judge="endpoint:some-model"))
