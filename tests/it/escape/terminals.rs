//! What a model may do to its terminal for the trajectory that has the slot next.

use serde_json::json;

use super::*;

/// Typed in the first trajectory's terminal.
const POISON: &[(&str, &str)] = &[
    (
        "start-up files",
        "for f in .bashrc .bash_profile .profile .inputrc; do echo 'echo POISONED' > ~/$f; done",
    ),
    (
        "tmux's own settings",
        "echo 'set -g default-command \"echo POISONED\"' | tee ~/.tmux.conf /tmp/tmux.conf > /dev/null; \
         tmux set -g default-command 'echo POISONED'; tmux set -g status on; tmux set-buffer POISONED; \
         tmux set-environment -g POISONED 1",
    ),
    (
        "a key and a hook",
        "tmux bind -n a display POISONED; tmux set-hook -g session-created 'run \"echo POISONED\"'",
    ),
    (
        "another server in the socket's place",
        "tmux -S /run/other new -d 'echo POISONED; sleep 5432'; mv /run/other /run/tmux.sock",
    ),
    (
        "a socket in the slot's /tmp",
        "mkdir -p -m 700 /tmp/tmux-$(id -u); tmux -S /tmp/tmux-$(id -u)/default new -d 'sleep 5432'",
    ),
    (
        "a process of the server",
        "tmux run-shell -b 'exec -a POISONED sleep 5432'; tmux new-window -d 'trap \"\" HUP TERM; sleep 5432'",
    ),
    (
        "a daemon",
        "setsid nohup bash -c 'trap \"\" HUP TERM INT; exec -a POISONED sleep 5432' > /dev/null 2>&1 &",
    ),
    (
        "a recording",
        "echo POISONED > .asciinema.cast; ln -s /workspace/.asciinema.cast /tmp/.asciinema.cast",
    ),
    ("a variable and an alias", "export POISONED=1; alias ls='echo POISONED'; PS1='POISONED '"),
    (
        "the shell's history",
        "history -s POISONED; history -w ~/.bash_history; HISTFILE=/tmp/.bash_history history -w",
    ),
    ("a stopped server", "kill -STOP $(tmux display -p '#{pid}')"),
    (
        "a dead server with living panes",
        "trap '' HUP; kill -9 $(tmux display -p '#{pid}'); exec -a POISONED sleep 5432",
    ),
];

fn tmux(executor: &ToolExecutor, trajectory: &str, arguments: serde_json::Value) -> ToolResult {
    executor.execute(trajectory, call("tmux", arguments))
}

#[test]
fn nothing_that_is_done_to_a_terminal_reaches_the_next_trajectory() {
    let (_dir, executor) = executor(Kind::Warm, 1, true);
    for (name, poison) in POISON {
        // No wait for its end: some of it ends the terminal, or what would tell.
        let keys = json!(["clear; touch typed; ", poison, "Enter"]);
        let typed = json!({"action": "send_keys", "keys": keys, "block": true, "max_wait_s": 3});
        let typed = tmux(&executor, "first", typed);
        let went_on = typed.success || typed.outcome == Outcome::Timeout;
        assert!(went_on || typed.metadata.contains_key("session_ended"), "{name}: {typed:?}");
        assert!(run(&executor, "first", "ls typed").success, "{name} was not typed: {typed:?}");
        executor.release("first").unwrap();

        let keys = json!([
            "clear; env; alias; history; type ls; tmux show -g; tmux lsb; tmux ls; true",
            "Enter"
        ]);
        let look = json!({"action": "send_keys", "keys": keys, "block": true});
        let look = tmux(&executor, "second", look);
        assert_eq!(
            (&*look.output, &look.metadata["session_started"]),
            ("ok", &json!(true)),
            "{name}: {look:?}"
        );
        let screen = tmux(&executor, "second", json!({"capture_entire": true}));
        let stream = tmux(&executor, "second", json!({"action": "stream", "max_bytes": 200_000}));
        let files = run(
            &executor,
            "second",
            "grep -rs POISONED /workspace /tmp /dev/shm; ls -A /workspace /tmp /dev/shm",
        );
        let processes = run(
            &executor,
            "second",
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep 'POISONE[D]\\|sleep 543[2]'",
        );
        for found in [&screen, &stream, &files, &processes] {
            assert!(!found.output.contains("POISONED"), "{name}: {}", found.output);
        }
        assert!(screen.output.contains("1 windows"), "{name}: {}", screen.output);
        assert_eq!(files.output, "/dev/shm:\n\n/tmp:\n\n/workspace:", "{name}");
        assert_eq!(processes.output, "", "{name}");
        executor.release("second").unwrap();
    }
}

/// Attacks on the host from a terminal, which has what the other sandboxes have not: a keyboard.
#[test]
fn no_script_escapes_from_a_terminal() {
    let host = Host::new();
    let (_dir, executor) = executor(Kind::Warm, 1, false);
    for script in [
        "cat @SECRET@",
        "tmux run-shell 'cat @SECRET@ > /workspace/got'; cat got",
        "tmux source-file @SECRET@; tmux load-buffer @SECRET@ && tmux show-buffer",
        "tmux save-buffer -a @SECRET@; tmux pipe-pane 'cat > @DIR@/new'",
        "{ exec 3<>/dev/tcp/127.0.0.1/@TCP@; } 2>/dev/null && echo ESC''APED",
        "unshare -Ur true && echo ESC''APED; kill -0 @PID@ && echo ESC''APED",
        r#"perl -e 'open(T, "+<", "/dev/tty"); $c = "x"; print "ESC", "APED" if ioctl(T, 0x5412, $c)'"#,
        r#"perl -e 'print "ESC", "APED" if syscall(250, 0, -3, 1) >= 0 || syscall(272, 0x10000000) >= 0'"#,
    ] {
        let keys = json!([host.fill_in(script), "Enter"]);
        let typed = json!({"action": "send_keys", "keys": keys, "block": true});
        let typed = tmux(&executor, "t", typed);
        assert_eq!(typed.output, "ok", "{script}: {typed:?}");
        let screen = tmux(&executor, "t", json!({"capture_entire": true})).output;
        assert!(!screen.contains("ESCAPED") && !screen.contains(&host.secret), "{screen}");
        assert!(host.is_untouched(), "{script}");
    }
}
