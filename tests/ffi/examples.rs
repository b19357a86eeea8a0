//! The examples, compiled and run.
