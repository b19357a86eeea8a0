//! The `tool-executor` program.

fn main() {}
