//! What is used to fetch things, by plain HTTP and by HTTPS: curl, pip, git, npm, cargo. A tool
//! that this machine does not have is left out, and that is said.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use tool_executor::config::{LocalConfig, Policy};

use super::Machine;
use super::servers::{Files, certificate};

/// What stands for the internet: its address, and not that of any other test.
const ADDRESS: &str = "127.0.0.9";

/// Makes a package of each kind, with `URL` in the place of the server's own.
const PACKAGES: &str = r#"
set -e
mkdir -p simple/hello-net
python3 - <<'END'
import base64, hashlib, json, tarfile, zipfile
info = 'hello_net-1.0.dist-info/'
with zipfile.ZipFile('hello_net-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('hello_net.py', 'WORD = "installed"')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: hello-net\nVersion: 1.0\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(info + 'RECORD', '')
END
echo '<a href="/hello_net-1.0-py3-none-any.whl">hello_net-1.0-py3-none-any.whl</a>' > simple/hello-net/index.html

git init -q -b main made
(cd made; echo cloned > file; git add file; git -c user.name=a -c user.email=a@b commit -qm first)
git clone -q --bare made repo.git
git -C repo.git update-server-info

mkdir package
echo '{"name": "hello-npm", "version": "1.0.0", "main": "i.js"}' > package/package.json
echo 'module.exports = "installed"' > package/i.js
tar -czf hello-npm-1.0.0.tgz package
python3 - <<'END'
import base64, hashlib, json
archive = open('hello-npm-1.0.0.tgz', 'rb').read()
integrity = 'sha512-' + base64.b64encode(hashlib.sha512(archive).digest()).decode()
version = {'name': 'hello-npm', 'version': '1.0.0', 'main': 'i.js',
           'dist': {'tarball': 'URL/hello-npm-1.0.0.tgz', 'integrity': integrity}}
json.dump({'name': 'hello-npm', 'dist-tags': {'latest': '1.0.0'}, 'versions': {'1.0.0': version}},
          open('hello-npm', 'w'))
END

mkdir -p index/he/ll crates hello-cargo-1.0.0/src
echo '{"dl": "URL/crates/{crate}-{version}.crate"}' > index/config.json
printf '[package]\nname = "hello-cargo"\nversion = "1.0.0"\n' > hello-cargo-1.0.0/Cargo.toml
touch hello-cargo-1.0.0/src/lib.rs
tar -czf crates/hello-cargo-1.0.0.crate hello-cargo-1.0.0
sum=$(sha256sum crates/hello-cargo-1.0.0.crate | cut -d' ' -f1)
echo '{"name": "hello-cargo", "vers": "1.0.0", "deps": [], "cksum": "'$sum'", "features": {}, "yanked": false}' > index/he/ll/hello-cargo
"#;

/// Runs in a workspace; `URL` is the server's.
const PIP: &str = "pip install -q --no-cache-dir --disable-pip-version-check --target d \
    --index-url URL/simple hello-net 2>&1 && PYTHONPATH=d python3 -c 'import hello_net as h; print(h.WORD)'";
const GIT: &str = "git clone -q URL/repo.git r && cat r/file";
const NPM: &str = "npm install -s --no-audit --no-fund --registry URL/ hello-npm 2>&1; \
    node -e 'console.log(require(\"hello-npm\"))'";
/// It asks for the compiler's version, which is of no matter here.
const CARGO: &str = "curl -sSO URL/cargo && chmod +x cargo && mkdir -p c/src c/.cargo && cd c && \
    touch src/lib.rs && printf '#!/bin/sh\\necho rustc 1.95.0\\necho host: x86_64-unknown-linux-gnu\\necho release: 1.95.0\\n' > rustc && chmod +x rustc && \
    printf '[package]\\nname = \"a\"\\nversion = \"0.1.0\"\\n[dependencies]\\nhello-cargo = { version = \"1\", registry = \"x\" }\\n' > Cargo.toml && \
    printf '[registries.x]\\nindex = \"sparse+URL/index/\"\\n' > .cargo/config.toml && \
    CARGO_HOME=$PWD/home RUSTC=$PWD/rustc ../cargo vendor -q >/dev/null && ls home/registry/src/*";

/// All files below a directory, by their paths; a directory's is that of its index.
fn files(directory: &Path) -> HashMap<String, Vec<u8>> {
    let mut found = HashMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let name = format!("/{}", path.strip_prefix(directory).unwrap().display());
            let name = name.strip_suffix("index.html").unwrap_or(&name).to_owned();
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

#[expect(clippy::print_stderr, reason = "who runs the tests is to know")]
fn has(tool: &str) -> bool {
    let has = ["/usr/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(tool).exists());
    if !has {
        eprintln!("this machine has no {tool}: not tried");
    }
    has
}

/// What the tools print that fetch from this server.
fn fetch_all(machine: &Machine, server: &Files, is_left_out: impl Fn(&str) -> bool) {
    let url = server.url("");
    for (tool, command, expected) in [
        ("curl", "curl -sS URL/hello-npm | head -c 8", "{\"name\":"),
        ("pip", PIP, "installed"),
        ("git", GIT, "cloned"),
        ("npm", NPM, "installed"),
        ("curl", CARGO, "hello-cargo-1.0.0"),
    ] {
        if !has(tool) || is_left_out(command) {
            continue;
        }
        let result = machine.run(tool, &command.replace("URL", &url));
        assert_eq!(result.output.trim_end(), expected, "{tool}: {result:?}");
        let network = &result.metadata["network"];
        assert!(network["bytes_received"].as_u64() > Some(0), "{tool}: {network}");
        machine.executor.release(tool).unwrap();
    }
}

/// A server of the packages, and of cargo itself, where the tests are run by one.
fn packages(tls: Option<std::sync::Arc<rustls::ServerConfig>>) -> (Files, bool) {
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new("bash")
        .args(["-c", PACKAGES])
        .current_dir(directory.path())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut files = files(directory.path());
    let cargo = std::env::var_os("CARGO").and_then(|path| std::fs::read(path).ok());
    let with_cargo = cargo.filter(|bytes| bytes.starts_with(b"\x7fELF"));
    let has_cargo = with_cargo.is_some();
    files.extend(with_cargo.map(|bytes| ("/cargo".to_owned(), bytes)));
    (Files::with(ADDRESS, tls, files), has_cargo)
}

#[test]
fn tools_fetch_packages_by_plain_http() {
    let (server, with_cargo) = packages(None);
    let machine = Machine::allowing(&[server.pattern()]);
    fetch_all(&machine, &server, |command| command == CARGO && !with_cargo);
    // Without the permission they are told at once.
    let machine = Machine::allowing(&[]);
    for (tool, command) in [("pip", PIP), ("git", GIT)] {
        if has(tool) {
            let result = machine.run(tool, &command.replace("URL", &server.url("")));
            assert!(!result.success, "{result:?}");
            assert!(result.metadata["network"]["refused"].as_u64() > Some(0), "{result:?}");
        }
    }
}

#[test]
fn tools_trust_the_operators_certificates() {
    let (pem, tls) = certificate(ADDRESS);
    let (server, with_cargo) = packages(Some(tls));
    let hosts = vec![server.pattern().parse().unwrap()];
    let config = LocalConfig::new(2).with_allow_hosts(hosts);
    let trusting = Machine::start(config.clone().with_ca_pem(pem), Policy::default());
    // Behind a proxy npm finds an address in no certificate.
    let is_left_out = |command: &str| command == NPM || (command == CARGO && !with_cargo);
    fetch_all(&trusting, &server, is_left_out);
    let command = "python3 -c 'import sys, urllib.request as u; \
        print(u.urlopen(sys.argv[1]).read(8))' URL/hello-npm";
    let command = command.replace("URL", &server.url(""));
    assert_eq!(trusting.run("t", &command).output, "b'{\"name\":'");
    // Of this machine's authorities none is lost.
    let count = "grep -c BEGIN $SSL_CERT_FILE; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt";
    let counts = trusting.run("t", count).output;
    let counts: Vec<usize> = counts.lines().map(|line| line.parse().unwrap_or(0)).collect();
    assert_eq!(counts[0], counts[1] + 1);

    let other = Machine::start(config, Policy::default());
    let result = other.run("t", &format!("curl -sS {}", server.url("/hello-npm")));
    assert!(result.output.contains("certificate"), "{result:?}");
}
