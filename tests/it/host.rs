//! What commands see of the host's system: what packaged tools need, and no secrets.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::json;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::{ExecutorConfig, LocalConfig, Policy};
use tool_executor::{ToolCall, ToolExecutor};

use crate::caller::directory;

/// An executor over one slot, whose commands have no network.
fn executor() -> (tempfile::TempDir, ToolExecutor) {
    executor_with(false)
}

/// An executor over one slot, whose commands have the host's network or none.
fn executor_with(network: bool) -> (tempfile::TempDir, ToolExecutor) {
    let dir = directory();
    let backend = LocalBackend::start(LocalConfig::new(1).with_data_dir(dir.path())).unwrap();
    assert_eq!(backend.not_isolated_because(), None, "these tests need sandboxes");
    let policy = Policy::default().with_allow_network(network);
    let config = ExecutorConfig::default().with_policy(policy);
    (dir, ToolExecutor::builder().config(config).backend(backend).start().unwrap())
}

/// What a command prints.
fn output(executor: &ToolExecutor, command: &str) -> String {
    let arguments = json!({"command": command, "timeout": 120});
    let result = executor.execute("t", ToolCall::new("bash", arguments));
    assert!(result.success, "{command}: {result:?}");
    result.output
}

/// What a command prints on the host.
fn output_outside(command: &str) -> String {
    let output = Command::new("/bin/bash").args(["-c", command]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn no_link_below_usr_dangles_that_does_not_outside() {
    let (_dir, executor) = executor();
    let dangling = "find /usr -xtype l 2>/dev/null | sort; true";
    let outside = output_outside(dangling);
    let outside: BTreeSet<&str> = outside.lines().collect();
    let inside = output(&executor, &format!("{{ {dangling}; }} > links; tail -n 300 links"));
    let more: Vec<&str> = inside.lines().filter(|link| !outside.contains(link)).collect();
    assert_eq!(more, Vec::<&str>::new());
}

#[test]
fn sys_is_there_read_only_and_without_what_is_the_machines_own() {
    for network in [false, true] {
        let (_dir, executor) = executor_with(network);
        let command = "ls -d /sys/class/net/lo; nproc; cat /sys/devices/system/cpu/possible; \
            ls -A /sys/firmware 2>/dev/null | wc -w; \
            find /sys/fs/cgroup -name 'slot-*' -o -name '*.slice' | wc -l; \
            touch /sys/x 2>&1 | grep -c 'Read-only\\|denied'; \
            find /sys -writable -type f 2>/dev/null | head -3 | wc -l; lscpu >/dev/null && echo fine";
        let said = output(&executor, command);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            (lines[0], lines[3], lines[4], lines[5], lines[7]),
            ("/sys/class/net/lo", "0", "0", "1", "fine")
        );
        let write = "echo 1 > /sys/kernel/mm/ksm/run; echo 1 > /sys/power/state; true";
        let refused = output(&executor, &format!("{{ {write}; }} 2>&1"));
        let is_refused =
            |line: &str| ["Read-only", "denied", "No such"].iter().any(|why| line.contains(why));
        assert!(refused.lines().all(is_refused), "{refused}");
        // Without network the interfaces are the sandbox's own.
        let interfaces = output(&executor, "ls /sys/class/net");
        assert!(network || interfaces == "lo", "{interfaces}");
    }
}

#[test]
fn packaged_tools_find_what_is_installed() {
    let (_dir, executor) = executor();
    for (program, command, expected) in [
        ("dpkg", "dpkg -l | grep -c ^ii", None),
        ("dpkg", "dpkg -S /bin/bash >/dev/null && echo found", Some("found")),
        ("mvn", "mvn -v 2>/dev/null | head -1 | grep -o 'Apache Maven'", Some("Apache Maven")),
        ("java", "java -version 2>&1 | grep -c -i openjdk", None),
        ("php", "php -r 'echo mb_strlen(\"abc\");'", Some("3")),
        ("Rscript", "Rscript -e 'cat(1 + 1)'", Some("2")),
        ("awk", "update-alternatives --query awk >/dev/null && echo found", Some("found")),
    ] {
        let is_there = output_outside(&format!("command -v {program}"));
        if is_there.is_empty() {
            continue;
        }
        let outside = output_outside(command);
        let inside = output(&executor, &format!("{command} || true"));
        assert_eq!(inside.trim(), outside.trim(), "{command}");
        if let Some(expected) = expected {
            assert_eq!(inside.trim(), expected, "{command}");
        }
    }
    let directories = "for d in /var/log /var/cache /run/lock /var/lock /srv /mnt; do \
                       test -d $d || echo $d; done; cat /etc/hostname; readlink /var/run";
    assert_eq!(output(&executor, directories), "sandbox\n/run");
}

#[test]
fn no_secret_of_the_hosts_settings_is_shown() {
    let (_dir, executor) = executor();
    let secrets = "shadow gshadow shadow- gshadow- passwd- sudoers machine-id fstab crypttab \
        krb5.keytab ssh/ssh_host_rsa_key ssh/ssh_host_rsa_key.pub \
        ssh/ssh_host_ed25519_key ssh/ssh_host_ecdsa_key ssh/sshd_config apt/auth.conf";
    let empty = "ssl/private pki/tls/private sudoers.d docker kubernetes rancher cloud \
        NetworkManager wireguard netplan cron.d letsencrypt apt/auth.conf.d";
    let command = format!(
        "cd /etc; for f in {secrets}; do test -e $f && echo $f; done; \
         test -s environment && echo environment; for d in {empty}; do \
         test -n \"$(ls -A $d 2>/dev/null)\" && echo $d; done; \
         grep -rlE -e '-----BEGIN.*PRIVATE KEY' -e '^[^#;]*_authToken *=' . 2>/dev/null; \
         find . -type f ! -readable -o -type d ! -readable -o -type f -perm /6000; echo --; ls | wc -l"
    );
    let said = output(&executor, &command);
    let (found, count) = said.split_once("--\n").unwrap();
    assert_eq!(found, "");
    // And it is no mere handful.
    let outside = fs::read_dir("/etc").unwrap().count();
    let count: usize = count.trim().parse().unwrap();
    assert!(count * 2 > outside, "{count} of {outside}");
}
