//! The `keypool` command.

fn main() {}
