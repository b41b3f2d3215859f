//! `catena`: the one binary.
fn main() {}
