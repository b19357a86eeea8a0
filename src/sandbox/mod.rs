//! The sandbox engine.

mod files;
mod output;
mod paths;
mod bash;
mod tree;
mod workspace;
