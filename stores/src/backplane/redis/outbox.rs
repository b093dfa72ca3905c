//! Outboxes: what waits to be sent, a channel, in order. One sender a channel at a time takes as much as fits a frame; who
//! puts something in learns whether it has to begin sending. A channel with nothing to send takes no room.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use schemas::limits::RedisLimits;

use super::frame::Part;

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It waits, and nobody is sending: whoever put it begins.
    Begin,
    /// It waits for the one who sends.
    Waits,
    /// There is no room.
    Full,
}

/// The outboxes of all channels.
pub(super) struct Outboxes {
    // A channel is here as long as somebody is sending.
    waiting: Mutex<HashMap<String, VecDeque<Part>>>,
    most: usize,
}

impl Outboxes {
    pub(super) fn new(limits: &RedisLimits) -> Self {
        Self { waiting: Mutex::default(), most: limits.outbox }
    }

    pub(super) fn put(&self, channel: &str, part: Part) -> Put {
        let mut waiting = self.waiting.lock();
        match waiting.get_mut(channel) {
            None => {
                waiting.insert(channel.to_owned(), VecDeque::from([part]));
                Put::Begin
            }
            Some(parts) if parts.len() >= self.most => Put::Full,
            Some(parts) => {
                parts.push_back(part);
                Put::Waits
            }
        }
    }

    /// The next frame's parts: at least one, and no more once they have so many bytes. `None`: nothing waits, and whoever
    /// comes next begins.
    pub(super) fn take(&self, channel: &str, bytes: usize) -> Option<Vec<Part>> {
        let mut waiting = self.waiting.lock();
        let parts = waiting.get_mut(channel)?;
        if parts.is_empty() {
            waiting.remove(channel);
            return None;
        }
        let (mut taken, mut sum) = (Vec::with_capacity(parts.len()), 0);
        while sum < bytes
            && let Some(part) = parts.pop_front()
        {
            sum += part.bytes();
            taken.push(part);
        }
        Some(taken)
    }

    /// Whether waiting a moment does no harm: less than half of the room is taken.
    pub(super) fn has_room(&self, channel: &str) -> bool {
        self.waiting.lock().get(channel).is_none_or(|parts| parts.len() < self.most / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(ask: u64) -> Part {
        Part::Done { ask }
    }

    fn asks(parts: Option<Vec<Part>>) -> Vec<u64> {
        let asks = parts.into_iter().flatten().map(|part| if let Part::Done { ask } = part { ask } else { 0 });
        asks.collect()
    }

    #[test]
    fn parts_wait_in_order_and_one_sends() {
        let out = Outboxes::new(&RedisLimits { outbox: 3, ..RedisLimits::default() });
        assert_eq!(out.put("a", done(1)), Put::Begin);
        assert_eq!(out.put("a", done(2)), Put::Waits);
        assert_eq!(out.put("b", done(9)), Put::Begin);
        assert_eq!(asks(out.take("a", 1)), [1], "at least one");
        assert_eq!(out.put("a", done(3)), Put::Waits);
        assert_eq!(out.put("a", done(4)), Put::Waits);
        assert_eq!(out.put("a", done(5)), Put::Full);
        assert_eq!(asks(out.take("a", 1_000_000)), [2, 3, 4]);
        assert!(out.take("a", 1).is_none());
        assert_eq!(out.put("a", done(6)), Put::Begin, "the one who sent has gone");
        assert_eq!(out.waiting.lock().len(), 2);
    }
}
