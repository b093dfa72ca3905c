//! Decides: the dataflow from lanes to deliveries. The only crate that names timely.

mod ages;
pub mod books;
mod credit;
pub mod handed;
pub mod item;
pub mod requeue;
pub mod settle;
pub mod sweep;
pub mod watch;
