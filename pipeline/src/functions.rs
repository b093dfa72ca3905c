//! Functions: the seam where a data engineer's own code meets the flow. It sees a batch of messages and says, for each, what is
//! to be changed; it does not send, does not wait and keeps the number and order of what it was given.

use std::sync::Arc;

use schemas::{Content, Message, Priority, json::Json};

/// A message before a function.
#[derive(Debug)]
pub struct Case {
    /// The message.
    pub message: Arc<Message>,
    /// What the function says. Starts as [`Verdict::Keep`].
    pub verdict: Verdict,
}

/// What a function says of one message.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Verdict {
    /// As it is.
    #[default]
    Keep,
    /// Shown with another priority. Its lane and partition stay.
    Priority(Priority),
    /// Not to be delivered: it is recorded and fails with the reason `dropped`.
    Drop,
    /// With other content.
    Rewrite(Content),
    /// With other metadata.
    Tag(Json),
}

/// A function. Called on the instance's own thread: it must be quick, and a panic ends the process.
pub trait Function: Send + Sync + 'static {
    /// Its name, in metrics and logs.
    fn name(&self) -> &str;

    /// Judges a batch of one lane.
    fn apply(&self, batch: &mut [Case]);
}

/// The built-in function that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Noop;

impl Function for Noop {
    fn name(&self) -> &str {
        "noop"
    }

    fn apply(&self, _: &mut [Case]) {}
}

impl Case {
    /// Carries the verdict out. False: the message is dropped.
    pub(crate) fn carry_out(&mut self) -> bool {
        match std::mem::take(&mut self.verdict) {
            Verdict::Keep => {}
            Verdict::Drop => return false,
            Verdict::Priority(priority) => Arc::make_mut(&mut self.message).priority = priority,
            Verdict::Rewrite(content) => Arc::make_mut(&mut self.message).content = content,
            Verdict::Tag(metadata) => Arc::make_mut(&mut self.message).metadata = Some(metadata),
        }
        true
    }
}
