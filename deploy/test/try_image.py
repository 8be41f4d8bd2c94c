"""Tries the root file system of the image, without an engine, the way that Kubernetes runs it.

    sudo python3 deploy/test/try_image.py ROOT [--max-kb N]

It looks at what is in there, then starts the program with that folder as its root: read-only, as user
65532, with no capabilities and no new privileges, with the configuration of the overlay for
development; on a Postgres of its own, over TCP, whose roles deploy/postgres/roles.sql makes. Migrates
as the owner, waits, checks and serves as the service, asks the probes, makes a call, and ends it.
"""

import argparse
import base64
import glob
import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import manifests
from manifests import ROOT, Installation

USER = "65532"
PATIENCE = 120  # seconds, on a machine that is busy


class Failed(Exception):
    """What the image, or what runs in it, is not."""


def expect(holds, message):
    if not holds:
        raise Failed(message)


def look_at(root, max_kb):
    """The files in it: the program, its libraries, and nothing that could run another."""
    files = [path for path in root.rglob("*") if path.is_file()]
    allowed = ("usr/bin/keypool", "usr/share/", "etc/", "lib/", "lib64/", "usr/lib/")
    times = set()
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        mode = path.lstat().st_mode
        times.add(path.lstat().st_mtime)
        expect(path.is_dir() or name.startswith(allowed), f"{name} should not be there")
        expect(not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), f"{name} has mode {oct(mode)}")
        is_program = path.is_file() and mode & stat.S_IXUSR and ".so" not in path.name
        expect(not is_program or name == "usr/bin/keypool", f"{name} is a program")
    expect(len(times) == 1, "files bear different times")
    sections = subprocess.run(["readelf", "-S", root / "usr/bin/keypool"], check=True, capture_output=True, text=True)
    expect(".symtab" not in sections.stdout, "the program is not stripped")
    sbom = (root / "usr/share/sbom/keypool.cdx.json").read_text()
    expect(str(ROOT) not in sbom, "the SBOM tells where it was built")
    sbom = json.loads(sbom)
    names = {component["name"] for component in sbom["components"]}
    expect({"tonic", "sqlx", "aws-lc-rs"} <= names, "the SBOM lacks what keypool is made of")
    expect("nextest-runner" not in names and "proptest" not in names, "the SBOM lists what only tests use")
    kb = sum(path.stat().st_size for path in files) // 1000
    print(f"{len(files)} files, {kb} kB, {len(names)} components in the SBOM; no shell, no other program")
    expect(kb <= max_kb, f"{kb} kB are more than {max_kb} kB")


def postgres_programs():
    folders = [os.environ.get("PG_BIN", ""), *os.environ["PATH"].split(":")]
    folders += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True) + ["/var/cache/keypool/postgres/bin"]
    for folder in folders:
        if folder and Path(folder, "initdb").exists() and Path(folder, "postgres").exists():
            return Path(folder)
    raise Failed("there is no Postgres: run script/setup")


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def wait_for(happened, what):
    end = time.monotonic() + PATIENCE
    while not happened():
        expect(time.monotonic() < end, f"{what} did not happen within {PATIENCE} s")
        time.sleep(0.05)


class Postgres:
    """A server over TCP that wants passwords."""

    def __init__(self, folder):
        programs, self.data, self.port = postgres_programs(), folder / "postgres", free_port()
        os.chmod(folder, 0o711)
        self.data.mkdir()
        self.run_as = []
        if os.geteuid() == 0:
            shutil.chown(self.data, "nobody")
            self.run_as = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        password = folder / "password"
        password.write_text("only-for-development")
        password.chmod(0o644)
        data = self.data / "data"
        subprocess.run(
            [*self.run_as, programs / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256",
             f"--pwfile={password}", "--no-sync"], check=True, capture_output=True, cwd="/",
        )
        self.server = subprocess.Popen(
            [*self.run_as, programs / "postgres", "-D", data, "-p", str(self.port), "-k", self.data,
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )
        self.psql = programs / "psql" if (programs / "psql").exists() else "psql"
        try:
            wait_for(lambda: self.sql("-c", "SELECT 1").returncode == 0, "Postgres")
        except BaseException:
            self.stop()
            raise

    def sql(self, *arguments, **environment):
        url = f"postgres://postgres:only-for-development@127.0.0.1:{self.port}/postgres"
        environment = os.environ | environment
        return subprocess.run([self.psql, "-X", "-q", url, *arguments], env=environment, capture_output=True, text=True)

    def stop(self):
        self.server.send_signal(2)
        self.server.wait()


class Container:
    """The image as a root, with what Kubernetes mounts into it."""

    def __init__(self, image, folder, mounts, variables):
        self.root, self.variables = folder / "root", variables
        shutil.copytree(image, self.root, symlinks=True)
        for name in ["proc", "dev"]:
            (self.root / name).mkdir()
        for name, text in mounts.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        # Names are looked up, and found in a file.
        (self.root / "etc/hosts").write_text("127.0.0.1 keypool-postgres\n")

    def start(self, *arguments, **more):
        # Mounts of its own; the program has no way back out of its root.
        script = (
            'mount --make-rprivate / && mount --bind "$0" "$0" && mount -t proc -o ro proc "$0/proc" '
            '&& mount --bind -o ro /dev "$0/dev" && mount -o remount,bind,ro "$0" '
            '&& exec setpriv --no-new-privs chroot --userspec=' + f"{USER}:{USER} --groups= " + '"$0" "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", script, self.root, "/usr/bin/keypool", *arguments]
        # The caller's PATH stays for what starts it; the program itself needs none.
        environment = {"PATH": os.environ["PATH"]} | self.variables
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )

    def run(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def succeeds(self, *arguments):
        code, out, err = self.run(*arguments)
        expect(code == 0, f"keypool {' '.join(arguments)} ended with {code}: {out}{err}")
        return out.strip()


def grpc(address, method, message, *headers):
    """The first message of an answer, and the status, of a gRPC call made with curl."""
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    with tempfile.NamedTemporaryFile() as head:
        run = subprocess.run(
            ["curl", "-s", "--http2-prior-knowledge", "--data-binary", "@-", "-D", head.name, "--max-time", str(PATIENCE),
             "-H", "content-type: application/grpc", "-H", "te: trailers",
             *(part for header in headers for part in ("-H", header)), f"http://{address}/{method}"],
            input=frame, capture_output=True,
        )
        status = [line for line in head.read().decode().splitlines() if line.lower().startswith("grpc-status:")]
    # A call may be refused before it was read, which curl takes for a failure after the answer.
    expect(run.returncode == 0 or status, f"{method}: curl ended with {run.returncode}")
    return run.stdout[5:], status[-1].partition(":")[2].strip() if status else None


def health(address, service):
    name = service.encode()
    message = b"\x0a" + bytes([len(name)]) + name if name else b""
    return grpc(address, "grpc.health.v1.Health/Check", message)[0] == b"\x08\x01"


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}


def try_it(image, folder):
    postgres = Postgres(folder)
    try:
        made = postgres.sql(
            "-f", str(ROOT / "deploy/postgres/roles.sql"),
            KEYPOOL_OWNER_PASSWORD="only-for-development", KEYPOOL_SERVICE_PASSWORD="only-for-development",
        )
        expect(made.returncode == 0, f"roles.sql: {made.stderr}")
        run_in(image, folder, postgres)
    finally:
        postgres.stop()


def run_in(image, folder, postgres):
    it = Installation.render("overlays/dev")
    _, variables = it.config()
    text = next(
        config["data"]["keypool.toml"] for config in it.of_kind("ConfigMap")
        if config["metadata"]["name"].startswith("keypool-config")
    )
    # The ports of this machine may be taken.
    variables = variables | {
        "KEYPOOL_LISTEN": "127.0.0.1:0",
        "KEYPOOL_HEALTH__LISTEN": "127.0.0.1:0",
        "KEYPOOL_METRICS__LISTEN": "127.0.0.1:0",
    }
    key = folder / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], check=True, capture_output=True, text=True)

    def container(name, secret):
        # Its name ends in a hash.
        made = [it for it in it.of_kind("Secret") if it["metadata"]["name"].rpartition("-")[0] == secret]
        url = base64.b64decode(made[0]["data"]["url"]).decode()
        mounts = {
            "etc/keypool/config/keypool.toml": text,
            "etc/keypool/database/url": url.replace(":5432", f":{postgres.port}"),
            "etc/keypool/auth/auth.pub.pem": public.stdout,
            "etc/key.pem": key.read_text(),
        }
        (folder / name).mkdir()
        return Container(image, folder / name, mounts, variables)

    owner_secret = "keypool-database-owner"
    owner, service = container("owner", owner_secret), container("service", "keypool-database")

    version = manifests.tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    expect(service.succeeds("--version") == f"keypool {version}", "another version")
    code, _, err = service.run("wait", "--timeout", "0s")
    expect(code == 1 and "migration(s)" in err, f"waited for nothing: {err}")
    code, _, _ = service.run("migrate")
    expect(code != 0, "the service's role may migrate")
    print(owner.succeeds("migrate"))
    print(service.succeeds("wait", "--timeout", "0s"))
    print(service.succeeds("check"))
    token = service.succeeds("token", "--user", "bob", "--client", "phone", "--key", "/etc/key.pem")

    log = folder / "log"
    with open(log, "w", encoding="utf-8") as out:
        server = service.start("serve")
        copier = subprocess.Popen(["cat"], stdin=server.stderr, stdout=out)

    def addresses():
        told = {}
        for line in log.read_text().splitlines():
            fields = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if "address" in fields:
                told[fields["message"]] = fields["address"]
        return told

    try:
        def serving():
            expect(server.poll() is None, f"serve ended: {log.read_text()}")
            return {"serving", "answering probes"} <= addresses().keys()

        wait_for(serving, "serving")
        calls, asked = addresses()["serving"], addresses()["answering probes"]
        wait_for(lambda: health(asked, "keypool.v1.KeyPackageService"), "readiness")
        expect(health(asked, ""), "it does not live")
        _, code = grpc(calls, "keypool.v1.KeyPackageService/GetPoolStatus", b"", f"authorization: Bearer {token}")
        expect(code == "0", f"GetPoolStatus ended with {code}")
        _, code = grpc(calls, "keypool.v1.KeyPackageService/GetPoolStatus", b"")
        expect(code == "16", f"without a token, GetPoolStatus ended with {code}")

        status = status_of(server.pid)
        expect(status["Uid"] == [USER] * 4 and status["Gid"] == [USER] * 4, f"runs as {status['Uid']}")
        expect(int(status["CapEff"][0], 16) == 0 and int(status["CapPrm"][0], 16) == 0, "has capabilities")
        expect(status["NoNewPrivs"] == ["1"], "may gain privileges")
        root = [line.split() for line in Path(f"/proc/{server.pid}/mountinfo").read_text().splitlines()]
        root = [line for line in root if line[4] == "/"]
        expect(root and "ro" in root[-1][5].split(","), "its root is writable")
        print("served and probed, read-only, as user 65532 without capabilities; a call was answered")
        server.terminate()
        expect(server.wait(PATIENCE) == 0, f"SIGTERM: it ended with {server.returncode}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        copier.wait()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("root", type=Path)
    arguments.add_argument("--max-kb", type=int, default=40_000)
    arguments = arguments.parse_args()
    look_at(arguments.root.resolve(), arguments.max_kb)
    with tempfile.TemporaryDirectory() as folder:
        try_it(arguments.root.resolve(), Path(folder))


if __name__ == "__main__":
    main()
