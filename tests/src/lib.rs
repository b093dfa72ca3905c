//! Says it is true: what the test binaries share. `conformance` holds one suite per port, `harness` starts the real binary
//! and plays the businesses and the phones.

pub mod conformance;
pub mod harness;
