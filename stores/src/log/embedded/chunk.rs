//! Chunks: the records of one partition that one call appended, written as one row. Fewer rows are fewer inserts, one time
//! and one key for all; a reader that begins in the middle passes over what comes before.
//!
//! A chunk is `1` (its form), the time of appending in ms as i64, the number of records as u32, then for each the length of
//! its headers as u16, of its body as u32, headers, body. Numbers are little-endian, headers are [`schemas::codec`] without
//! a version of their own.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use schemas::{
    Offset, Timestamp, TopicPartition,
    port::{Append, Headers, Record},
};

const FORM: u8 = 1;
/// A chunk takes no more records once it has so many: a reader in its middle decodes all of it.
pub(crate) const RECORDS: usize = 512;
/// A chunk takes no more records once it has so many bytes.
pub(crate) const BYTES: usize = 256 * 1024;
/// What a record in memory costs beside its body, roughly.
const OVERHEAD: usize = 256;

/// A chunk as the tail keeps it.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) base: u64,
    pub(crate) records: Vec<Record>,
}

impl Chunk {
    /// The offset after its last record.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.records.len() as u64
    }

    /// Memory it takes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.body.len() + OVERHEAD).sum()
    }
}

/// Records on their way into one chunk.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) at: TopicPartition,
    pub(crate) index: usize,
    /// Which records of the call, in order.
    pub(crate) calls: Vec<usize>,
    parts: Vec<(Headers, Bytes)>,
    size: usize,
}

impl Draft {
    pub(crate) fn new(at: TopicPartition, index: usize) -> Self {
        Self { at, index, calls: Vec::new(), parts: Vec::new(), size: 0 }
    }

    pub(crate) fn full(&self) -> bool {
        self.parts.len() >= RECORDS || self.size >= BYTES
    }

    pub(crate) fn push(&mut self, call: usize, append: Append) {
        self.size += append.body.len() + 64;
        self.calls.push(call);
        self.parts.push((append.headers, append.body));
    }

    /// The row's value.
    pub(crate) fn encode(&self, at: Timestamp) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + self.size);
        out.put_u8(FORM);
        out.put_i64_le(at.0);
        out.put_u32_le(self.parts.len() as u32);
        for (headers, body) in &self.parts {
            // Headers serialise without failing, and their strings are bounded far below 64 KiB.
            let headers = postcard::to_stdvec(headers).unwrap_or_default();
            out.put_u16_le(headers.len() as u16);
            out.put_u32_le(body.len() as u32);
            out.put_slice(&headers);
            out.put_slice(body);
        }
        out.freeze()
    }

    /// The chunk, now that its place is known, and the records of the call it answers.
    pub(crate) fn place(self, base: u64, appended_at: Timestamp) -> (Chunk, Vec<usize>) {
        let offsets = (base..).map(Offset);
        let record = |((headers, body), offset)| Record { at: self.at, offset, appended_at, headers, body };
        (Chunk { base, records: self.parts.into_iter().zip(offsets).map(record).collect() }, self.calls)
    }
}

/// Reads a chunk that ends with this offset. The bodies share its bytes. `None` if it is not a chunk.
pub(crate) fn decode(at: TopicPartition, last: Offset, mut value: Bytes) -> Option<Chunk> {
    if value.remaining() < 13 || value.get_u8() != FORM {
        return None;
    }
    let appended_at = Timestamp(value.get_i64_le());
    let count = u64::from(value.get_u32_le());
    let base = (last.0 + 1).checked_sub(count)?;
    let mut records = Vec::with_capacity(count.min(RECORDS as u64) as usize);
    for offset in base..=last.0 {
        if value.remaining() < 6 {
            return None;
        }
        let headers = usize::from(value.get_u16_le());
        let body = value.get_u32_le() as usize;
        if value.remaining() < headers + body {
            return None;
        }
        let headers = postcard::from_bytes(&value.split_to(headers)).ok()?;
        let body = value.split_to(body);
        records.push(Record { at, offset: Offset(offset), appended_at, headers, body });
    }
    value.is_empty().then_some(Chunk { base, records })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{Partition, Topic, tier::Attempt};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_chunk_reads_back_and_a_shortened_one_does_not(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..40),
            base in 0u64..1 << 40,
            cut in 0.0f64..1.0,
        ) {
            let at = TopicPartition { topic: Topic::Outcomes, partition: Partition(3) };
            let mut draft = Draft::new(at, 0);
            for (call, body) in bodies.iter().enumerate() {
                let headers = Headers {
                    tenant: "acme".parse().ok(),
                    attempt: Attempt(call as u8),
                    traceparent: (call % 3 == 0).then(|| "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
                    ..Headers::default()
                };
                draft.push(call, Append { at, headers, body: Bytes::from(body.clone()) });
            }
            let value = draft.encode(Timestamp(1234));
            let (placed, _) = draft.place(base, Timestamp(1234));
            let last = Offset(placed.end() - 1);
            let read = decode(at, last, value.clone()).unwrap();
            prop_assert_eq!(read.base, base);
            prop_assert_eq!(read.records, placed.records);
            let cut = (value.len() as f64 * cut) as usize;
            prop_assert!(decode(at, last, value.slice(..cut)).is_none());
        }
    }
}
