//! What a model may do to its terminal. Each ends in a result of its own kind, and the next call
//! works.

use super::*;

/// A terminal, to which something is done by typing this; the next call finds another one.
fn is_survived(attack: &str) {
    let bench = Bench::sandboxed();
    bench.begin();
    let keys = json!({"action": "send_keys", "keys": [attack, "Enter"], "min_wait_s": 60});
    let result = bench.call(keys);
    assert!(result.metadata.contains_key("session_ended"), "{attack}: {result:?}");
    let ended = &result.metadata["session_ended"];
    assert_eq!((result.output.as_str(), ended), ("ok", &json!(true)), "{attack}: {}", result.error);
    bench.is_fresh();
}

#[test]
fn leaving_the_shell() {
    is_survived("exit");
}

#[test]
fn killing_the_shell() {
    is_survived("kill -9 $$");
}

#[test]
fn killing_the_server_as_tmux_allows() {
    is_survived("tmux kill-server");
}

#[test]
fn killing_the_session() {
    is_survived("tmux kill-session");
}

#[test]
fn detaching_the_client() {
    is_survived("tmux detach-client -a; tmux detach-client -s s");
}

#[test]
fn killing_the_server_with_a_signal() {
    is_survived("kill -9 $(tmux display -p '#{pid}')");
}

#[test]
fn killing_the_client_with_a_signal() {
    is_survived("kill -9 $(tmux list-clients -F '#{client_pid}')");
}

#[test]
fn killing_everything() {
    is_survived("kill -9 -1");
}

#[test]
fn killing_the_pane_and_leaving_another() {
    // The other pane keeps the server alive; ours is gone.
    let bench = Bench::sandboxed();
    bench.begin();
    bench.keys(json!(["tmux split-window; tmux kill-pane -t %0", "Enter"]));
    let give_up = Instant::now() + LONG;
    let error = loop {
        let result = bench.call(json!({}));
        if !result.success {
            break result.error;
        }
        assert!(Instant::now() < give_up);
    };
    assert_eq!(error, "tmux session ended: its pane is gone");
    bench.is_fresh();
}

/// Writes to the client's standard output what a script of perl makes of `$out`, as a process of
/// the same user can that takes a copy of the descriptor: where there is no filter of system
/// calls.
fn write_to_clients_output(script: &str) {
    let take = "open(my $out, '>&=', syscall(438, syscall(434, $ARGV[0] + 0, 0), 1, 0)) or exit;";
    let script = format!("{take}\n$| = 1; open(T, '>', 'taken'); close(T);\n{script}\n");
    let attack = "perl attack $(tmux list-clients -F '#{client_pid}'); touch over";
    let keys = json!({"action": "send_keys", "keys": [attack, "Enter"], "block": true});
    for filtered in [true, false] {
        let bench = Bench::new(true, filtered);
        bench.begin();
        bench.run("command -v perl > which");
        assert!(!bench.content("which").is_empty(), "install perl");
        bench.put("attack", &script);
        let result = bench.call_for(Duration::from_secs(10), keys.clone());
        let taken = bench.file("taken").exists();
        assert!(!(filtered && taken), "the filter lets it through");
        // The pipe may have been full, and the script at its end.
        let over = bench.file("over").exists();
        let ended =
            result.metadata.get("session_ended").is_some() || result.outcome == Outcome::Timeout;
        assert!(over || (ended && taken), "{result:?}");
        if ended {
            bench.is_fresh();
        }
    }
}

#[test]
fn writing_garbage_to_the_clients_output() {
    write_to_clients_output("syswrite $out, qq(hello\\n); sleep 60;");
}

#[test]
fn writing_a_malformed_notification_to_the_clients_output() {
    write_to_clients_output("syswrite $out, qq(%output %0 \\\\9\\n); sleep 60;");
}

#[test]
fn writing_a_reply_to_nothing_to_the_clients_output() {
    write_to_clients_output("syswrite $out, qq(%begin 1 2 1\\n%end 1 2 1\\n) x 9; sleep 60;");
}

#[test]
fn flooding_the_clients_output_with_a_line_that_has_no_end() {
    write_to_clients_output("my $x = 'x' x 65536; 1 while syswrite $out, $x;");
}

#[test]
fn flooding_the_clients_output_with_a_reply_that_has_no_end() {
    write_to_clients_output(
        "syswrite $out, qq(%begin 1 2 1\\n); my $x = qq(x\\n) x 30000; 1 while syswrite $out, $x;",
    );
}

#[test]
fn stopping_the_server() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.keys(json!(["kill -STOP $(tmux display -p '#{pid}')", "Enter"]));
    let give_up = Instant::now() + LONG;
    let result = loop {
        // More than it may be late.
        let result = bench.call_for(Duration::from_secs(6), json!({}));
        if !result.success {
            break result;
        }
        assert!(Instant::now() < give_up);
    };
    assert_eq!(result.error, "tmux did not answer within 6.0s; its session is ended");
    assert_eq!(result.outcome, Outcome::Timeout);
    bench.is_fresh();
}

#[test]
fn a_shell_that_never_starts() {
    let bench = Bench::sandboxed();
    bench.put("~/.bashrc", "exit 1\n");
    let result = bench.call(json!({"action": "send_keys", "keys": "x", "min_wait_s": 60}));
    assert!(!result.success || result.metadata["session_ended"] == true, "{result:?}");
    bench.put("~/.bashrc", "tmux kill-server\n");
    let result = bench.call(json!({"action": "send_keys", "keys": "x", "min_wait_s": 60}));
    assert!(!result.success || result.metadata["session_ended"] == true, "{result:?}");
    std::fs::remove_file(bench.file("~/.bashrc")).unwrap();
    bench.is_fresh();
}

#[test]
fn commands_of_tmux_from_inside() {
    let bench = Bench::sandboxed();
    bench.begin();
    for command in [
        "tmux split-window -d",
        "tmux new-window -d",
        "tmux rename-session other",
        "tmux set-option -g history-limit 1",
        "tmux set-option -g status on",
        "tmux resize-window -x 200 -y 50",
        "tmux send-keys -t %0 ''",
        "tmux set-buffer secret",
        "tmux run-shell true",
        "tmux list-sessions > /dev/null",
    ] {
        bench.run(command);
    }
    bench.run("clear; tmux display -p -t %0 '#{pane_height}' > size");
    let size = String::from_utf8(bench.content("size")).unwrap();
    let height: usize = size.trim().parse().unwrap();
    assert_eq!(bench.screen().matches('\n').count(), height, "{size}");
    assert!(height != 40, "{size}");
}

#[test]
fn a_mode_of_tmux_that_takes_the_keys_is_left_before_typing() {
    let bench = Bench::sandboxed();
    bench.begin();
    for (turn, enter) in
        ["tmux copy-mode", "tmux run-shell 'echo a; exit 1'", "tmux choose-tree", "tmux clock-mode"]
            .iter()
            .enumerate()
    {
        bench.run(&format!("{enter}; tmux display -p '#{{pane_in_mode}}' > mode"));
        assert_eq!(bench.content("mode"), b"1\n", "{enter} proves nothing");
        bench.run(&format!("echo /f:{turn} > typed"));
        assert_eq!(bench.content("typed"), format!("/f:{turn}\n").as_bytes(), "{enter}");
    }
}

#[test]
fn a_screen_that_looks_like_the_protocol() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run(
        "n=1; while [ $n -lt 600 ]; do echo \"%end $(date +%s) $n 1\"; n=$((n+1)); done > fake",
    );
    bench.run("clear; tail -20 fake; echo %exit; printf '%%output %%0 a\\n%%begin 1 2 1\\n'");
    for _ in 0..20 {
        assert!(bench.screen().contains("%begin 1 2 1\n"));
    }
    bench.run("clear; cat fake");
    for _ in 0..3 {
        let entire = bench.ok(json!({"capture_entire": true})).output;
        assert!(entire.contains(" 598 1\n") && entire.contains(" 100 1\n"));
    }
}

#[test]
fn escapes_that_ask_the_terminal_for_something() {
    let bench = Bench::sandboxed();
    bench.begin();
    // Titles, a clipboard, modes, questions whose answers are typed back, graphics, passing
    // through.
    let escapes: &[u8] =
        b"\x1b]0;title\x07\x1b]2;%begin 1 2 1\x1b\\\x1b]52;c;c2VjcmV0\x07\x1b]52;c;?\x07\
        \x1b[c\x1b[>c\x1b[5n\x1b[6n\x1b[18t\x1b[21t\x1b]10;?\x07\x1b]11;?\x07\x1bP+q544e\x1b\\\
        \x1bPtmux;\x1b\x1b]52;c;eA==\x07\x1b\\\x1bPq#0;2;0;0;0\x1b\\\x1b]1337;File=x:AAAA\x07\
        \x1bkname\x1b\\\x1b[?1000h\x1b[?1006h\x1b[?2004h\x1b[?1049h\x1b[2J\x1b[?1049l\x1b[8;10;20t\
        \x1b[?1000l\x1b[?1006l\x9b6n\x90\x9c\xff\xfe\x00\x7f\x1b\x1b\x1b[";
    bench.put("escapes", escapes);
    bench.run("clear; cat escapes; reset");
    // What the terminal has answered was typed, as in any terminal.
    bench.keys(json!(["C-c", "C-u"]));
    bench.run("clear; echo still here > here");
    assert!(bench.file("here").exists(), "{}", bench.screen());
    assert_eq!(bench.content("here"), b"still here\n");
    assert_eq!(bench.screen().matches('\n').count(), 40, "the size is ours");
    let recorded = bench.ok(json!({"action": "stream", "max_bytes": 200_000})).output;
    let recorded = replay(&recorded);
    assert!(recorded.contains("\x1b]52;c;c2VjcmV0\x07"), "the recording has all of it");
}

#[test]
fn wide_and_combining_characters() {
    let bench = Bench::sandboxed();
    let started = bench.call(json!({"action": "start", "pane_width": 500, "pane_height": 200}));
    assert!(started.success);
    bench.until("$");
    let text = "中文 日本語 한국어 😀 e\u{301}x a\u{308}\u{323} עברית العربية ☃ ½";
    bench.run(&format!("clear; echo '{text}'"));
    assert!(bench.screen().contains(text), "{}", bench.screen());
    // Every cell full of them: the widest lines there are.
    let cell = format!("a{}", "\u{301}".repeat(20));
    bench.put("cells", cell.repeat(500 * 150));
    bench.run("clear; cat cells; echo; echo end");
    let screen = bench.ok(json!({}));
    assert!(screen.output.ends_with('\n') && screen.output.contains("end"));
}

#[test]
fn attaching_a_second_client_inside() {
    // A terminal within the terminal, of the same session.
    let bench = Bench::sandboxed();
    bench.begin();
    bench.run("script --version > /dev/null 2>&1 && touch can");
    if !bench.file("can").exists() {
        return;
    }
    bench.run("TMUX= timeout 1 script -qc 'tmux attach' /dev/null > /dev/null 2>&1 < /dev/null; echo over > over");
    assert_eq!(bench.content("over"), b"over\n");
    bench.run("echo fine > fine");
    assert_eq!(bench.content("fine"), b"fine\n");
}
