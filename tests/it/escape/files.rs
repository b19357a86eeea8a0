//! The host's files, and those of other slots.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::*;

const ATTACKS: &[Attack] = &[
    Attack {
        name: "read a host file",
        script: "grep -q . @SECRET@ && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "read a host file relative to the workspace",
        script: "grep -q . ../../../../../../../..@SECRET@ && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "read a host file by a symlink",
        script: "ln -s @SECRET@ link; grep -q . link && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "write a host file by a symlink",
        script: "ln -s @DIR@/new link; echo x > link && [ -e @DIR@/new ] && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "hard link to a host file",
        script: "ln @SECRET@ /tmp/link && echo ESCAPED; rm -f /tmp/link",
        outside: NotRun("fails where the directories are on two file systems"),
    },
    Attack {
        name: "read by the root directory of every process",
        script: "for p in /proc/[0-9]*; do grep -q . $p/root@SECRET@ && echo ESCAPED; done",
        outside: Escapes,
    },
    Attack {
        name: "read by the working directory of every process",
        script: "for p in /proc/[0-9]*; do
            for up in .. ../.. ../../.. ../../../.. ../../../../..; do
                grep -q . $p/cwd/$up@SECRET@ && echo ESCAPED
            done
        done",
        outside: Escapes,
    },
    Attack {
        name: "read by open files of other processes",
        script: "timeout 1 cat /proc/[0-9]*/fd/* 2>/dev/null < /dev/null | head -c 1000000 | grep -c @CONTENT@ \
            | grep -v '^0' && echo ESCAPED",
        outside: NotRun("blocks on the host's terminals"),
    },
    Attack {
        name: "search the whole file system",
        script: "find / -xdev -maxdepth 4 -name secret 2>/dev/null | grep -q @DIR@ && echo ESCAPED;
            [ -e @DIR@ ] && echo ESCAPED",
        outside: Escapes,
    },
    Attack {
        name: "see the data directory",
        script: "cat /proc/self/mountinfo | grep -q . && cd /workspace/../ && ls -d slot_* ../lock etc/../lock \
            && echo ESCAPED",
        outside: NotRun("needs the engine's directories"),
    },
    Attack {
        name: "read password hashes",
        script: "grep -q root /etc/shadow && echo ESCAPED",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "read root's home",
        script: "{ [ \"$HOME\" = /root ] || ls -A /root; ls -A /home | grep -vx \"${HOME##*/}\"; } 2>/dev/null | grep -q . \
            && echo ESCAPED",
        outside: NotRun("may be empty"),
    },
    Attack {
        name: "write to the system's programs",
        script: "echo x > /usr/bin/tool-executor-attack && echo ESCAPED;
            echo x > /usr/local/attack && echo ESCAPED",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "write anywhere but to the slot's and the sandbox's own directories",
        script:
            "own=$(stat -c %d /); find / -maxdepth 4 -path /proc -prune -o -path /workspace -prune \
                -o -path /tmp -prune -o -path $HOME -prune -o -path /dev/shm -prune -o -path /dev/mqueue -prune \
                -o -type d -writable -print 2>/dev/null | while read d; do
            [ $(stat -c %d \"$d\") = $own ] || { echo x > \"$d/attack\" && echo ESCAPED $d; }; done",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "remount writable",
        script: "mount -o remount,rw / && echo ESCAPED; mount -o remount,rw,bind /usr && echo ESCAPED",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "bind mount",
        script: "mount --bind /usr /tmp && echo ESCAPED; mount -t proc proc /tmp && echo ESCAPED;
            mount -t tmpfs none /workspace && echo ESCAPED",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "unmount what covers something",
        script: "for m in /workspace /tmp /etc /proc /dev; do umount -l $m && echo ESCAPED; done",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "make and read a block device",
        script: "for n in '8 0' '254 0' '253 0' '259 0'; do mknod disk$n b $n && head -c 1 disk$n \
            && echo ESCAPED; done; mknod mem c 1 1 && head -c 1 mem && echo ESCAPED",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "read devices",
        script: "for d in /dev/[svx]d* /dev/nvme* /dev/mem /dev/kmem /dev/port /dev/kmsg /dev/dm-* \
            /dev/fuse /dev/kvm /dev/net/tun; do head -c 1 $d >/dev/null && echo ESCAPED $d; done",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "leave by two chroots",
        script:
            "perl -e 'mkdir \"x\"; chroot(\"x\") or exit; chdir(\"..\") for 1..99; chroot(\".\");
            print \"ESCAPED\" if -e \"@SECRET@\"'",
        outside: NotRun("needs root"),
    },
    Attack {
        name: "open by file handle",
        // name_to_handle_at and open_by_handle_at of the workspace itself.
        script: r#"perl -e '$h = pack("Ii", 128, 0) . "\0" x 128; $m = "\0" x 8;
            syscall(303, -100, "/workspace", $h, $m, 0) == 0 or exit;
            open(D, "/workspace"); $f = syscall(304, fileno(D), $h, 0);
            print "ESCAPED" if $f >= 0'"#,
        outside: NotRun("needs root"),
    },
    Attack {
        name: "a set-user-id program",
        script:
            "cp /bin/bash mine; chmod 6755 mine; ./mine -p -c 'id -u' | grep -qx 0 && echo ESCAPED;
            for p in $(find /usr/bin /usr/sbin -perm -4000 2>/dev/null | head -5); do
                $p --version </dev/null >/dev/null 2>&1; grep -q 'NoNewPrivs:.0' /proc/self/status \
                && echo ESCAPED; done",
        outside: NotRun("runs the host's set-user-id programs"),
    },
];

#[test]
fn no_script_reaches_the_hosts_files() {
    attack(ATTACKS, true);
}

#[test]
fn no_script_reaches_another_slots_files() {
    for kind in KINDS {
        let (dir, executor) = executor(kind, 2, true);
        for where_to in ["/workspace", "/tmp", "/dev/shm"] {
            let keep = format!("echo victims-secret > {where_to}/victims-file; echo $$");
            assert!(run_in(kind, &executor, "victim", &keep).success);
        }
        let running = executor
            .submit("victim", kind.call("exec -a victims-process sleep 1000"))
            .expect("it is taken");
        let data = dir.path().to_str().unwrap();
        let script = format!(
            "ls -d '{data}'/* && echo ESCAPED
            find / -maxdepth 5 -name 'victims-file' 2>/dev/null | grep . && echo ESCAPED
            grep -rs victims-secre[t] /workspace /tmp /dev/shm /run /var && echo ESCAPED
            for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; done | grep -q victims-[p] && echo ESCAPED
            for n in 0 1; do cat /workspace/../slot_$n/* /workspace/../../slot_$n/* && echo ESCAPED; done"
        );
        let result = run_in(kind, &executor, "attacker", &script);
        assert!(!result.output.contains("ESCAPED"), "{kind:?}: {}", result.output);
        running.cancel();
        assert_eq!(running.wait().outcome, Outcome::Cancelled);
        let kept = run(&executor, "victim", "cat /workspace/victims-file /tmp/victims-file");
        assert_eq!(kept.output, "victims-secret\nvictims-secret");
    }
}

/// What the host has beneath its `/tmp` is named by paths that mean the slot's own there.
fn is_refused_or_of_the_slot(result: &ToolResult) -> bool {
    !result.success
        || result.metadata["path"].as_str().is_some_and(|path| path.starts_with("/tmp/"))
}

#[test]
fn the_file_tools_go_nowhere_but_into_the_slots_machine() {
    let host = Host::new();
    let (dir, executor) = executor(Kind::Warm, 1, true);
    let secret = host.secret_file();
    let secret = secret.to_str().unwrap();
    let links = format!(
        "ln -s {secret} file; ln -s {} dir; ln -s ../../../../../../../.. up; ln -s /proc/self/root proc-root; \
         ln -s loop loop; mkfifo fifo",
        host.dir.path().display()
    );
    assert!(run(&executor, "t", &links).success);
    // One that the host itself made is followed no further.
    let entries = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let slot = entries(dir.path()).next().unwrap().join("slot_0");
    let is_workspace = |path: &PathBuf| path.to_str().unwrap().contains("/slot_0/workspace");
    let workspace = entries(&slot).find(is_workspace).unwrap();
    let changed = workspace.join(if image().is_some() { "upper" } else { "" });
    symlink(secret, changed.join("made-by-host")).unwrap();
    let up = format!("up{secret}");
    let root = format!("proc-root{secret}");
    let relative = format!("../../../../../../../..{secret}");
    let paths = [
        secret,
        "file",
        "dir/secret",
        &up,
        &root,
        &relative,
        "made-by-host",
        "loop",
        "fifo",
        "/proc/self/environ",
        "/etc/passwd",
        "a\0b",
        "",
        ".",
        "/",
    ];
    for path in paths {
        let read = executor.execute("t", call("read_file", json!({"path": path})));
        assert!(!read.output.contains(&host.secret), "{path:?}: {read:?}");
        if path == "/etc/passwd" {
            // Not the host's.
            assert_eq!(read.output.trim_end(), run(&executor, "t", "cat /etc/passwd").output);
        } else {
            assert!(is_refused_or_of_the_slot(&read), "{path:?}: {read:?}");
        }
        let write = json!({"path": path, "content": "overwritten"});
        let written = executor.execute("t", call("write_file", write));
        // Those of an image are the commands' own, where they are root.
        let is_own = path == "/etc/passwd" && image().is_some();
        assert!(is_own || is_refused_or_of_the_slot(&written), "{path:?}: {written:?}");
        assert!(host.is_untouched(), "{path:?}");
    }
    let written = json!({"path": "dir/new", "content": "x"});
    assert!(is_refused_or_of_the_slot(&executor.execute("t", call("write_file", written))));
    assert!(host.is_untouched());
}
