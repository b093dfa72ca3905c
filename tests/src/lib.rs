//! Says it is true: conformance, end-to-end, crash and tidy tests.
