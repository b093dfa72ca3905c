//! A piece of JSON that is carried and not looked into (a sender's `metadata`).

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
    ser,
};
use serde_json::value::RawValue;

/// Valid JSON text. In JSON it stands as itself; in the internal codec as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// Takes text that must be one JSON value.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(text).map(|raw| Self(raw.get().into()))
    }

    /// The text as it came.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if !s.is_human_readable() {
            return s.serialize_str(&self.0);
        }
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(ser::Error::custom)?;
        raw.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if !d.is_human_readable() {
            return Self::parse(&String::deserialize(d)?).map_err(de::Error::custom);
        }
        d.deserialize_newtype_struct(RAW, Text)
    }
}

/// The name by which `serde_json` is asked for the text as it stands.
const RAW: &str = "$serde_json::private::RawValue";

/// Takes the text as it stands where the reader still has it. Where it does not (a tagged frame is buffered before its
/// variant is known), writes the value anew: the same value, without the sender's spaces.
struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Json, A::Error> {
        Box::<RawValue>::deserialize(MapAccessDeserializer::new(map)).map(|raw| Json(raw.get().into()))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Json, D::Error> {
        serde_json::Value::deserialize(d).map(|value| Json(value.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ClientFrame;
    use proptest::prelude::*;

    #[test]
    fn text_that_is_read_directly_stays_as_it_came() {
        for text in [r#"{"a": 1, "a":2}"#, "[ 1,2 ]", "12345678901234567890123", "\"x\"", "null"] {
            assert_eq!(serde_json::from_str::<Json>(text).unwrap().as_str(), text);
        }
        assert!(serde_json::from_str::<Json>("{").is_err());
    }

    #[test]
    fn a_frame_with_json_inside_is_read() {
        for content in ["\"hello\"", r#"{"a": [1, null]}"#, "5"] {
            let frame = format!(r#"{{"type":"send","ref":"r","to":"business:sara","content":{content}}}"#);
            let ClientFrame::Send { content: read, .. } = serde_json::from_str(&frame).unwrap() else {
                panic!("{frame}")
            };
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(value(read.as_str()), value(content));
        }
    }

    proptest! {
        #[test]
        fn any_text_round_trips(text in ".{0,60}") {
            let json = Json::parse(&serde_json::to_string(&text).unwrap()).unwrap();
            let written = serde_json::to_string(&json).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Json>(&written).unwrap(), &json);
            let value = serde_json::to_value(&json).unwrap();
            prop_assert_eq!(serde_json::from_value::<Json>(value).unwrap(), json);
        }
    }
}
