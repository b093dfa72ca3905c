//! Small stand-ins for the ports, for this crate's tests alone: the real adapters are held to the ports by
//! `tests/conformance`, and no test outside this crate uses these.
