//! Tests of what only the embedded log promises.
