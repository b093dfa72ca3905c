//! It keeps its contracts on real servers: the adapters for many machines pass the suites of their ports, and what only a real
//! server can teach. The servers come from `ops/stack`.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]

mod chat;
mod cluster;
mod costs;
mod deploy;
mod door;
mod kafka;
mod nginx;
mod redis;
mod roles;
mod scylla;
mod talk;
