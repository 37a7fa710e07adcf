//! Killed processes, on each registry: every session has an end, and repeated ends have the same generation.

mod rounds;
mod support;
mod windows;
