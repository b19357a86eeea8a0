//! The C ABI as C and C++ programs see it: the programs beside this file, compiled by the system's
//! compilers, with warnings as errors, against the libraries that `cargo test` has just built; run
//! as they are, under AddressSanitizer with LeakSanitizer, and under valgrind.
//!
//! What cannot be run is said on standard error (`NOT RUN`), and is an error where `CI` is set.

#![allow(clippy::print_stderr, reason = "what could not be run is to be seen")]

mod examples;
mod harness;

use harness::{Language, Linked, Program, Under};

/// A C program, run in every way. The function's name is the file's.
macro_rules! programs {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        $(#[test] $(#[$attribute])* fn $name() { everywhere(stringify!($name)); })*
    };
}

programs!(smoke, errors, queue, tools, many, forks, races);

#[test]
fn ten_thousand_calls_wait_for_one() {
    Program::c("many").run(Under::Nothing, &["waits"]);
}

fn everywhere(name: &str) {
    let program = Program::c(name);
    program.run(Under::Nothing, &[]);
    program.run(Under::Sanitizers, &[]);
    program.run(Under::Valgrind, &[]);
}

#[test]
fn the_header_is_c99_and_cpp17_and_the_static_library_links() {
    for language in [Language::C, Language::Cpp] {
        for linked in [Linked::Shared, Linked::Static] {
            Program { language, linked, ..Program::c("smoke") }.run(Under::Nothing, &[]);
        }
    }
}

#[test]
fn what_is_installed_is_found_by_pkg_config() {
    use std::process::Command;
    let dir = harness::workplace();
    let prefix = dir.path().join("prefix");
    let installed = Command::new(harness::root().join("packaging/install-c"))
        .arg(&prefix)
        .env("TOOL_EXECUTOR_BUILT", harness::libraries())
        .status()
        .unwrap();
    assert!(installed.success());
    // What a program looks for at its start, and what one is linked with.
    let version = env!("CARGO_PKG_VERSION");
    let link = |name: &str| std::fs::read_link(prefix.join("lib").join(name)).unwrap();
    let soname = link("libtool_executor.so").into_os_string().into_string().unwrap();
    assert!(format!("libtool_executor.so.{version}").starts_with(&soname), "{soname}");
    assert_eq!(link(&soname).as_os_str(), &*format!("libtool_executor.so.{version}"));
    for (name, how) in [("shared", &[][..]), ("static", &["-static"])] {
        let flags = Command::new("pkg-config")
            .args(how.iter().map(|_| "--static"))
            .args(["--cflags", "--libs", &format!("tool_executor = {version}")])
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
            .output()
            .expect("pkg-config; tests/install-tools installs it");
        assert!(flags.status.success(), "{flags:?}");
        let program = dir.path().join(name);
        let compiled = Command::new("cc")
            .args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-pthread", "-o"])
            .arg(&program)
            .args(how)
            .arg(harness::root().join("tests/ffi/smoke.c"))
            .args(String::from_utf8(flags.stdout).unwrap().split_whitespace())
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let mut run = Command::new(program);
        run.env("LD_LIBRARY_PATH", prefix.join("lib"));
        assert_eq!(harness::run(run, dir.path(), name.as_ref()), "smoke: ok\n");
    }
}

#[test]
fn the_shared_library_exports_our_prefix_alone() {
    let names = harness::exported();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(name.starts_with("te_"), "{name} is exported");
    }
}

#[test]
fn a_host_may_end_without_closing() {
    for how in ["return", "exit", "_exit", "queue", "thread"] {
        for under in [Under::Nothing, Under::Sanitizers] {
            Program::c("exits").run(under, &[how]);
        }
    }
    // Of a process that ends, what other threads have in hand is no leak.
    Program::c("exits").run(Under::Valgrind, &["_exit"]);
}

#[test]
fn the_library_is_loaded_and_unloaded_in_a_loop() {
    for under in [Under::Nothing, Under::Sanitizers, Under::Valgrind] {
        Program { linked: Linked::Loads, ..Program::c("loads") }.run(under, &[]);
    }
}

#[test]
fn commands_run_whatever_the_host_does() {
    for how in ["plain", "ignores", "reaps", "closed", "small", "leaves"] {
        Program::c("sandbox").run(Under::Nothing, &[how]);
    }
    // Not under valgrind, which lacks system calls (openat2) that the sandbox needs.
    Program::c("sandbox").run(Under::Sanitizers, &["plain"]);
}
