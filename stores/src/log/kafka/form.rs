//! How our records stand in Kafka. The body is the value; what routing needs stands in headers:
//!
//! | header | is |
//! |---|---|
//! | `esh3ar-id` | the message's id |
//! | `esh3ar-tenant` | whose it is |
//! | `esh3ar-priority` | `high`, `normal` or `low` |
//! | `esh3ar-attempt` | which attempt, in digits; missing for the first |
//! | `traceparent` | the W3C trace it belongs to |
//!
//! A header that is missing or cannot be read counts as not given: a foreign record never stops a reader.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rdkafka::{
    Message,
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders},
};
use schemas::{
    Offset, Priority, Timestamp, TopicPartition,
    port::{Headers, Record},
    tier::Attempt,
};

const ID: &str = "esh3ar-id";
const TENANT: &str = "esh3ar-tenant";
const PRIORITY: &str = "esh3ar-priority";
const ATTEMPT: &str = "esh3ar-attempt";
const TRACE: &str = "traceparent";

fn word(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

/// What stands in front of a record. `None` where there is nothing to say.
pub(crate) fn headers(of: &Headers) -> Option<OwnedHeaders> {
    let Headers { id, tenant, priority, attempt, traceparent } = of;
    let count = usize::from(id.is_some())
        + usize::from(tenant.is_some())
        + usize::from(priority.is_some())
        + usize::from(attempt.0 > 0)
        + usize::from(traceparent.is_some());
    if count == 0 {
        return None;
    }
    let mut out = OwnedHeaders::new_with_capacity(count);
    if let Some(id) = id {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        out = out.insert(Header { key: ID, value: Some(&*id.0.hyphenated().encode_lower(&mut text)) });
    }
    if let Some(tenant) = tenant {
        out = out.insert(Header { key: TENANT, value: Some(tenant.as_str()) });
    }
    if let Some(priority) = priority {
        out = out.insert(Header { key: PRIORITY, value: Some(word(*priority)) });
    }
    if attempt.0 > 0 {
        out = out.insert(Header { key: ATTEMPT, value: Some(&attempt.0.to_string()) });
    }
    if let Some(trace) = traceparent {
        out = out.insert(Header { key: TRACE, value: Some(trace) });
    }
    Some(out)
}

/// A record's headers. One whose name is not UTF-8, for which the client library panics, counts as not given.
pub(crate) fn given<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = Header<'a, &'a [u8]>> {
    message.headers().into_iter().flat_map(|headers| {
        let get = |n| catch_unwind(AssertUnwindSafe(|| headers.try_get(n))).ok().flatten();
        (0..headers.count()).filter_map(get)
    })
}

/// A record as it was read.
pub(crate) fn record(at: TopicPartition, message: &BorrowedMessage<'_>) -> Record {
    let mut headers = Headers::default();
    for header in given(message) {
        let Some(text) = header.value.and_then(|value| std::str::from_utf8(value).ok()) else { continue };
        match header.key {
            ID => headers.id = text.parse().ok(),
            TENANT => headers.tenant = text.parse().ok(),
            PRIORITY => headers.priority = Priority::ALL.into_iter().find(|p| word(*p) == text),
            ATTEMPT => headers.attempt = Attempt(text.parse().unwrap_or_default()),
            TRACE => headers.traceparent = Some(text.to_owned()),
            _ => {}
        }
    }
    Record {
        at,
        offset: Offset(message.offset().max(0) as u64),
        appended_at: Timestamp(message.timestamp().to_millis().unwrap_or_default()),
        headers,
        body: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}
