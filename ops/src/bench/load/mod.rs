//! The load generator: as cheap as it can be, because it shares the machine with what it measures.

mod http;
mod phones;
mod talkers;
mod talks;

use anyhow::{Context, Result};
use schemas::{Clock, Content, ContentType, Kind, Message, MessageId, Phone, Priority, Sender, Tenant, UserId};

pub(crate) use http::{Conn, batch, count_accepted};
pub(crate) use phones::{ACKNOWLEDGE, Phones, Watch};
pub(crate) use talkers::{Manner, Talkers, Tally, business};
pub(crate) use talks::{Filling, pair};

use super::TENANT;
use crate::clock::SystemClock;

/// The phone number of the `n`th user.
pub(crate) fn number(n: usize) -> String {
    format!("+96279{n:07}")
}

/// A content of about `bytes` bytes that starts with the microsecond at which it was meant to be sent, and does not compress.
pub(crate) fn content(micros: u64, bytes: usize, seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = format!("{micros:016} ");
    let mut state = micros ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while text.len() < bytes {
        // xorshift64: no two messages alike, and nothing for a compressor to find.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for shift in (0..60).step_by(6).take(bytes - text.len()) {
            text.push(char::from(LETTERS[(state >> shift) as usize & 63]));
        }
    }
    text
}

/// A message as the door would have made it, for filling a log or a history.
pub(crate) fn message(clock: SystemClock, user: usize, priority: Priority, bytes: usize, seed: u64) -> Result<Message> {
    let phone = Phone::from_stored(&number(user)).context("a number")?;
    Ok(Message {
        id: MessageId::fresh(clock.wall()),
        kind: Kind::OneWay,
        from: Sender::Server,
        to: UserId::mobile(Tenant::parse(TENANT)?, phone),
        priority,
        content: Content { content_type: ContentType::Text, subject: None, body: content(clock.micros(), bytes, seed) },
        client_ref: None,
        metadata: None,
        accepted_at: clock.wall(),
        send_at: None,
        expires_at: None,
        broadcast: None,
        trace: None,
        fingerprint: [0; 16],
    })
}
