//! The real binary as a child process, and the people around it: a business that sends over HTTP, phones that listen on
//! sockets and may fall silent, drop or come back.

mod business;
pub mod cluster;
mod person;
mod phone;
mod server;
pub mod stack;

pub use business::{Accepted, Business};
pub use person::{Person, contents};
pub use phone::{Phone, Receipt, Taste};
pub use server::{Server, Settings, binary, free_ports};

use std::time::Duration;

/// How long an awaited thing may take before its test fails: far more than it needs, because nothing is timed here.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again until the answer is `Some`, or fails with what was waited for.
pub async fn eventually<T, F: AsyncFnMut() -> Option<T>>(what: &str, mut ask: F) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Says that this machine cannot have a test, in the form that `./test` lists at its end. Past the test runner's capture, which
/// would swallow what a passing test prints.
pub fn not_run(reason: &str) {
    use std::io::Write as _;
    // The runner may be in the middle of a line.
    let _ = write!(std::io::stderr(), "\nnot run: {reason}\n");
}

/// The phone numbers of tests: `+962790000000` and on.
pub fn number(n: u32) -> String {
    format!("+96279{n:07}")
}
