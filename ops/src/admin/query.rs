//! Query strings of the administrators' routes: parsed once, an unknown or impossible parameter refused by name.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use axum::{
    extract::{FromRequestParts, Query},
    http::request,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ingest::http::Refusal;
use schemas::{
    Code, MessageId, Problem, Reason, Timestamp, UserId,
    limits::{PAGE_DEFAULT, PAGE_MAX},
    port::{Buried, Filter},
};

/// The parameters of a request, taken one after another; what is left over at the end is unknown.
pub(super) struct Parameters(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, Refusal> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(map)) => Ok(Self(map)),
            Err(why) => Err(Refusal(Problem::new(Code::InvalidQuery, why.body_text()))),
        }
    }
}

impl Parameters {
    /// Takes one, parsed.
    pub(super) fn take<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: Display,
    {
        let Some(text) = self.0.remove(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|why: T::Err| bad(name, &why.to_string()))
    }

    /// Takes one that this function reads.
    pub(super) fn read<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        read(&text).map(Some).ok_or_else(|| bad(name, "has a value that it cannot have"))
    }

    /// How many rows of a page.
    pub(super) fn limit(&mut self) -> Result<usize, Problem> {
        let limit = self.take::<usize>("limit")?.unwrap_or(PAGE_DEFAULT);
        if (1..=PAGE_MAX).contains(&limit) {
            Ok(limit)
        } else {
            Err(bad("limit", &format!("must be between 1 and {PAGE_MAX}")))
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(bad(name, "is not a parameter of this route")),
        }
    }

    /// A filter of dead letters.
    pub(super) fn filter(&mut self) -> Result<Filter, Problem> {
        Ok(Filter {
            tenant: self.take("tenant")?,
            reason: self.read("reason", reason)?,
            user: self.take::<UserId>("user")?,
            since: self.read("since", Timestamp::parse)?,
            until: self.read("until", Timestamp::parse)?,
            requeued: self.take("requeued")?.unwrap_or(false),
        })
    }
}

fn bad(name: &str, why: &str) -> Problem {
    Problem::new(Code::InvalidQuery, format!("`{name}`: {why}")).at(name)
}

fn reason(word: &str) -> Option<Reason> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

/// Where a page of dead letters goes on, as clients carry it.
pub(super) fn write_cursor((at, id): Buried) -> String {
    let mut bytes = Vec::with_capacity(25);
    bytes.push(b'd');
    bytes.extend_from_slice(&at.0.to_be_bytes());
    bytes.extend_from_slice(id.0.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads [`write_cursor`].
pub(super) fn read_cursor(text: &str) -> Result<Buried, Problem> {
    let bad = || Problem::new(Code::InvalidCursor, "the cursor is not one that this list gave").at("cursor");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    let Some((b'd', rest)) = bytes.split_first() else { return Err(bad()) };
    let (at, id) = rest.split_at_checked(8).ok_or_else(bad)?;
    let at = i64::from_be_bytes(at.try_into().map_err(|_| bad())?);
    let id = uuid::Uuid::from_slice(id).map_err(|_| bad())?;
    Ok((Timestamp(at), MessageId(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        Parameters(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_filter_is_read_and_every_mistake_is_named() {
        let mut good = parameters(&[("tenant", "acme"), ("reason", "no_ack"), ("since", "2026-11-22T00:00:00Z")]);
        let filter = good.filter().unwrap();
        assert_eq!((filter.reason, good.end().is_ok()), (Some(Reason::NoAck), true));
        for (name, value) in [("tenant", "A B"), ("reason", "bored"), ("since", "yesterday"), ("user", "x")] {
            let problem = parameters(&[(name, value)]).filter().unwrap_err();
            assert_eq!((problem.code, problem.field.as_deref()), (Code::InvalidQuery, Some(name)));
        }
        assert!(parameters(&[("colour", "red")]).end().is_err());
        assert!(parameters(&[("limit", "0")]).limit().is_err());
    }

    proptest::proptest! {
        #[test]
        fn cursors_round_trip(at in proptest::prelude::any::<i64>(), id in proptest::prelude::any::<u128>()) {
            let place = (Timestamp(at), MessageId(uuid::Uuid::from_u128(id)));
            proptest::prop_assert_eq!(read_cursor(&write_cursor(place)).unwrap(), place);
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".{0,40}") {
            if let Ok(place) = read_cursor(&text) { proptest::prop_assert_eq!(read_cursor(&write_cursor(place)).unwrap(), place); }
        }
    }
}
