//! Full-screen programs and prompts, driven as a model would. A machine without one of them does
//! not test it.

use super::*;

/// Whether the sandbox has this program; if not, the test says so.
fn has(bench: &Bench, program: &str) -> bool {
    bench.begin();
    bench.run(&format!("command -v {program} > which"));
    let found = !bench.content("which").is_empty();
    if !found {
        #[allow(clippy::print_stderr, reason = "shown by `cargo test -- --nocapture`")]
        {
            eprintln!("{program} is not installed: its test does nothing");
        }
    }
    found
}

#[test]
fn an_editor_edits() {
    let bench = Bench::sandboxed();
    if !has(&bench, "vim") {
        return;
    }
    bench.keys(json!(["vim -N -u NONE poem.txt", "Enter"]));
    bench.until("\"poem.txt\" [New");
    bench.keys(json!(["i", "hello wörld", "Enter", "中文 😀", "Escape"]));
    bench.until("中文 😀");
    bench.keys(json!(["ggA", "!", "Escape", ":wq", "Enter"]));
    bench.run("");
    assert_eq!(bench.content("poem.txt"), "hello wörld!\n中文 😀\n".as_bytes());
    // Keys without a byte of their own.
    bench.keys(json!(["vim -N -u NONE poem.txt", "Enter"]));
    bench.until("hello");
    // An escape, and keys that begin with one, are told apart by time alone.
    bench.keys(json!(["Down", "Home", "i", "x", "Escape"]));
    bench.until("\nx中文");
    bench.keys(json!(["Up", "End", "a", "y", "Left", "z"]));
    bench.until("hello wörld!zy");
    bench.keys(json!(["Escape", ":x", "Enter"]));
    bench.run("");
    assert_eq!(bench.content("poem.txt"), "hello wörld!zy\nx中文 😀\n".as_bytes());
}

#[test]
fn a_call_that_blocks_waits_for_a_full_screen_programs_end() {
    let bench = Bench::sandboxed();
    if !has(&bench, "vim") {
        return;
    }
    let start = json!({"action": "send_keys", "keys": ["vim -N -u NONE x", "Enter"], "block": true, "max_wait_s": 0.5});
    assert_eq!(bench.call(start).error, "tmux blocked keys timed out after 0.5s");
    bench.until("\"x\" [New");
    bench.ok(json!({"action": "send_keys", "keys": [":q", "Enter"], "block": true}));
    assert!(!bench.screen().contains("[New"), "the shell's screen is back");
}

#[test]
fn a_pager_pages() {
    let bench = Bench::sandboxed();
    if !has(&bench, "less") {
        return;
    }
    bench.keys(json!(["seq 1 1000 | less", "Enter"]));
    bench.until("39\n");
    bench.keys(json!("Space"));
    bench.until("78\n");
    bench.keys(json!(["/777", "Enter"]));
    // With the line after it: what was typed is on the screen before.
    assert!(bench.until("777\n778\n").starts_with("777\n"));
    bench.keys(json!("PageUp"));
    bench.until("738\n");
    bench.ok(json!({"action": "send_keys", "keys": "q", "block": true}));
    assert!(bench.screen().contains("| less"));
}

#[test]
fn a_monitor_shows_the_processes_and_ends() {
    let bench = Bench::sandboxed();
    if !has(&bench, "top") {
        return;
    }
    bench.keys(json!(["top", "Enter"]));
    assert!(bench.until("PID").contains("Tasks:"));
    bench.until("bash");
    bench.ok(json!({"action": "send_keys", "keys": "q", "block": true}));
    bench.run("echo back > back");
    assert_eq!(bench.content("back"), b"back\n");
}

#[test]
fn a_prompt_of_python_computes() {
    let bench = Bench::sandboxed();
    if !has(&bench, "python3") {
        return;
    }
    bench.keys(json!(["python3", "Enter"]));
    bench.until(">>>");
    bench.keys(json!(["def f(x):\n    return x * 2\n\nprint(f(21), 0xff)", "Enter"]));
    bench.until("42 255\n");
    // It runs for ever once it has said so.
    bench.keys(json!(["print('run' + 'ning') or any(x for x in iter(int, 1))", "Enter"]));
    bench.until("running\n");
    bench.keys(json!("C-c"));
    bench.until("KeyboardInterrupt\n>>>");
    bench.ok(json!({"action": "send_keys", "keys": "C-d", "block": true}));
}

#[test]
fn a_prompt_that_hides_what_is_typed_gets_it() {
    let bench = Bench::sandboxed();
    bench.begin();
    bench.keys(json!(["read -rs -p 'Secret: ' secret; echo; echo \"$secret\" > secret", "Enter"]));
    bench.until("Secret:");
    bench.ok(json!({"action": "send_keys", "keys": ["s3cr3t \\n", "Enter"], "block": true}));
    assert_eq!(bench.content("secret"), b"s3cr3t \\n\n");
    assert!(!bench.screen().contains("s3cr3t"));
}
