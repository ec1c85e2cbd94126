"""A small Hub in a thread, in memory: what huggingface_hub and datasets ask of the real one, over HTTP on 127.0.0.1.

It knows repositories with branches and commits, LFS, private and gated ones, tokens that may write and that may not. It
proves the client's protocol, not the real Hub's quotas, rate limits or Xet.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".pt", ".pth", ".bin", ".parquet")
LICENSES = {None, "apache-2.0", "mit", "cc-by-4.0", "other"}  # a few of those that the Hub knows
NO_OID = "0" * 40


class Refused(Exception):
    """An answer that is an error: the status, and the code by which the client tells it."""

    def __init__(self, status, code="", message=""):
        self.status, self.code, self.message = status, code, message or code


@dataclass
class Repo:
    """`refs`: branch -> commit; `commits`: commit -> {path: bytes}; `log`: commit -> (title, commit before)."""

    private: bool = False
    gated: bool = False
    refs: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)
    log: dict = field(default_factory=dict)

    def commit(self, branch, files, title):
        before = self.refs.get(branch)
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.log[oid], self.refs[branch] = files, (title, before), oid
        return oid

    def resolve(self, revision):
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def titles(self, branch="main"):
        """Titles of the commits of a branch, the first one first."""
        oid, found = self.refs[branch], []
        while oid:
            title, oid = self.log[oid]
            found.insert(0, title)
        return found


class StubHub:
    """The server's state, which tests read and set.

    `repos`: ("model" or "dataset", "owner/name") -> Repo. `tokens`: token -> "write" or "read". `dead`: it closes every
    connection without an answer; `dies_after`: commits after which it dies. `sent`: method, path, headers and body of
    every request.
    """

    def __init__(self, user="me"):
        self.user, self.tokens, self.repos, self.blobs, self.sent = user, {}, {}, {}, []
        self.dead, self.dies_after, self.lock = False, None, threading.RLock()
        self.url = None

    def add(self, name, files, kind="model", **options):
        """Makes a repository that holds `files`, {path: bytes}."""
        repo = self.repos[kind, name] = Repo(**options)
        repo.commit("main", dict(files), "first")
        return repo

    def files(self, name, branch="main", kind="model"):
        repo = self.repos[kind, name]
        return repo.commits[repo.refs[branch]]

    @contextmanager
    def serve(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StubHub = None

    def log_message(self, *words):
        pass

    def answer(self):
        self.body = self.read_body()
        if self.hub.dead:
            self.close_connection = True
            return
        self.hub.sent.append((self.command, self.path, str(self.headers), self.body))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for pattern, route in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {url.path}"):
                try:
                    with self.hub.lock:
                        route(self, *(unquote(part) if part else part for part in match.groups()))
                except Refused as error:
                    told = {"X-Error-Code": error.code, "X-Error-Message": error.message}
                    self.reply({"error": error.message}, error.status, {k: v for k, v in told.items() if v})
                return
        self.reply({"error": f"no route {self.path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    def role(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def repo(self, kind, name, write=False):
        role, repo = self.role(), self.hub.repos.get((kind or "model", name))
        if repo is None or (repo.private and role is None):
            raise Refused(404 if role else 401, "RepoNotFound", "Repository not found")
        if repo.gated:
            raise Refused(403, "GatedRepo", "Access to this repository is restricted")
        if write and role != "write":
            raise Refused(403, "", "Forbidden: you must use a write token")
        return repo

    # Accounts and repositories

    def whoami(self):
        if self.role() is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        self.reply({"type": "user", "id": "1", "name": self.hub.user, "orgs": [], "auth": {"type": "access_token"}})

    def validate(self):
        """Refuses a card whose license the Hub does not know, as the real one does."""
        found = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.M)
        if found and found[1] not in LICENSES:
            message = f'Invalid metadata: "license" must be one of [...], got {found[1]}'
            return self.reply({"error": message, "errors": [{"message": message}], "warnings": []}, 400)
        self.reply({"errors": [], "warnings": []})

    def create_repo(self):
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        if self.role() != "write" or name.split("/")[0] != self.hub.user:
            raise Refused(403, "", "You don't have the rights to create a model under this namespace")
        told = {"url": f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}", "name": name, "id": name}
        if (kind, name) in self.hub.repos:
            return self.reply(told | {"error": "You already created this repo"}, 409)
        self.hub.add(name, {".gitattributes": b""}, kind, private=asked.get("visibility") == "private")
        self.reply(told)

    def auth_check(self, kind, name, write):
        self.repo(kind, name, write=bool(write))
        self.reply({})

    def info(self, kind, name, revision):
        repo = self.repo(kind, name)
        oid = repo.resolve(revision or "main")
        about = {"_id": "1", "id": name, "modelId": name, "author": name.split("/")[0], "sha": oid, "tags": []}
        about |= {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        about |= {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
        self.reply(about | {"siblings": [{"rfilename": path} for path in repo.commits[oid]]})

    def refs(self, kind, name):
        branches = self.repo(kind, name).refs.items()
        listed = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid} for branch, oid in branches]
        self.reply({"branches": listed, "tags": [], "converts": []})

    def commits(self, kind, name, revision):
        repo, found = self.repo(kind, name), []
        oid = repo.resolve(revision)
        while oid:
            title, before = repo.log[oid]
            found.append({"id": oid, "title": title, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []})
            oid = before
        self.reply(found)

    def branch(self, kind, name, branch):
        repo = self.repo(kind, name, write=True)
        if branch in repo.refs:
            raise Refused(409, "", "Reference already exists")
        repo.refs[branch] = repo.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
        self.reply({})

    # Uploads

    def preupload(self, kind, name, revision):
        files = self.repo(kind, name, write=True).commits[self.repo(kind, name).resolve(revision)]
        answers = []
        for asked in json.loads(self.body)["files"]:
            answer = {"path": asked["path"], "uploadMode": "lfs" if asked["path"].endswith(LFS) else "regular"}
            known = {"oid": entry(asked["path"], files[asked["path"]])["oid"]} if asked["path"] in files else {}
            answers.append(answer | {"shouldIgnore": False} | known)
        self.reply({"files": answers})

    def lfs_batch(self, kind, name):
        self.repo((kind or "models/").removesuffix("s/"), name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(asked if asked["oid"] in self.hub.blobs else asked | {"actions": upload})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "the content is not what its hash says")
        self.hub.blobs[oid] = self.body
        self.reply({})

    def commit(self, kind, name, branch):
        repo = self.repo(kind, name, write=True)
        files, title = dict(repo.commits[repo.resolve(branch)]), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"unknown operation {line['key']}")
        oid = repo.commit(branch, files, title)
        self.reply({"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})
        if self.hub.dies_after is not None and sum(len(r.commits) - 1 for r in self.hub.repos.values()) >= (
            self.hub.dies_after
        ):
            self.hub.dead = True

    # Downloads

    def tree(self, kind, name, revision, folder):
        repo = self.repo(kind, name)
        files, within = repo.commits[repo.resolve(revision)], f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        found = {}
        for path, content in sorted(files.items()):
            if path.startswith(within):
                parts = path[len(within) :].split("/")
                for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                    above = within + "/".join(parts[:depth])
                    found[above] = {"type": "directory", "path": above, "oid": NO_OID, "size": 0}
                if recursive or len(parts) == 1:
                    found[path] = entry(path, content)
        if within and not found:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        self.reply(list(found.values()))

    def paths_info(self, kind, name, revision):
        repo = self.repo(kind, name)
        files = repo.commits[repo.resolve(revision)]
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = (json.loads(self.body) if is_json else parse_qs(self.body.decode()))["paths"]
        folders = [path for path in asked if any(file.startswith(f"{path}/") for file in files)]
        found = [entry(path, files[path]) for path in asked if path in files]
        self.reply(found + [{"type": "directory", "path": path, "oid": NO_OID, "size": 0} for path in folders])

    def download(self, kind, name, revision, path):
        repo = self.repo((kind or "models/").removesuffix("s/"), name)
        oid = repo.resolve(revision)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if path not in repo.commits[oid]:
            told = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.reply({"error": "Entry not found"}, 404, headers | told)
        content = repo.commits[oid][path]
        about = entry(path, content)
        tag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
        headers |= {"ETag": f'"{tag}"'}
        if "lfs" in about:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        if part := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self.reply(content[first : last + 1], 206, headers)
        self.reply(content, 200, headers)


def entry(path, content):
    """A file as the Hub lists it: git's hash of it, or of an LFS file the SHA-256."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    about = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    if path.endswith(LFS):
        sha = hashlib.sha256(content).hexdigest()
        about |= {"oid": sha, "lfs": {"oid": sha, "size": len(content), "pointerSize": 130}}
    return about


API = r"/api/(model|dataset)s/([^/]+/[^/]+)"
FILES = r"/(datasets/)?([^/]+/[^/]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/repos/create", Handler.create_repo),
    (rf"GET {API}/auth-check(/write)?", Handler.auth_check),
    (rf"GET {API}(?:/revision/([^/]+))?", Handler.info),
    (rf"GET {API}/refs", Handler.refs),
    (rf"GET {API}/commits/([^/]+)", Handler.commits),
    (rf"POST {API}/branch/([^/]+)", Handler.branch),
    (rf"POST {API}/preupload/([^/]+)", Handler.preupload),
    (rf"POST {API}/commit/([^/]+)", Handler.commit),
    (rf"GET {API}/tree/([^/]+)(?:/(.*))?", Handler.tree),
    (rf"POST {API}/paths-info/([^/]+)", Handler.paths_info),
    (rf"POST {FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/([0-9a-f]{64})", Handler.lfs_put),
    (rf"(?:GET|HEAD) {FILES}/resolve/([^/]+)/(.+)", Handler.download),
]
