//! The sandbox engine.

mod files;
mod output;
mod paths;
mod shell;
mod supervisor;
mod tree;
mod workspace;
