//! What the operator gives to commands: binds, variables, directories of programs, devices.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{Bind, LocalConfig};
use tool_executor::{ToolCall, ToolExecutor};

use crate::caller::directory;
use crate::fakes::bash;

/// A directory of the host, beside that of the workspaces.
struct Place {
    _dir: tempfile::TempDir,
    data: PathBuf,
    tools: PathBuf,
    shared: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = directory();
        let inner = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let (data, tools, shared) =
            (inner("data", 0o711), inner("tools", 0o755), inner("shared", 0o777));
        fs::create_dir(tools.join("bin")).unwrap();
        fs::write(tools.join("bin/greet"), "#!/bin/sh\necho hello from $GREETER\n").unwrap();
        fs::set_permissions(tools.join("bin/greet"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(tools.join("cache")).unwrap();
        fs::write(tools.join("rc"), "setting\n").unwrap();
        Self { data, tools, shared, _dir: dir }
    }

    fn config(&self) -> LocalConfig {
        LocalConfig::new(2).with_data_dir(&self.data)
    }

    fn executor(&self, config: LocalConfig) -> ToolExecutor {
        let backend = LocalBackend::start(config).unwrap();
        assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
        ToolExecutor::builder().backend(backend).start().unwrap()
    }

    fn refusal(&self, config: LocalConfig) -> String {
        let error = LocalBackend::start(config).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    }
}

fn variables<const N: usize>(of: [(&str, Option<&str>); N]) -> BTreeMap<String, Option<String>> {
    of.into_iter().map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).collect()
}

fn call(tool: &str, command: &str) -> ToolCall {
    ToolCall::new(tool, json!({"command": command, "allow_network": false}))
}

#[test]
fn every_tool_has_what_the_operator_gives() {
    let place = Place::new();
    let config = place
        .config()
        .with_binds(vec![
            Bind::writable(&place.shared).with_place("/extra/cache"),
            Bind::read_only(&place.tools).with_place("/extra"),
            Bind::read_only(place.tools.join("rc")).with_place("/etc/tool-executor-test/rc"),
        ])
        .with_env(variables([("GREETER", Some("the operator's"))]))
        .with_path_prepend(vec!["/extra/bin".into()]);
    let executor = place.executor(config);
    let command = "greet; cat /etc/tool-executor-test/rc; \
                   echo \"$PATH\" | cut -d: -f1-2";
    let expected = "hello from the operator's\nsetting\n/extra/bin:/usr/local/sbin";
    for tool in ["bash", "terminal_stateful"] {
        assert_eq!(executor.execute("t", call(tool, command)).output, expected, "{tool}");
        let refused = "echo x 2>/dev/null > /extra/new; echo x 2>/dev/null > \
                       /etc/tool-executor-test/rc; rm -f /extra/rc 2>/dev/null; echo $?";
        assert_eq!(executor.execute("t", call(tool, refused)).output, "1", "{tool}");
    }
    let terminal = json!({
        "action": "send_keys", "keys": ["greet > /tmp/greeted", "Enter"], "block": true
    });
    if fs::metadata("/usr/bin/tmux").is_ok() {
        let result = executor.execute("t", ToolCall::new("tmux", terminal));
        assert!(result.success, "{result:?}");
        let said = executor.execute("t", bash("cat /tmp/greeted")).output;
        assert_eq!(said, "hello from the operator's");
    }
    // What is written stays, for all slots.
    assert!(executor.execute("t", bash("echo kept > /extra/cache/file")).success);
    assert_eq!(fs::read_to_string(place.shared.join("file")).unwrap(), "kept\n");
    assert_eq!(executor.execute("u", bash("cat /extra/cache/file")).output, "kept");
    executor.release("t").unwrap();
    assert_eq!(executor.execute("v", bash("cat /extra/cache/file")).output, "kept");
    let result = executor.execute("v", bash("printf '\\060' > /tmp/z; cmp -n1 /dev/zero /tmp/z"));
    assert!(!result.success, "the devices are the usual ones: {result:?}");
}

#[test]
fn a_device_is_there_if_it_was_given() {
    let device = Path::new("/dev/loop-control");
    let is_there = device.exists();
    let place = Place::new();
    let plain = place.executor(place.config());
    assert!(!plain.execute("t", bash("test -e /dev/loop-control")).success);
    drop(plain);
    if is_there {
        let config = place.config().with_devices(vec![device.to_owned()]);
        match LocalBackend::start(config) {
            Ok(backend) => {
                let executor = ToolExecutor::builder().backend(backend).start().unwrap();
                assert!(executor.execute("t", bash("test -c /dev/loop-control")).success);
            }
            // The commands' user may not use it.
            Err(error) => {
                let source = std::error::Error::source(&error).unwrap().to_string();
                assert!(source.contains("may not read /dev/loop-control"), "{source}");
            }
        }
    }
}

#[test]
fn what_cannot_be_given_ends_the_start_with_what_would_be_right() {
    let place = Place::new();
    let bind = |source: &Path, inside: &str| {
        place.config().with_binds(vec![Bind::read_only(source).with_place(inside)])
    };
    let secret = place.tools.join("secret");
    fs::create_dir(&secret).unwrap();
    let taken = |inside: &str| bind(&place.tools, inside);
    for (config, words) in [
        (taken("/workspace"), "sandboxes have /workspace of their own"),
        (taken("/home"), "of their own"),
        (taken("/usr"), "it would cover /usr"),
        (taken("/usr/no-such"), "which has no such directory"),
        (taken("/etc/passwd"), "cannot make the places of binds in /etc"),
        (bind(&place.tools.join("nothing"), "/x"), "nothing"),
        (bind(&place.data, "/x"), "would show commands the files of all slots"),
        (bind(place.data.parent().unwrap(), "/x"), "would show commands the files of all slots"),
        (
            place.config().with_env(variables([("NO_SUCH_VARIABLE", None)])),
            "NO_SUCH_VARIABLE is to be passed on, and is not set here",
        ),
        (place.config().with_devices(vec!["/dev/null".into()]), "has /dev/null already"),
    ] {
        let refusal = place.refusal(config);
        assert!(refusal.contains(words), "{refusal}");
        assert_eq!(fs::read_dir(&place.data).unwrap().count(), 0, "nothing is left: {refusal}");
    }
    if crate::sandbox::is_root() {
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
        let refusal = place.refusal(bind(&secret, "/x"));
        assert!(refusal.contains("may not look into"), "{refusal}");
        let config = place.config().with_binds(vec![Bind::writable(&place.tools).with_place("/x")]);
        let refusal = place.refusal(config);
        assert!(refusal.contains("may not write to"), "{refusal}");
    }
}
