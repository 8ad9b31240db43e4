//! The controller's service.
fn main() {}
