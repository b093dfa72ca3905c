//! Reading a record: plain JSON like the HTTP body, or a CloudEvent 1.0, binary or structured; and whose it is. Pure: any
//! bytes give a request or a refusal that says what was wrong.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemas::{
    Code, Draft, Key, MessageId, Problem, Tenant, UserId,
    port::{Raw, Spot},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The topic that all tenants may produce to, each record with a token of its own.
pub const SHARED: &str = "ingress";
/// Topics of one tenant each begin so: who may produce to one acts for its tenant.
const OWN: &str = "ingress.";
/// The longest `source` of an event, bytes: a URI, not a document.
const SOURCE_BYTES: usize = 1024;

/// Whose records a topic holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// Each record says so by its token.
    Shared,
    /// This tenant's.
    Own(Tenant),
}

/// Reads it from the topic's name.
pub(super) fn whose(topic: &str) -> Result<Whose, Problem> {
    if topic == SHARED {
        return Ok(Whose::Shared);
    }
    let tenant = topic.strip_prefix(OWN).unwrap_or_default();
    Tenant::parse(tenant)
        .map(Whose::Own)
        .map_err(|why| Problem::new(Code::Forbidden, format!("the topic {topic} names no tenant: {why}")).at("topic"))
}

/// What a record asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) draft: Draft,
    /// `source` and `id` of the event that it came in.
    pub(super) event: Option<(String, String)>,
    /// `traceparent`, as it was given.
    pub(super) trace: Option<String>,
}

impl Asked {
    /// The name that its message is to have, where its draft gives none: by the event's `source` and `id`, else by where the
    /// record stands. Read again after a crash, it is the same; of a topic that was made anew, another.
    pub(super) fn name(&self, raw: &Raw, tenant: &Tenant, to: &UserId) -> Option<MessageId> {
        match (&self.event, &self.draft.key) {
            (Some((source, id)), _) => Some(MessageId::of_key(tenant, source, id, to)),
            (None, Some(_)) => None,
            (None, None) => {
                let Spot { topic, partition } = &raw.spot;
                // No source of an event begins with a control character.
                let source = format!("\u{1}{topic}/{partition}");
                Some(MessageId::of_key(tenant, &source, &format!("{}@{}", raw.offset, raw.at.0), to))
            }
        }
    }
}

/// A header as text; its name in any case.
pub(super) fn header<'a>(raw: &'a Raw, name: &str) -> Result<Option<&'a str>, Problem> {
    let found = raw.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let text = found.map(|(_, value)| std::str::from_utf8(value)).transpose();
    text.map_err(|_| Problem::new(Code::InvalidHeader, format!("the header `{name}` is not text")).at(name))
}

/// Reads a record of at most `max` bytes.
pub(super) fn read(raw: &Raw, max: usize) -> Result<Asked, Problem> {
    let Some(value) = raw.value.as_deref() else {
        return Err(Problem::new(Code::InvalidJson, "the record has no value"));
    };
    if value.len() > max {
        return Err(Problem::new(Code::TooLarge, format!("the record has {} bytes, the most is {max}", value.len())));
    }
    let kind = header(raw, "content-type")?.unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let trace = header(raw, "traceparent")?.map(str::to_owned);
    if essence == "application/cloudevents+json" {
        return structured(value, trace);
    }
    let event = match header(raw, "ce_specversion")? {
        Some(version) => Some(binary(raw, version)?),
        None => None,
    };
    if !is_json(&essence) {
        let detail = format!(
            "records are JSON (`application/json`) or CloudEvents (`application/cloudevents+json`, or headers `ce_…`), not {essence}"
        );
        return Err(Problem::new(Code::UnsupportedMediaType, detail).at("content-type"));
    }
    let draft = Draft::<String>::parse(value)?;
    check_key(&draft, event.is_some(), "/key")?;
    let ce_trace = header(raw, "ce_traceparent")?.map(str::to_owned);
    Ok(Asked { draft, event, trace: trace.or(ce_trace) })
}

/// JSON, said or not said.
fn is_json(essence: &str) -> bool {
    essence.is_empty()
        || essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// An event is named by its source and id: a key beside them would be a second name.
fn check_key(draft: &Draft, is_event: bool, at: &str) -> Result<(), Problem> {
    if is_event && draft.key.is_some() {
        let detail = "a CloudEvent is named by its `source` and `id`: leave out `key`";
        return Err(Problem::new(Code::InvalidField, detail).at(at));
    }
    Ok(())
}

/// The attributes of an event whose data is the record's value.
fn binary(raw: &Raw, version: &str) -> Result<(String, String), Problem> {
    let attribute = |name: &'static str| {
        let text = header(raw, name)?.unwrap_or_default();
        if text.is_empty() {
            return Err(Problem::new(Code::InvalidHeader, format!("a CloudEvent needs the header `{name}`")).at(name));
        }
        Ok(text)
    };
    attributes(version, attribute("ce_source")?, attribute("ce_id")?, attribute("ce_type")?, Code::InvalidHeader)
}

/// Checks what names an event.
fn attributes(version: &str, source: &str, id: &str, kind: &str, code: Code) -> Result<(String, String), Problem> {
    let refuse = |name: &str, why: String| Err(Problem::new(code, why).at(name));
    if version != "1.0" {
        return refuse("specversion", format!("CloudEvents of specversion 1.0 are read, not {version}"));
    }
    if source.is_empty() || source.len() > SOURCE_BYTES || source.chars().any(char::is_control) {
        return refuse("source", format!("`source` must be 1 to {SOURCE_BYTES} bytes without control characters"));
    }
    if let Err(why) = Key::parse(id) {
        return refuse("id", format!("`id` {}", why.rule));
    }
    if kind.is_empty() {
        return refuse("type", "a CloudEvent needs a `type`".to_owned());
    }
    Ok((source.to_owned(), id.to_owned()))
}

/// An event as one JSON object. What else it carries is its sender's.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(default)]
    specversion: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    datacontenttype: Option<String>,
    #[serde(default)]
    traceparent: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    data_base64: Option<String>,
}

fn structured(value: &[u8], trace: Option<String>) -> Result<Asked, Problem> {
    let event: Event = serde_json::from_slice(value).map_err(|why| {
        let code = if why.is_data() { Code::InvalidField } else { Code::InvalidJson };
        Problem::new(code, why.to_string())
    })?;
    let Event { specversion, id, source, r#type: kind, datacontenttype, traceparent, data, data_base64 } = event;
    let named = attributes(&specversion, &source, &id, &kind, Code::InvalidField)?;
    let of = datacontenttype.unwrap_or_default();
    let essence = of.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !is_json(&essence) {
        let detail = format!("the data of an event is JSON (`application/json`), not {essence}");
        return Err(Problem::new(Code::UnsupportedMediaType, detail).at("/datacontenttype"));
    }
    let draft = match (data, data_base64) {
        (Some(data), None) => Draft::<String>::parse(data.get().as_bytes()),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text).map_err(|why| {
                Problem::new(Code::InvalidField, format!("`data_base64` is not base64: {why}")).at("/data_base64")
            })?;
            Draft::<String>::parse(&bytes)
        }
        _ => {
            let detail = "an event carries its message in one of `data` and `data_base64`";
            return Err(Problem::new(Code::InvalidField, detail).at("/data"));
        }
    };
    let draft = draft.map_err(|problem| {
        // Fields are those of the data.
        let field = problem.field.clone().map_or_else(|| "/data".to_owned(), |field| format!("/data{field}"));
        problem.at(field)
    })?;
    check_key(&draft, true, "/data/key")?;
    Ok(Asked { draft, event: Some(named), trace: trace.or(traceparent) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use schemas::{Phone, Timestamp};

    const DRAFT: &str = r#"{"to":"+962790000001","content":"hello"}"#;

    fn raw(headers: &[(&str, &str)], value: &str) -> Raw {
        Raw {
            spot: Spot { topic: "ingress.acme".into(), partition: 3 },
            offset: 7,
            at: Timestamp(1_000),
            key: None,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), Bytes::from((*v).to_owned()))).collect(),
            value: Some(Bytes::from(value.to_owned())),
        }
    }

    const BINARY: [(&str, &str); 5] = [
        ("ce_specversion", "1.0"),
        ("ce_id", "42"),
        ("ce_source", "/shop"),
        ("ce_type", "order.shipped"),
        ("Content-Type", "application/json; charset=utf-8"),
    ];

    fn structured(more: &str) -> String {
        format!(r#"{{"specversion":"1.0","id":"42","source":"/shop","type":"order.shipped"{more}}}"#)
    }

    const STRUCTURED: [(&str, &str); 1] = [("content-type", "application/cloudevents+json; charset=UTF-8")];

    #[test]
    fn plain_json_and_both_kinds_of_events_ask_for_the_same() {
        let plain = read(&raw(&[], DRAFT), 1_000).unwrap();
        assert_eq!((plain.draft.to.as_str(), &plain.event), ("+962790000001", &None));
        let named = Some(("/shop".to_owned(), "42".to_owned()));
        let binary = read(&raw(&BINARY, DRAFT), 1_000).unwrap();
        let whole = read(&raw(&STRUCTURED, &structured(&format!(r#","data":{DRAFT}"#))), 1_000).unwrap();
        let packed = format!(r#","data_base64":"{}""#, STANDARD.encode(DRAFT));
        let packed = read(&raw(&STRUCTURED, &structured(&packed)), 1_000).unwrap();
        for event in [binary, whole, packed] {
            assert_eq!((&event.draft, &event.event), (&plain.draft, &named));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |name: &str, value: &str| {
            let changed = BINARY.map(|(n, v)| if n == name { (n, value.to_owned()) } else { (n, v.to_owned()) });
            let changed: Vec<_> = changed.iter().map(|(n, v)| (*n, v.as_str())).collect();
            raw(&changed, DRAFT)
        };
        let keyed = r#"{"to":"+962790000001","content":"x","key":"k"}"#;
        let table = [
            (Raw { value: None, ..raw(&[], "") }, Code::InvalidJson, "no value"),
            (raw(&[], &"x".repeat(1_001)), Code::TooLarge, "1001 bytes"),
            (raw(&[], "{"), Code::InvalidJson, "EOF"),
            (raw(&[("content-type", "text/plain")], DRAFT), Code::UnsupportedMediaType, "text/plain"),
            (raw(&BINARY[..1], DRAFT), Code::InvalidHeader, "ce_source"),
            (with("ce_specversion", "0.3"), Code::InvalidHeader, "1.0"),
            (with("ce_id", "a\nb"), Code::InvalidHeader, "control"),
            (with("ce_type", ""), Code::InvalidHeader, "ce_type"),
            (raw(&BINARY, keyed), Code::InvalidField, "leave out `key`"),
            (raw(&STRUCTURED, &structured("")), Code::InvalidField, "data_base64"),
            (raw(&STRUCTURED, &structured(r#","data":{"to":1}"#)), Code::InvalidField, "invalid type"),
            (raw(&STRUCTURED, &structured(r#","data_base64":"?""#)), Code::InvalidField, "base64"),
            (
                raw(&STRUCTURED, &structured(r#","datacontenttype":"application/xml","data":"<a/>""#)),
                Code::UnsupportedMediaType,
                "xml",
            ),
            (raw(&STRUCTURED, &structured(&format!(r#","data":{keyed}"#))), Code::InvalidField, "leave out `key`"),
            (raw(&STRUCTURED, r#"{"specversion":"1.0"}"#), Code::InvalidField, "`source`"),
        ];
        for (record, code, part) in table {
            let problem = read(&record, 1_000).unwrap_err();
            assert_eq!(problem.code, code, "{problem}");
            assert!(problem.detail.contains(part), "{part}: {problem}");
        }
        let deep = read(&raw(&STRUCTURED, &structured(r#","data":{"to":1}"#)), 1_000).unwrap_err();
        assert!(deep.field.unwrap().starts_with("/data"));
    }

    #[test]
    fn topics_say_whose_they_are() {
        assert_eq!(whose("ingress"), Ok(Whose::Shared));
        assert_eq!(whose("ingress.acme"), Ok(Whose::Own(Tenant::parse("acme").unwrap())));
        for bad in ["ingress.ACME", "ingress.", "dead"] {
            assert_eq!(whose(bad).unwrap_err().code, Code::Forbidden, "{bad}");
        }
    }

    #[test]
    fn a_record_without_a_name_is_named_by_where_it_stands() {
        let tenant = Tenant::parse("acme").unwrap();
        let to = UserId::mobile(tenant.clone(), Phone::from_stored("+962790000001").unwrap());
        let record = raw(&[], DRAFT);
        let asked = read(&record, 1_000).unwrap();
        let name = |record: &Raw| asked.name(record, &tenant, &to).unwrap();
        assert_eq!(name(&record), name(&record));
        assert!(name(&record).is_keyed(), "so that a repeat is looked up");
        assert_ne!(name(&record), name(&Raw { offset: 8, ..record.clone() }));
        let anew = Raw { at: Timestamp(2_000), ..record.clone() };
        assert_ne!(name(&record), name(&anew), "the topic was made anew");
        let event = read(&raw(&BINARY, DRAFT), 1_000).unwrap();
        assert_eq!(event.name(&record, &tenant, &to), event.name(&anew, &tenant, &to));
    }

    proptest! {
        #[test]
        fn any_record_is_read_or_refused(
            value in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just(""), Just("application/json"), Just("application/cloudevents+json")],
            names in proptest::collection::vec(prop_oneof![Just("ce_specversion"), Just("ce_id"), Just("ce_source")], 0..4),
            text in ".{0,20}",
        ) {
            let mut record = raw(&[("content-type", kind)], "");
            record.headers.extend(names.iter().map(|name| ((*name).to_owned(), Bytes::from(text.clone()))));
            record.value = Some(value.into());
            let _ = read(&record, 100);
        }
    }
}
