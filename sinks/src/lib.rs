//! Does: what leaves the pipeline for the world, each act with a deadline and a breaker.
