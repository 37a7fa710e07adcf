//! Processes that are killed, on each registry: no session is without an end, and none has two under different names.

mod rounds;
mod support;
mod windows;
