"""The hub, played by a server on this machine: upload, download, revisions, offline."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding

constants = pytest.importorskip("huggingface_hub.constants")
X = torch.randn(5, 4)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as models need; ``commits`` holds the files of each commit."""

    protocol_version = "HTTP/1.1"
    commits: list[dict[str, bytes]]

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status=200, **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit(self, revision):
        last = len(self.commits) - 1
        return last if revision == "main" else int(revision.removeprefix("0" * 39))

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            files = self.commits[self.commit(revision)] if self.commits else {}
            if name not in files:
                return self.answer(status=404, X_Error_Code="EntryNotFound")
            return self.answer(
                files[name],
                ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"',
                X_Repo_Commit=f"{self.commit(revision):040d}",
            )
        if "/me/model/tree/" in path:
            files = self.commits[self.commit(path.partition("/tree/")[2].partition("/")[0])]
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"}
                for name, data in files.items()
            ]
            return self.answer(json.dumps(entries).encode())
        if path.startswith("/api/models/me/model") and self.commits:
            number = self.commit(path.rpartition("/revision/")[2] if "revision" in path else "main")
            siblings = [{"rfilename": name} for name in self.commits[number]]
            return self.answer({"id": "me/model", "sha": f"{number:040d}", "siblings": siblings})
        return self.answer(status=404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/me/model"
        if self.path.endswith("/repos/create"):
            return self.answer({"url": address, "id": "me/model"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.commits.append({**(self.commits[-1] if self.commits else {}), **new})
            oid = f"{len(self.commits) - 1:040d}"
            return self.answer({"commitUrl": f"{address}/commit/{oid}", "commitOid": oid})
        return self.answer({})  # the check of a card's head


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without repositories, and an empty cache; its commits."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Fresh", (Hub,), {"commits": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server.RequestHandlerClass.commits
    server.shutdown()
    server.server_close()


def make(tasks=("shoes", "bags")) -> HyperNetwork:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    return HyperNetwork(module, Sparse(), TaskEmbedding(list(tasks), dim=8))


def test_what_is_pushed_comes_back_at_each_revision_and_offline(hub, tmp_path, monkeypatch):
    first, second = make(), make(["hats"])
    address = first.push_to_hub("me/model", token="t", figures={"accuracy": 0.93})
    assert address.endswith(f"me/model/commit/{0:040d}")
    assert sorted(hub[0]) == ["README.md", "config.json", "model.safetensors"]
    card = hub[0]["README.md"].decode()
    assert "| accuracy | 0.93 |" in card
    assert "from_pretrained('me/model')" in card
    first.push_to_hub("me/model", token="t", figures={"accuracy": 0.95})
    assert "| accuracy | 0.95 |" in hub[1]["README.md"].decode()
    hub[1]["README.md"] = card.replace("0.93", "my own").encode()
    with pytest.warns(UserWarning, match=r"the README\.md of me/model is not as .* `figures`"):
        second.push_to_hub("me/model", token="t", figures={"accuracy": 0.97})
    second.push_to_hub("me/model", token="t")  # without a warning
    assert hub[1]["README.md"] == hub[2]["README.md"] == hub[3]["README.md"]

    cache = tmp_path / "cache"
    found = HyperNetwork.from_pretrained("me/model", cache_dir=cache)
    assert found.task_names == ("hats",)
    assert not found.training
    old = HyperNetwork.from_pretrained("me/model", revision=f"{0:040d}", cache_dir=cache)
    torch.testing.assert_close(old(X, task="bags"), first.eval()(X, task="bags"))
    with pytest.raises(OSError, match="nobody/nothing"):
        HyperNetwork.from_pretrained("nobody/nothing", cache_dir=cache)

    hub.clear()  # nothing is there any more
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as the variable of this name does
    assert HyperNetwork.from_pretrained("me/model", cache_dir=cache).task_names == ("hats",)


def test_a_directory_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hnet = make()
    hnet.save_pretrained(tmp_path / "model")
    hnet.add_task("hats")
    (tmp_path / "model" / "README.md").write_text("my own words")
    hnet.save_pretrained(tmp_path / "model")
    again = HyperNetwork.from_pretrained(tmp_path / "model")
    assert torch.equal(again(X, task="hats"), hnet.eval()(X, task="hats"))
    assert (tmp_path / "model" / "README.md").read_text() == "my own words"
    with pytest.raises(ImportError, match=r"sparsehyper\[hub\]"):
        HyperNetwork.from_pretrained("me/model")
    with pytest.raises(FileNotFoundError, match="no directory"):
        HyperNetwork.from_pretrained("./model")


def test_a_card_that_nobody_edited_is_written_anew(tmp_path):
    card = tmp_path / "model" / "README.md"
    hnet = make()
    hnet.save_pretrained(tmp_path / "model", figures={"accuracy": 0.5})
    hnet.add_task("hats")
    hnet.save_pretrained(tmp_path / "model", figures={"accuracy": 0.9})
    assert "| accuracy | 0.9 |" in card.read_text()
    assert "`hats`" in card.read_text()
    card.write_text("see also my page\n" + card.read_text())
    before = card.read_text()
    with pytest.warns(UserWarning, match=r"README\.md is not as this version of sparsehyper"):
        hnet.save_pretrained(tmp_path / "model", figures={"accuracy": 1})
    assert card.read_text() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_converted_model_comes_back_as_it_is(dtype, tmp_path):
    hnet = make().to(dtype)
    hnet.save_pretrained(tmp_path / "model")
    again = HyperNetwork.from_pretrained(tmp_path / "model")
    assert torch.equal(again(X.to(dtype), task=0), hnet.eval()(X.to(dtype), task=0))


def test_a_card_shows_the_model_of_a_task_and_no_strange_names(tmp_path):
    hnet = make(["sho|es`", "a\x1b[31m"])
    hnet.save_pretrained(tmp_path / "model")
    card = Path(tmp_path, "model", "README.md").read_text()
    assert r"| tasks | `sho\|es `, `a\x1b[31m` |" in card
    assert "(0): Linear(in_features=4, out_features=6, bias=True)" in card
