//! `plsprobe-lab`: brings the test world up and down.
fn main() {}
