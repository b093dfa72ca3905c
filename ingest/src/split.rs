//! A stream of bytes cut into items: lines of NDJSON, or the elements of one JSON array. Nothing but the item that is not
//! whole yet is held, and no more of that than its bound.

use bytes::{Bytes, BytesMut};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// One item's JSON, whole.
    Item(Bytes),
    /// An item longer than the bound, passed over.
    TooLong,
    /// The stream is not an array any more: nothing after this can be told apart.
    Broken(&'static str),
}

/// Cuts either form. Feed it with [`Splitter::push`], then take [`Splitter::next`] until it has no more; at the end of the
/// stream call [`Splitter::finish`].
pub struct Splitter {
    form: Form,
    max: usize,
    /// What was fed and not yet looked at.
    fed: Bytes,
    /// The beginning of an item whose end has not come.
    held: BytesMut,
    /// The item that is being read is too long: its bytes are not kept.
    skipping: bool,
}

enum Form {
    Lines,
    Array(Array),
}

/// Where in an array the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before `[`.
    Before,
    /// After `[`: a value or `]`.
    First,
    /// After a comma: a value.
    Value,
    /// In a value.
    Inside,
    /// After a value: a comma or `]`.
    After,
    /// After `]`: nothing more.
    End,
    /// Past an error.
    Lost,
}

struct Array {
    place: Place,
    /// Open brackets and braces of the value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The value is a number or a word: it ends where something else begins.
    bare: bool,
}

impl Splitter {
    /// Of lines, each at most `max` bytes.
    pub fn lines(max: usize) -> Self {
        Self::of(Form::Lines, max)
    }

    /// Of an array's elements, each at most `max` bytes.
    pub fn array(max: usize) -> Self {
        let array = Array { place: Place::Before, depth: 0, in_string: false, escaped: false, bare: false };
        Self::of(Form::Array(array), max)
    }

    fn of(form: Form, max: usize) -> Self {
        Self { form, max, fed: Bytes::new(), held: BytesMut::new(), skipping: false }
    }

    /// Feeds the next bytes; those before must have been taken.
    pub fn push(&mut self, bytes: Bytes) {
        if self.fed.is_empty() {
            self.fed = bytes;
        } else {
            let mut all = BytesMut::with_capacity(self.fed.len() + bytes.len());
            all.extend_from_slice(&self.fed);
            all.extend_from_slice(&bytes);
            self.fed = all.freeze();
        }
    }

    /// The next whole item of what was fed.
    #[allow(clippy::should_implement_trait)] // more may come after a `None`
    pub fn next(&mut self) -> Option<Piece> {
        match self.form {
            Form::Lines => self.next_line(),
            Form::Array(_) => self.next_element(),
        }
    }

    /// What the end of the stream makes of the rest.
    pub fn finish(&mut self) -> Option<Piece> {
        match &mut self.form {
            Form::Lines => {
                let piece = self.end_item(0);
                piece.filter(|p| !matches!(p, Piece::Item(line) if is_blank(line)))
            }
            Form::Array(array) => {
                let place = std::mem::replace(&mut array.place, Place::Lost);
                match place {
                    Place::End | Place::Lost => None,
                    Place::Before => Some(Piece::Broken("there is no JSON array in the body")),
                    _ => Some(Piece::Broken("the array breaks off before its `]`")),
                }
            }
        }
    }

    fn next_line(&mut self) -> Option<Piece> {
        while !self.fed.is_empty() {
            match self.fed.iter().position(|b| *b == b'\n') {
                None => {
                    let all = self.fed.len();
                    self.hold(all);
                }
                Some(at) => {
                    let piece = self.end_item(at);
                    let _newline = self.fed.split_to(1);
                    match piece {
                        Some(Piece::Item(line)) if is_blank(&line) => {}
                        piece => return piece,
                    }
                }
            }
        }
        None
    }

    /// Keeps the first `count` fed bytes as the beginning of an item.
    fn hold(&mut self, count: usize) {
        let part = self.fed.split_to(count);
        if self.skipping || self.held.len() + part.len() > self.max {
            self.skipping = true;
            self.held = BytesMut::new();
        } else {
            self.held.extend_from_slice(&part);
        }
    }

    /// The item that ends with the first `count` fed bytes.
    fn end_item(&mut self, count: usize) -> Option<Piece> {
        let part = self.fed.split_to(count);
        if std::mem::take(&mut self.skipping) || self.held.len() + part.len() > self.max {
            self.held = BytesMut::new();
            return Some(Piece::TooLong);
        }
        if self.held.is_empty() {
            return Some(Piece::Item(part));
        }
        self.held.extend_from_slice(&part);
        Some(Piece::Item(self.held.split().freeze()))
    }

    fn next_element(&mut self) -> Option<Piece> {
        loop {
            let Form::Array(array) = &mut self.form else { return None };
            if array.place == Place::Lost {
                self.fed = Bytes::new();
                return None;
            }
            if array.place != Place::Inside {
                // Between values: bytes are looked at one by one, and none is kept.
                let byte = *self.fed.first()?;
                match array.between(byte) {
                    Ok(true) => {}
                    Ok(false) => {
                        let _seen = self.fed.split_to(1);
                    }
                    Err(why) => {
                        array.place = Place::Lost;
                        return Some(Piece::Broken(why));
                    }
                }
                continue;
            }
            return match self.fed.iter().position(|b| array.inside(*b)) {
                // The byte that ends a bare value belongs to what follows; any other end belongs to the value.
                Some(at) => {
                    array.place = Place::After;
                    let count = if array.bare { at } else { at + 1 };
                    self.end_item(count)
                }
                None => {
                    let all = self.fed.len();
                    self.hold(all);
                    None
                }
            };
        }
    }
}

impl Array {
    /// A byte between values. `true`: a value begins with it.
    fn between(&mut self, byte: u8) -> Result<bool, &'static str> {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return Ok(false);
        }
        self.place = match (self.place, byte) {
            (Place::Before, b'[') => Place::First,
            (Place::Before, _) => return Err("a JSON array is expected here"),
            (Place::First | Place::After, b']') => Place::End,
            (Place::After, b',') => Place::Value,
            (Place::After, _) => return Err("a comma or `]` is expected between items"),
            (Place::End, _) => return Err("nothing may follow the array"),
            (_, b',' | b']' | b'}' | b':') => return Err("an item is expected here"),
            _ => {
                self.depth = 0;
                self.in_string = false;
                self.escaped = false;
                self.bare = !matches!(byte, b'{' | b'[' | b'"');
                self.place = Place::Inside;
                return Ok(true);
            }
        };
        Ok(false)
    }

    /// A byte of a value. `true`: the value ends with it (or, if it is bare, before it).
    fn inside(&mut self, byte: u8) -> bool {
        if self.bare {
            return matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n');
        }
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn split(mut splitter: Splitter, bytes: &[u8], cuts: &[usize]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        for cut in cuts.iter().chain(std::iter::once(&usize::MAX)) {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            splitter.push(Bytes::copy_from_slice(now));
            while let Some(piece) = splitter.next() {
                pieces.push(piece);
            }
            rest = later;
        }
        pieces.extend(splitter.finish());
        pieces
    }

    fn item(text: &str) -> Piece {
        Piece::Item(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_are_items_and_blank_ones_are_not() {
        let pieces = split(Splitter::lines(5), b"1\n\n  \r\n22\r\n1234567\n3", &[2, 1, 9]);
        assert_eq!(pieces, [item("1"), item("22\r"), Piece::TooLong, item("3")]);
    }

    #[test]
    fn an_array_breaks_where_it_can_no_longer_be_told_apart() {
        let table: &[(&str, &[&str], Option<&str>)] = &[
            ("[]", &[], None),
            (" [ 1 , {\"a\":[2,\"]}\"]} ] ", &["1", "{\"a\":[2,\"]}\"]}"], None),
            ("[\"a\\\"b\"]", &["\"a\\\"b\""], None),
            ("", &[], Some("there is no JSON array in the body")),
            ("{}", &[], Some("a JSON array is expected here")),
            ("[1", &[], Some("the array breaks off before its `]`")),
            ("[1,]", &["1"], Some("an item is expected here")),
            ("[1 2]", &["1"], Some("a comma or `]` is expected between items")),
            ("[1]2", &["1"], Some("nothing may follow the array")),
            ("[{\"a\":},{}]", &["{\"a\":}", "{}"], None),
        ];
        for (text, items, broken) in table {
            let mut want: Vec<_> = items.iter().map(|i| item(i)).collect();
            want.extend(broken.map(Piece::Broken));
            assert_eq!(split(Splitter::array(100), text.as_bytes(), &[]), want, "of {text}");
        }
    }

    #[test]
    fn an_element_that_is_too_long_costs_itself_only() {
        let pieces = split(Splitter::array(5), br#"[1,"123456789",2]"#, &[5, 3]);
        assert_eq!(pieces, [item("1"), Piece::TooLong, item("2")]);
    }

    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
            r#"[\\"\[\]{},: ]{0,6}"#.prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::btree_map(r#"[a-z"\\]{0,3}"#, inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn an_array_is_cut_as_serde_json_reads_it(
            items in proptest::collection::vec(values(), 0..8),
            pretty in any::<bool>(),
            cuts in proptest::collection::vec(0usize..20, 0..40),
        ) {
            let text = if pretty { serde_json::to_string_pretty(&items) } else { serde_json::to_string(&items) }.unwrap();
            let want: Vec<Box<RawValue>> = serde_json::from_str(&text).unwrap();
            let want: Vec<_> = want.iter().map(|raw| item(raw.get())).collect();
            prop_assert_eq!(split(Splitter::array(100_000), text.as_bytes(), &cuts), want);
        }

        #[test]
        fn any_bytes_are_cut_the_same_however_they_come(
            bytes in proptest::collection::vec(prop_oneof![Just(b'['), Just(b']'), Just(b','), Just(b'"'), Just(b'{'), Just(b'}'), Just(b'\n'), any::<u8>()], 0..80),
            cuts in proptest::collection::vec(0usize..9, 0..30),
            max in 0usize..20,
        ) {
            prop_assert_eq!(split(Splitter::array(max), &bytes, &cuts), split(Splitter::array(max), &bytes, &[]));
            prop_assert_eq!(split(Splitter::lines(max), &bytes, &cuts), split(Splitter::lines(max), &bytes, &[]));
        }

        #[test]
        fn what_serde_json_reads_as_an_array_is_never_broken(text in r#"[\[\]{},:"a0 \\]{0,30}"#) {
            if let Ok(want) = serde_json::from_str::<Vec<Box<RawValue>>>(&text) {
                let want: Vec<_> = want.iter().map(|raw| item(raw.get())).collect();
                prop_assert_eq!(split(Splitter::array(1_000), text.as_bytes(), &[]), want);
            }
        }
    }
}
