//! Terminals (under construction).
#![allow(dead_code)]
mod arguments;
mod asciicast;
mod control;
mod driver;
mod keys;
mod look;
