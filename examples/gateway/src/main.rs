//! A small agent gateway.

fn main() {}
