//! The C ABI as C and C++ programs see it: the programs beside this file, compiled by the system's
//! compilers, with warnings as errors, against the libraries that `cargo test` has just built; run as they
//! are, under AddressSanitizer with LeakSanitizer, and under valgrind.
//!
//! What cannot be run is said on standard error (`NOT RUN`), and is an error where `CI` is set.

mod examples;
mod harness;

use harness::{Language, Linked, Program, Under};

/// A C program, run in every way. The function's name is the file's.
macro_rules! programs {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        $(#[test] $(#[$attribute])* fn $name() { everywhere(stringify!($name)); })*
    };
}

programs!(smoke);

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
fn the_shared_library_exports_our_prefix_alone() {
    let names = harness::exported();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(name.starts_with("te_"), "{name} is exported");
    }
}
