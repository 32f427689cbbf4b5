//! The `vvu` program.
fn main() {}
