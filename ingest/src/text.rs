//! Text is plain text (rule 17): tags are removed, no entity is introduced, and text without tags arrives byte for byte.
//!
//! What a tag is decides the HTML parser of `ammonia`. Around it stands what rule 17 asks for beyond HTML: ampersands are hidden
//! from the parser so that nothing is decoded, and what its serialiser escapes is written back. Removing a tag may join
//! the halves of another (`<<b>script>`), so the parser runs until nothing is left to remove.

use std::sync::LazyLock;

use ammonia::Builder;

/// Knows no tag: all are removed, and what stands in `<script>` and `<style>` goes with them.
static REMOVER: LazyLock<Builder<'static>> = LazyLock::new(Builder::empty);

/// Passes of the parser: who nests halves of tags deeper than this is not writing text.
const PASSES: usize = 8;
/// Tags of one text that the parser is asked about. Its cost can grow with their nesting; a text with more loses its tags by the
/// plain rule "from `<` to `>`".
const TAGS: usize = 2_000;
/// Stands for an ampersand while the parser looks (and, doubled, for itself): a private-use character, which it leaves alone.
const HIDDEN: char = '\u{F0000}';

/// Removes tags. `None` where there are none, so that such text is not even copied.
pub fn clean(text: &str) -> Option<String> {
    let mut now = step(text, false)?;
    for pass in 1.. {
        match step(&now, pass >= PASSES) {
            None => break,
            Some(next) => now = next,
        }
    }
    Some(now)
}

/// One pass; `None` when nothing is to be removed. Each pass makes the text shorter, so they end.
fn step(text: &str, last: bool) -> Option<String> {
    if !opens_tag(text) {
        return None;
    }
    if last {
        return Some(text.replace('<', ""));
    }
    // A tag needs its `>`. What stands behind the last one is only the beginning of one, or a comparison.
    let (tags, tail) = text.split_at(text.rfind('>').map_or(0, |at| at + 1));
    if opens_tag(tags) {
        let removed = if tags.matches('<').take(TAGS + 1).count() > TAGS { by_span(tags) } else { by_parser(tags) };
        // Where the parser takes something for text that we take for a tag, ours is the stricter word.
        let removed = if removed.len() < tags.len() { removed } else { by_span(tags) };
        return Some(removed + tail);
    }
    let cut = tail_without_openings(tail);
    (cut.len() < tail.len()).then(|| tags.to_owned() + &cut)
}

/// Whether a parser of HTML would see the beginning of a tag, a comment or the like (WHATWG HTML §13.2.5.6): `<` and a letter,
/// `/`, `!` or `?`. So `a < b`, `<3` and `<=` are text.
fn opens_tag(text: &str) -> bool {
    text.match_indices('<').any(|(at, _)| opens_at(text, at))
}

fn opens_at(text: &str, at: usize) -> bool {
    text.as_bytes().get(at + 1).is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'/' | b'!' | b'?'))
}

fn by_parser(text: &str) -> String {
    let mut hidden = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => hidden.extend([HIDDEN, '1']),
            HIDDEN => hidden.extend([HIDDEN, '0']),
            _ => hidden.push(c),
        }
    }
    let cleaned = REMOVER.clean(&hidden).to_string();
    let mut out = String::with_capacity(cleaned.len());
    let mut rest = cleaned.as_str();
    while let Some(at) = rest.find(['&', HIDDEN]) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (found, stands_for) = ESCAPES.into_iter().find(|(escape, _)| rest.starts_with(escape)).unwrap_or(("", ""));
        if found.is_empty() {
            let len = rest.chars().next().map_or(rest.len(), char::len_utf8);
            out.push_str(&rest[..len]);
            rest = &rest[len..];
        } else {
            out.push_str(stands_for);
            rest = &rest[found.len()..];
        }
    }
    out + rest
}

/// What the serialiser writes for four characters (WHATWG HTML §13.3), and what hid two.
const ESCAPES: [(&str, &str); 6] = [
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&nbsp;", "\u{a0}"),
    ("\u{F0000}1", "&"),
    ("\u{F0000}0", "\u{F0000}"),
];

/// Removes from every opening to the next `>`.
fn by_span(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        if opens_at(rest, at) {
            out.push_str(&rest[..at]);
            rest = rest[at..].find('>').map_or("", |end| &rest[at + end + 1..]);
        } else {
            out.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
        }
    }
    out + rest
}

/// Takes the `<` from beginnings of tags that have no end: harmless alone, but in someone's page a tag that swallows what
/// follows. A comparison such as `a<b` keeps its sign: one letter that no attribute follows.
fn tail_without_openings(tail: &str) -> String {
    let last_equals = tail.rfind('=');
    let mut out = String::with_capacity(tail.len());
    for (at, c) in tail.char_indices() {
        if c != '<'
            || !opens_at(tail, at)
            || (last_equals.is_none_or(|equals| at > equals) && is_one_letter(&tail[at + 1..]))
        {
            out.push(c);
        }
    }
    out
}

fn is_one_letter(after: &str) -> bool {
    let mut bytes = after.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.next().is_none_or(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b':' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cleaned(text: &str) -> String {
        clean(text).unwrap_or_else(|| text.to_owned())
    }

    #[test]
    fn tags_go_and_text_stays() {
        let table = [
            ("a < b & c", "a < b & c"),
            ("I <3 you &amp; &lt;b&gt;", "I <3 you &amp; &lt;b&gt;"),
            ("if a<b then", "if a<b then"),
            ("x > y", "x > y"),
            ("<b>bold</b> & more", "bold & more"),
            ("5 < 6 <i>and</i> 7 > 6", "5 < 6 and 7 > 6"),
            ("<script>alert(1)</script>hi", "hi"),
            ("<style>p{}</style>hi", "hi"),
            ("<img src=x onerror=alert(1)>", ""),
            ("hi<img src=x onerror=alert(1) ", "hiimg src=x onerror=alert(1) "),
            ("<!-- note -->text", "text"),
            ("<<b>script>alert(1)</script>", "alert(1)"),
            ("&lt;script&gt; <b>is</b> text", "&lt;script&gt; is text"),
            ("caf\u{e9}\u{a0}<b>x</b>\u{a0}y", "caf\u{e9}\u{a0}x\u{a0}y"),
            ("مرحبا <b>بك</b>", "مرحبا بك"),
            ("<xmp>a & b <script>x</script></xmp>", "a & b "),
            ("\u{F0000}1<b>&</b>", "\u{F0000}1&"),
        ];
        for (text, want) in table {
            assert_eq!(cleaned(text), want, "of {text:?}");
        }
    }

    #[test]
    fn a_hundred_thousand_openings_are_cleaned_at_once() {
        for hard in
            ["<".repeat(40_000), "<b".repeat(20_000), "<b>".repeat(13_000), "<".repeat(13_000) + &"b>".repeat(13_000)]
        {
            assert_eq!(clean(&cleaned(&hard)), None);
        }
    }

    fn soup() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z &;=\"'/!?-]{0,6}",
            Just("<".to_owned()),
            Just(">".to_owned()),
            Just("<script>".to_owned()),
            Just("</script>".to_owned()),
            Just("<img src=x onerror=y".to_owned()),
            Just("<svg/onload=a>".to_owned()),
            Just("<a href='javascript:b'>".to_owned()),
            Just("<xmp>".to_owned()),
            Just("<!--".to_owned()),
            Just("-->".to_owned()),
            Just("<![CDATA[".to_owned()),
            Just("&lt;".to_owned()),
            Just("&amp;".to_owned()),
            Just("<table><td>".to_owned()),
            Just("<textarea>".to_owned()),
            Just("\u{a0}\r\n\0".to_owned()),
            ".{0,5}",
        ];
        proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn no_tag_survives(text in soup()) {
            let out = cleaned(&text).to_ascii_lowercase();
            for tag in ["<script", "<img", "<svg", "<a href", "<xmp", "<table", "<textarea", "<!", "</", "<style", "<iframe"] {
                prop_assert!(!out.contains(tag), "{tag} in {out:?}");
            }
        }

        #[test]
        fn cleaning_twice_is_cleaning_once(text in soup()) {
            let once = cleaned(&text);
            prop_assert_eq!(clean(&once), None, "{:?}", once);
        }

        #[test]
        fn plain_text_is_not_touched(text in "[^<]{0,200}") {
            prop_assert_eq!(clean(&text), None);
        }

        #[test]
        fn text_between_tags_keeps_its_entities_and_gains_none(left in "[a-z&;# ]{0,20}", right in "[a-z&;# ]{0,20}") {
            prop_assert_eq!(cleaned(&format!("{left}<b>{right}</b>")), format!("{left}{right}"));
        }
    }
}
