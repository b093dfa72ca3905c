//! The backplane: the way to the node that holds a session. One adapter a carrier, all behind `schemas::port::Backplane`.

pub mod local;

pub use local::LocalBackplane;
