//! What stands in front of a record that was not taken: its own headers, and why. `docs/kafka-door.md` lists them.

use rdkafka::message::{Header, OwnedHeaders};
use schemas::{Problem, port::Raw};

/// What stands before the headers that say why a record was not taken; whoever produces it again leaves them out.
const PROBLEM: &str = "problem-";
/// Never kept among the rejected: who reads them is not who sent them.
const CREDENTIALS: &str = "authorization";

/// The record's own headers, and what was wrong.
pub(crate) fn headers(raw: &Raw, problem: &Problem, whole: bool) -> OwnedHeaders {
    let mut out = OwnedHeaders::new();
    for (key, value) in &raw.headers {
        // What was rejected before and produced again is rejected anew, for the new reason alone.
        if !key.eq_ignore_ascii_case(CREDENTIALS) && !key.starts_with(PROBLEM) {
            out = out.insert(Header { key, value: Some(&value[..]) });
        }
    }
    let mut say = |name: &str, text: &str| {
        let key = format!("{PROBLEM}{name}");
        out = std::mem::take(&mut out).insert(Header { key: &key, value: Some(text) });
    };
    say("type", &problem.type_uri());
    say("title", problem.code.title());
    say("status", &problem.code.status().to_string());
    say("detail", &problem.detail);
    if let Some(field) = &problem.field {
        say("field", field);
    }
    say("topic", &raw.spot.topic);
    say("partition", &raw.spot.partition.to_string());
    say("offset", &raw.offset.to_string());
    say("at", &raw.at.to_string());
    if !whole {
        say("value", "too large to be kept here: it stands at the place that is named");
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rdkafka::message::Headers as _;
    use schemas::{Code, Timestamp, port::Spot};

    use super::*;

    #[test]
    fn a_rejected_record_keeps_its_headers_but_for_credentials_and_says_what_was_wrong() {
        let header = |name: &str, value: &str| (name.to_owned(), Bytes::from(value.to_owned()));
        let raw = Raw {
            spot: Spot { topic: "ingress.acme".into(), partition: 3 },
            offset: 7,
            at: Timestamp(0),
            key: None,
            headers: vec![
                header("ce_id", "42"),
                header("Authorization", "Bearer secret"),
                header("problem-type", "/problems/of-the-last-time"),
            ],
            value: None,
        };
        let problem = Problem::new(Code::InvalidPhone, "`to` must be E.164").at("/to");
        let headers = headers(&raw, &problem, true);
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        let said: Vec<_> = headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect();
        let said: Vec<_> = said.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            said,
            [
                ("ce_id", "42"),
                ("problem-type", "/problems/invalid-phone"),
                ("problem-title", "The recipient is not a valid E.164 phone number"),
                ("problem-status", "422"),
                ("problem-detail", "`to` must be E.164"),
                ("problem-field", "/to"),
                ("problem-topic", "ingress.acme"),
                ("problem-partition", "3"),
                ("problem-offset", "7"),
                ("problem-at", "1970-01-01T00:00:00.000Z"),
            ]
        );
    }
}
